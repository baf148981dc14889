// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"slices"

	"braid/cluster"
	"braid/cluster/placement"
)

// drop is a device leaving the in-sync sets of groups.
type drop struct {
	s       *State
	dropped []*cluster.PG // as they were
	last    []*cluster.PG // keep the device: it is their last in-sync copy
	changed map[uint32]map[uint32]*cluster.PG
}

// groupsToDrop plans that the device leaves the in-sync set of every group in
// the given set (nil: of all sets that hold volumes), never as the last one.
func (s *State) groupsToDrop(id cluster.DeviceID, only *uint32) *drop {
	d := &drop{s: s, changed: map[uint32]map[uint32]*cluster.PG{}}
	for number := range s.sets {
		if only != nil && *only != number || s.volumesIn(number) == 0 {
			continue
		}
		for _, pg := range s.table(number) {
			if !pg.Has(id) {
				continue
			}
			if len(pg.InSync) == 1 {
				d.last = append(d.last, pg)
				continue
			}
			d.dropped = append(d.dropped, pg)
			next := d.edit(pg)
			next.InSync = without(next.InSync, id)
		}
	}
	return d
}

// edit returns the group's next version, with the next epoch.
func (d *drop) edit(pg *cluster.PG) *cluster.PG {
	set, index := pg.ID.Set(), pg.ID.Index()
	if d.changed[set] == nil {
		d.changed[set] = map[uint32]*cluster.PG{}
	}
	next := d.changed[set][index]
	if next == nil {
		copied := *pg
		copied.Epoch++
		next = &copied
		d.changed[set][index] = next
	}
	return next
}

// leave takes the device out of the groups' memberships as well.
func (d *drop) leave(id cluster.DeviceID) {
	for number := range d.s.sets {
		for _, pg := range d.s.table(number) {
			if d.s.volumesIn(number) == 0 || !pg.Member(id) {
				continue
			}
			next := d.edit(pg)
			next.Replicas = without(next.Replicas, id)
			if next.Target == id {
				next.Target = 0
			}
		}
	}
}

func (d *drop) put(tx *Tx) {
	for set, groups := range d.changed {
		tx.putPGs(set, groups)
	}
}

func without(ids []cluster.DeviceID, id cluster.DeviceID) []cluster.DeviceID {
	return slices.DeleteFunc(slices.Clone(ids), func(x cluster.DeviceID) bool { return x == id })
}

func (s *State) volumesIn(set uint32) int {
	n := 0
	for _, v := range s.volumes {
		if v.PGSet == set {
			n++
		}
	}
	return n
}

// candidates are the devices that can take copies.
func (s *State) candidates() []placement.Device {
	var out []placement.Device
	for _, d := range s.sortedDevices() {
		if c := s.clusterDevice(d); c.Up && !c.Removing {
			out = append(out, placement.Device{ID: c.ID, Server: c.Server, FaultSet: c.FaultSet,
				Weight: c.Size})
		}
	}
	return out
}

// layOut makes sure that a set with so many replicas exists, and returns its
// number and the bytes that it can hold. A set without volumes is laid out anew
// over the devices that are up; one with volumes stays as it is.
func (s *State) layOut(tx *Tx, replicas int, next *counters) (number uint32, usable uint64,
	warnings []string, err error) {
	var set *cluster.PGSet
	for _, each := range s.sets {
		if each.Replicas == replicas {
			set = each
		}
	}
	if set != nil && s.volumesIn(set.Number) > 0 {
		usable, warnings = s.usable(set.Number)
		return set.Number, usable, warnings, nil
	}
	devices := s.candidates()
	groups := placement.Groups(len(devices), replicas)
	plan, err := placement.Compute(devices, replicas, int(groups), nil)
	if errors.Is(err, placement.ErrTooFew) {
		return 0, 0, nil, refuse(ErrRefused, "%d replicas need %d devices that are up, there %s; "+
			"start more servers (sds serve), or ask for fewer replicas (--replicas)",
			replicas, replicas, thereAre(len(devices), "is %d", "are %d"))
	}
	if err != nil {
		return 0, 0, nil, err
	}
	if set == nil {
		set = &cluster.PGSet{Number: next.Set, Replicas: replicas}
		next.Set++
	}
	s.replaceTable(tx, set, plan.Table)
	return set.Number, plan.Usable, plan.Warnings, nil
}

func thereAre(n int, one, many string) string {
	if n == 1 {
		return fmt.Sprintf(one, n)
	}
	return fmt.Sprintf(many, n)
}

// replaceTable writes a set's table where it differs from what is there. Epochs
// go on, also where the set grows again: servers may remember older ones.
func (s *State) replaceTable(tx *Tx, set *cluster.PGSet, table placement.Table) {
	epoch := uint32(0)
	for _, page := range s.pages[set.Number] {
		for _, pg := range page {
			epoch = max(epoch, pg.value.Epoch)
		}
	}
	changed := map[uint32]*cluster.PG{}
	old := s.table(set.Number)
	for i, devices := range table {
		pg := &cluster.PG{ID: cluster.MakePGID(set.Number, uint32(i)), Epoch: epoch + 1,
			Replicas: devices, InSync: devices}
		if i < len(old) && slices.Equal(old[i].Replicas, pg.Replicas) &&
			slices.Equal(old[i].InSync, pg.InSync) && old[i].Target == 0 {
			continue
		}
		changed[uint32(i)] = pg
	}
	tx.putPGs(set.Number, changed)
	if s.sets[set.Number] == nil || set.Count != uint32(len(table)) {
		tx.put(setKey(set.Number), cluster.PGSet{Number: set.Number, Replicas: set.Replicas,
			Count: uint32(len(table))})
	}
}

// usable returns what a set can hold, and says when devices that are up have no
// part in it.
func (s *State) usable(number uint32) (uint64, []string) {
	var table placement.Table
	used := map[cluster.DeviceID]bool{}
	for _, pg := range s.table(number) {
		table = append(table, pg.Replicas)
		for _, id := range pg.Replicas {
			used[id] = true
		}
	}
	var devices []placement.Device
	for _, d := range s.sortedDevices() {
		if used[d.ID] {
			devices = append(devices, placement.Device{ID: d.ID, Weight: d.Size})
		}
	}
	idle := 0
	for _, d := range s.candidates() {
		if !used[d.ID] {
			idle++
		}
	}
	var warnings []string
	if idle > 0 {
		warnings = append(warnings, fmt.Sprintf("%s no copies: they joined after the first volume "+
			"with %d replicas was created", thereAre(idle, "%d device holds", "%d devices hold"),
			s.sets[number].Replicas))
	}
	return placement.Usable(table, devices), warnings
}
