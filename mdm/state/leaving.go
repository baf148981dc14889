// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"braid/cluster"
)

// PlanRemoval marks devices to be emptied and then removed, or no longer so.
func (s *State) PlanRemoval(ids []cluster.DeviceID, removing bool, m Membership, now time.Time) (*Tx, MovePlan, error) {
	if len(ids) == 0 {
		return nil, MovePlan{}, refuse(ErrNotFound, "there is no device to remove")
	}
	tx := s.Begin(now)
	m.Without = maps.Clone(m.Without)
	if m.Without == nil {
		m.Without = map[cluster.DeviceID]bool{}
	}
	for _, id := range ids {
		d := s.devices[id]
		if d == nil {
			return nil, MovePlan{}, refuse(ErrNotFound, "remove device %d: there is none; `scli device list` shows "+
				"them", id)
		}
		m.Without[id] = removing
		if d.Removing == removing {
			continue
		}
		next := *d
		next.Removing = removing
		tx.put(deviceKey(id), next)
		if removing {
			tx.event(Info, "device-leaving", deviceName(d), "device %d (%s) is emptied and then removed", id,
				deviceName(d))
		} else {
			tx.event(Info, "device-stays", deviceName(d), "device %d (%s) is no longer to be removed", id,
				deviceName(d))
		}
	}
	if !removing {
		return tx, MovePlan{}, nil
	}
	plan, err := s.PlanMoves(m, now)
	if err == nil {
		err = plan.Room()
	}
	if err != nil {
		return nil, plan, fmt.Errorf("remove %s: %w", thereAre(len(ids), "%d device", "%d devices"), err)
	}
	return tx, plan, nil
}

// Modes of maintenance.
const (
	shortMode     = "short"
	protectedMode = "protected"
)

// Maintain plans the begin or the end of a server's maintenance. In a protected one
// its copies move elsewhere first, so that redundancy is never less than before.
func (s *State) Maintain(name string, enter, protected bool, m Membership, now time.Time) (*Tx, error) {
	server := s.servers[name]
	if server == nil {
		return nil, refuse(ErrNotFound, "maintenance of %s: there is no such server; `scli sds list` shows them", name)
	}
	tx := s.Begin(now)
	next := *server
	switch {
	case !enter:
		next.Maintenance = ""
	case protected:
		next.Maintenance = protectedMode
	default:
		next.Maintenance = shortMode
	}
	if next == *server {
		return tx, nil
	}
	switch next.Maintenance {
	case protectedMode:
		m.Without = map[cluster.DeviceID]bool{}
		for _, id := range s.DevicesOn(name) {
			m.Without[id] = true
		}
		plan, err := s.PlanMoves(m, now)
		if err == nil {
			err = plan.Room()
		}
		if err != nil {
			return nil, prefixed("protected maintenance of "+name+": ", err)
		}
		tx.event(Info, "maintenance", name, "server %s is in protected maintenance: its copies move elsewhere, "+
			"about %s", name, cluster.FormatSize(plan.Bytes))
	case shortMode:
		if why := s.needed(name); why != "" {
			return nil, refuse(ErrRefused, "maintenance of %s: %s; wait until `scli status` is ok", name, why)
		}
		tx.event(Info, "maintenance", name, "server %s is in maintenance: its copies stay where they are and "+
			"catch up when it is back", name)
	default:
		tx.event(Info, "maintenance", name, "maintenance of server %s has ended", name)
	}
	tx.put(serverKey(name), next)
	return tx, nil
}

// GroupsOn counts the groups of which a server has a copy, or is to have one.
func (s *State) GroupsOn(name string) int {
	own := map[cluster.DeviceID]bool{}
	for _, id := range s.DevicesOn(name) {
		own[id] = true
	}
	has := func(id cluster.DeviceID) bool { return own[id] }
	count := 0
	for _, number := range s.used() {
		s.each(number, func(_ cluster.PGID, p *placed) {
			g := p.record
			if slices.ContainsFunc(g.Replicas, has) || slices.ContainsFunc(g.InSync, has) || own[g.Target] {
				count++
			}
		})
	}
	return count
}

// needed says why the cluster cannot do without a server now.
func (s *State) needed(name string) string {
	alone := 0
	for _, number := range s.used() {
		s.each(number, func(_ cluster.PGID, p *placed) {
			on, other := false, false
			for i, h := range s.judge(p.record) {
				if d := s.devices[p.record.InSync[i]]; d != nil && d.Server == name {
					on = true
				} else if h.up && h.sound {
					other = true
				}
			}
			if on && !other {
				alone++
			}
		})
	}
	if alone == 0 {
		return ""
	}
	return fmt.Sprintf("it has the only in-sync copy of %s", thereAre(alone, "%d group", "%d groups"))
}
