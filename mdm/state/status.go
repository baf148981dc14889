// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"braid/cluster"
)

// Healths of the cluster, the best first.
const (
	OK          = "ok"
	Rebalancing = "rebalancing"
	Rebuilding  = "rebuilding"
	Degraded    = "degraded"
	Full        = "full"
	Unavailable = "unavailable"
)

// A device counts as full, and is warned about, at these shares of its space.
const (
	fullPercent     = 95
	nearFullPercent = 85
)

// Status is the cluster at a glance.
type Status struct {
	Health           string
	Reasons          []string
	Servers          int
	ServersUp        int
	Devices          int
	DevicesUp        int
	Spares           int
	Capacity         uint64
	Used             uint64
	Volumes          int
	Attached         int
	Waiting          int // volumes whose writes wait for room
	Groups           int
	GroupsDegraded   int
	groupsOut        int            // without any in-sync copy that is up
	awaited          map[string]int // groups that wait for one of these devices, which may hold more than the rest
	GroupsRebuilding int            // a target is being brought in sync
	groupsMoving     int            // they head for other devices
	partsDown        int            // servers that are down, devices that have failed
}

// Status sums up. used is what the devices reported last, in bytes.
func (s *State) Status(used map[cluster.DeviceID]uint64) Status {
	st := Status{Health: OK, Servers: len(s.servers), Devices: len(s.devices),
		Volumes: len(s.volumes), Attached: len(s.Sessions())}
	up := map[cluster.DeviceID]bool{}
	for _, d := range s.sortedDevices() {
		c := s.clusterDevice(d)
		up[d.ID] = c.Up
		if c.Up {
			st.DevicesUp++
		}
		if d.Spare {
			st.Spares++
		} else {
			st.Capacity += d.Size
		}
		st.Used += used[d.ID]
	}
	s.countGroups(&st, up)
	if st.groupsOut > 0 {
		st.worse(Unavailable, "%d of %d groups have no in-sync copy on a device that is up: I/O to "+
			"them waits", st.groupsOut, st.Groups)
	}
	for _, devices := range slices.Sorted(maps.Keys(st.awaited)) {
		st.worse(Unavailable, "%d of %d groups wait for %s: their copies that are up have restarted, and may lack "+
			"acknowledged writes that are there", st.awaited[devices], st.Groups, devices)
	}
	s.noteRoomless(&st)
	s.fullDevices(&st, used)
	s.noteReserve(&st, used)
	s.downParts(&st)
	switch {
	case st.GroupsDegraded > 0 && st.partsDown == 0 && st.GroupsRebuilding > 0:
		st.worse(Rebuilding, "%d of %d groups have fewer in-sync copies up than they should; %d are being copied now",
			st.GroupsDegraded, st.Groups, st.GroupsRebuilding)
	case st.GroupsDegraded > 0:
		st.worse(Degraded, "%d of %d groups have fewer in-sync copies up than they should",
			st.GroupsDegraded, st.Groups)
		if st.GroupsRebuilding > 0 {
			st.worse(Rebuilding, "%d groups are being copied", st.GroupsRebuilding)
		}
	case st.GroupsRebuilding+st.groupsMoving > 0:
		st.worse(Rebalancing, "%d groups move to other devices; %d are being copied now", max(st.groupsMoving,
			st.GroupsRebuilding), st.GroupsRebuilding)
	}
	for _, number := range slices.Sorted(maps.Keys(s.sets)) {
		if s.volumesIn(number) > 0 {
			_, notes := s.usable(number)
			st.Reasons = append(st.Reasons, notes...)
		}
	}
	if len(s.devices) == 0 {
		st.Reasons = append(st.Reasons, "there are no devices yet: start data servers (sds serve)")
	}
	return st
}

func (st *Status) worse(health, format string, args ...any) {
	rank := []string{OK, Rebalancing, Rebuilding, Degraded, Full, Unavailable}
	if slices.Index(rank, health) > slices.Index(rank, st.Health) {
		st.Health = health
	}
	st.Reasons = append(st.Reasons, fmt.Sprintf(format, args...))
}

// countGroups looks at the sets that hold volumes: nobody waits for the others.
func (s *State) countGroups(st *Status, up map[cluster.DeviceID]bool) {
	for number, set := range s.sets {
		if s.volumesIn(number) == 0 {
			continue
		}
		s.each(number, func(_ cluster.PGID, p *placed) {
			pg := p.value
			st.Groups++
			alive := 0
			for _, id := range pg.InSync {
				if up[id] {
					alive++
				}
			}
			if alive < set.Replicas {
				st.GroupsDegraded++
			}
			if alive == 0 {
				st.groupsOut++
			} else if alive < len(pg.InSync) {
				s.noteAwaited(st, p.record)
			}
			if pg.Target != 0 {
				st.GroupsRebuilding++
			}
			if p.record.Want != nil {
				st.groupsMoving++
			}
		})
	}
}

// noteAwaited counts a group of which no copy that is up is sure to be whole, but one
// that is away: nothing changes until that is back (see Settle).
func (s *State) noteAwaited(st *Status, g *group) {
	judged := s.judge(g)
	if slices.ContainsFunc(judged, func(h health) bool { return h.up && h.sound }) {
		return
	}
	var names []string
	for i, id := range g.InSync {
		if judged[i].away() {
			names = append(names, fmt.Sprintf("device %d (%s)", id, s.deviceName(id)))
		}
	}
	if len(names) == 0 {
		return // all are broken: mdm goes on with what there is
	}
	slices.Sort(names)
	if st.awaited == nil {
		st.awaited = map[string]int{}
	}
	st.awaited[strings.Join(names, " or ")]++
}

func (s *State) fullDevices(st *Status, used map[cluster.DeviceID]uint64) {
	for _, d := range s.sortedDevices() {
		if d.Size == 0 {
			continue
		}
		switch percent := used[d.ID] / max(d.Size/100, 1); {
		case percent >= s.fullAt():
			st.worse(Full, "device %d (%s) is %d%% full: add devices or free space", d.ID, deviceName(d),
				percent)
		case percent >= nearFullPercent:
			st.Reasons = append(st.Reasons, fmt.Sprintf("device %d (%s) is %d%% full: add devices soon",
				d.ID, deviceName(d), percent))
		}
	}
}

func (s *State) downParts(st *Status) {
	for _, server := range s.Servers() {
		if server.Up {
			st.ServersUp++
			continue
		}
		st.partsDown++
		st.worse(Degraded, "server %s at %s is down since %s", server.Name, server.Addr,
			server.Since.Format("2006-01-02 15:04:05 MST"))
	}
	for _, d := range s.sortedDevices() {
		if d.RolledBack {
			st.worse(Degraded, "device %d (%s) came back as an older image of itself and is not used: "+
				"`scli device remove %d --force`, then format it anew", d.ID, deviceName(d), d.ID)
		}
		if d.Failed != "" {
			st.partsDown++
			st.worse(Degraded, "device %d (%s) is out of service: %s", d.ID, deviceName(d), d.Failed)
		}
	}
}

// Servers returns the data servers by name.
func (s *State) Servers() []*Server {
	return slices.SortedFunc(maps.Values(s.servers), func(a, b *Server) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// Members returns the metadata managers by name.
func (s *State) Members() []*Member {
	return slices.SortedFunc(maps.Values(s.members), func(a, b *Member) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// Devices returns the devices by number, with their records.
func (s *State) Devices() ([]*cluster.Device, []*Device) {
	records := s.sortedDevices()
	out := make([]*cluster.Device, len(records))
	for i, d := range records {
		out[i] = s.clusterDevice(d)
	}
	return out, records
}
