// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"slices"

	"braid/cluster"
	"braid/cluster/placement"
)

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
		if c := s.clusterDevice(d); c.Up && !c.Removing && !d.Spare {
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
	changed := map[uint32]*group{}
	old := s.table(set.Number)
	for i, devices := range table {
		pg := &group{Epoch: epoch + 1, Replicas: devices, InSync: devices}
		for _, id := range devices {
			pg.Joined = append(pg.Joined, s.devices[id].Incarnation)
		}
		if i < len(old) && slices.Equal(old[i].Replicas, pg.Replicas) &&
			slices.Equal(old[i].InSync, pg.InSync) && old[i].Target == 0 &&
			slices.Equal(s.record(old[i].ID).Joined, pg.Joined) {
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
