// SPDX-License-Identifier: Apache-2.0

package state

import (
	"maps"
	"slices"

	"braid/cluster"
)

// regroup collects changes of placement groups: all that one cause touches, in
// one transaction.
type regroup struct {
	s       *State
	changed map[uint32]map[uint32]*group // by set, then index
}

func (s *State) regroup() *regroup {
	return &regroup{s: s, changed: map[uint32]map[uint32]*group{}}
}

// place returns where a group is kept, or nil.
func (s *State) place(id cluster.PGID) *placed {
	page := s.pages[id.Set()][int(id.Index())/PageSize]
	set, at := s.sets[id.Set()], int(id.Index())%PageSize
	if set == nil || id.Index() >= set.Count || at >= len(page) {
		return nil
	}
	return &page[at]
}

// record returns the group's record as the state has it. It must not be changed.
func (s *State) record(id cluster.PGID) *group {
	if p := s.place(id); p != nil {
		return p.record
	}
	return nil
}

// used returns the sets that hold volumes, by number. Nobody waits for the
// others: they are laid out anew before they are used.
func (s *State) used() []uint32 {
	var out []uint32
	for _, number := range slices.Sorted(maps.Keys(s.sets)) {
		if s.volumesIn(number) > 0 {
			out = append(out, number)
		}
	}
	return out
}

// each calls f for every group of a set, in order of their index.
func (s *State) each(number uint32, f func(cluster.PGID, *placed)) {
	set := s.sets[number]
	if set == nil {
		return
	}
	for index := range pageCount(set.Count) {
		page := s.pages[number][index]
		for i := range page {
			if id := page[i].value.ID; id.Index() < set.Count {
				f(id, &page[i])
			}
		}
	}
}

// now returns the group as it is with the changes so far.
func (r *regroup) now(id cluster.PGID) *group {
	if g := r.changed[id.Set()][id.Index()]; g != nil {
		return g
	}
	return r.s.record(id)
}

// note returns the group to change what only mdm sees of it: the epoch stays.
func (r *regroup) note(id cluster.PGID) *group {
	set, index := id.Set(), id.Index()
	if r.changed[set] == nil {
		r.changed[set] = map[uint32]*group{}
	}
	g := r.changed[set][index]
	if g == nil {
		old := r.s.record(id)
		next := *old
		next.Replicas, next.InSync = slices.Clone(old.Replicas), slices.Clone(old.InSync)
		next.Joined, next.Out = slices.Clone(old.Joined), slices.Clone(old.Out)
		next.Want = slices.Clone(old.Want)
		// A record of before incarnations were kept.
		for len(next.Joined) < len(next.InSync) {
			next.Joined = append(next.Joined, 0)
		}
		g = &next
		r.changed[set][index] = g
	}
	return g
}

// edit returns the group to change under the next epoch: one more than the last,
// whatever changes together.
func (r *regroup) edit(id cluster.PGID) *group {
	g := r.note(id)
	g.Epoch = r.s.record(id).Epoch + 1
	return g
}

// leave takes a device out of the in-sync set, which must keep another.
func (r *regroup) leave(id cluster.PGID, device cluster.DeviceID) {
	g := r.edit(id)
	at := slices.Index(g.InSync, device)
	if at < 0 || len(g.InSync) == 1 {
		panic("state: the in-sync set of a placement group would be empty")
	}
	g.InSync = slices.Delete(g.InSync, at, at+1)
	g.Joined = slices.Delete(g.Joined, at, at+1)
	if !slices.Contains(g.Out, device) {
		g.Out = append(g.Out, device)
	}
}

// giveUp ends the run of the group's target.
func (r *regroup) giveUp(id cluster.PGID) {
	g := r.edit(id)
	g.Target, g.TargetEpoch, g.TargetInc = 0, 0, 0
}

// forget takes a device out of the group for good.
func (r *regroup) forget(id cluster.PGID, device cluster.DeviceID) {
	g := r.edit(id)
	g.Replicas = without(g.Replicas, device) // and stays in Out: it may serve an old session still
	if slices.Contains(g.Want, device) {
		g.Want = nil
	}
	if g.Target == device {
		r.giveUp(id)
	}
}

func (r *regroup) put(tx *Tx) {
	r.noteShort(tx.now)
	for set, groups := range r.changed {
		tx.putPGs(set, groups)
	}
}

// copies of a group that a device holds.
type holding struct {
	id cluster.PGID
	g  *group // as it is now
}

// inSync returns the groups in use of which the device holds an in-sync copy;
// only restricts it to one set.
func (s *State) inSync(device cluster.DeviceID, only *uint32) []holding {
	var out []holding
	for _, number := range s.used() {
		if only != nil && *only != number {
			continue
		}
		s.each(number, func(id cluster.PGID, p *placed) {
			if p.value.Has(device) {
				out = append(out, holding{id, p.record})
			}
		})
	}
	return out
}
