// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"time"

	"braid/cluster"
)

// Move plans that groups head for other devices. Announce and Settle do the rest.
func (s *State) Move(plan MovePlan, why string, now time.Time) *Tx {
	tx, r := s.Begin(now), s.regroup()
	for _, m := range plan.Moves {
		g := r.note(m.PG)
		if g.Want = slices.Clone(m.Want); sameDevices(g.Want, g.Replicas) {
			g.Want = nil
		}
		if g.Target != 0 && !slices.Contains(g.heading(), g.Target) {
			r.giveUp(m.PG)
		}
	}
	r.put(tx)
	if len(plan.Moves) > 0 {
		tx.event(Info, "moves-planned", "", "%s: %s to copy, about %s", why,
			thereAre(plan.Copies, "%d copy of a group", "%d copies of groups"), cluster.FormatSize(plan.Bytes))
	}
	return tx
}

// retire ends a group's move: every copy that is to be there is in sync, so the others
// leave by plan (rule 29). So does what an older plan has left behind. Until then those
// leave that are more than enough: a client takes one copy more than there are to be.
func (r *regroup) retire(id cluster.PGID, t *tally) {
	g := r.now(id)
	for _, d := range g.heading() {
		if !slices.Contains(g.InSync, d) {
			r.shed(id)
			return
		}
	}
	extra := slices.DeleteFunc(slices.Clone(g.InSync), func(d cluster.DeviceID) bool {
		return slices.Contains(g.heading(), d)
	})
	if g.Want == nil && len(extra) == 0 {
		return
	}
	for _, d := range extra {
		if ok, _ := r.s.mayLeave(id, g, d, func(cluster.VolumeID) bool { return false }); !ok {
			return
		}
	}
	for _, d := range extra {
		r.leave(id, d)
	}
	g = r.edit(id)
	if g.Target != 0 && !slices.Contains(g.heading(), g.Target) {
		r.giveUp(id)
	}
	if g.Want != nil {
		g.Replicas, g.Want = g.Want, nil
		t.moved++
	}
}

// shed takes copies out that are not to stay, as long as there are more in sync than
// the group is to have: first those that no plan names any more.
func (r *regroup) shed(id cluster.PGID) {
	replicas := r.s.sets[id.Set()].Replicas
	for _, named := range []bool{false, true} {
		for _, d := range slices.Clone(r.now(id).InSync) {
			g := r.now(id)
			if len(g.InSync) <= replicas {
				return
			}
			if slices.Contains(g.heading(), d) || slices.Contains(g.Replicas, d) != named {
				continue
			}
			if ok, _ := r.s.mayLeave(id, g, d, func(cluster.VolumeID) bool { return false }); ok {
				r.leave(id, d)
			}
		}
	}
}

// depart takes devices that are to be removed, and hold nothing any more, out of
// the cluster.
func (s *State) depart(r *regroup, tx *Tx) {
	for _, d := range s.sortedDevices() {
		if !d.Removing {
			continue
		}
		holds := false
		for _, number := range s.used() {
			s.each(number, func(id cluster.PGID, _ *placed) {
				g := r.now(id)
				holds = holds || slices.Contains(g.Replicas, d.ID) || slices.Contains(g.InSync, d.ID) ||
					g.Target == d.ID || slices.Contains(g.Want, d.ID)
			})
		}
		if !holds {
			s.retireDevice(tx, d)
			tx.event(Info, "device-removed", deviceName(d), "device %d, %s on server %s, holds nothing any "+
				"more and was removed", d.ID, d.Path, d.Server)
		}
	}
}

// retireDevice forgets a device that holds nothing.
func (s *State) retireDevice(tx *Tx, d *Device) {
	tx.remove(deviceKey(d.ID))
	if server := s.servers[d.Server]; server != nil && !server.Up && s.devicesOf(d.Server) == 1 {
		tx.remove(serverKey(d.Server)) // nothing is left to wait for
	}
	tx.put(retiredKey(d.UUID), map[string]any{"device": d.ID, "path": d.Path, "removed": tx.now})
}

// moving counts, for each device, the groups that it takes in by a move now.
func (s *State) moving() map[cluster.DeviceID]int {
	n := map[cluster.DeviceID]int{}
	for _, number := range s.used() {
		s.each(number, func(_ cluster.PGID, p *placed) {
			if g := p.record; g.Target != 0 && !slices.Contains(g.Replicas, g.Target) {
				n[g.Target]++
			}
		})
	}
	return n
}

// nextTarget picks the copy of a group to bring in sync next. One that was there
// and only has to catch up comes first while the group lacks copies, also where
// it is to go later: nothing else makes redundancy good as fast. isMove tells
// that the group lacks none, so that it counts and can be paused.
func (s *State) nextTarget(g *group, replicas int, ready map[cluster.DeviceID]bool, moving map[cluster.DeviceID]int,
) (device cluster.DeviceID, isMove bool) {
	if len(g.InSync) > replicas {
		return 0, false // first one leaves, see shed
	}
	lacks := len(g.InSync) < replicas
	for _, d := range g.Replicas {
		if ready[d] && !slices.Contains(g.InSync, d) && (lacks || slices.Contains(g.heading(), d)) {
			return d, false
		}
	}
	for _, d := range g.Want {
		if ready[d] && !slices.Contains(g.InSync, d) && (lacks || !s.Settings().Paused && moving[d] < maxMoves) {
			return d, !lacks
		}
	}
	return 0, false
}
