// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"time"

	"braid/cluster"
	"braid/cluster/rules"
)

// Announce plans targets: members of groups that are up and not in sync, but for
// those that held says are to wait. One target a group at a time; the epoch that
// names it is the number of the attempt.
func (s *State) Announce(held func(cluster.DeviceID) bool, now time.Time,
) (tx *Tx, targets []cluster.DeviceID) {
	tx = s.Begin(now)
	if !s.Policy.Resync {
		return tx, nil
	}
	r, started := s.regroup(), map[cluster.DeviceID]int{}
	ready := map[cluster.DeviceID]bool{}
	for _, d := range s.sortedDevices() {
		ready[d.ID] = s.clusterDevice(d).Up && !d.RolledBack && d.Incarnation != 0 && !held(d.ID)
	}
	moving := s.moving()
	for _, number := range s.used() {
		s.each(number, func(id cluster.PGID, p *placed) {
			g := p.record
			if g.Target != 0 || !slices.ContainsFunc(s.judge(g), func(h health) bool { return h.up }) {
				return // busy, or nothing to copy from
			}
			device, isMove := s.nextTarget(g, s.sets[number].Replicas, ready, moving)
			if device == 0 {
				return
			}
			next := r.edit(id)
			next.Target, next.TargetEpoch = device, next.Epoch
			next.TargetInc = s.devices[device].Incarnation
			if isMove {
				moving[device]++
			} else {
				started[device]++
			}
		})
	}
	r.put(tx)
	for _, d := range s.sortedDevices() {
		if n := started[d.ID]; n > 0 {
			targets = append(targets, d.ID)
			tx.event(Info, "resync-started", deviceName(d), "device %d (%s) is brought in sync in %d groups",
				d.ID, deviceName(d), n)
		}
	}
	return tx, targets
}

// Source is a copy that a target may copy from, in that incarnation only.
type Source struct {
	Device      cluster.DeviceID
	Incarnation cluster.Incarnation
}

// Ready is a group whose target may compare and copy.
type Ready struct {
	PG      cluster.PGID
	Epoch   uint32 // that announced the target
	Sources []Source
	Broken  bool // a session is registered whose acked writes no copy holds
}

// ResyncReady returns the groups whose target the device is and which it may
// compare and copy. A group is missing as long as a session may have writes
// under way that the target does not get (rule 23), or no copy may be copied
// from (rule 28).
func (s *State) ResyncReady(device cluster.DeviceID, p Progress) []Ready {
	var out []Ready
	d := s.devices[device]
	if d == nil || !s.clusterDevice(d).Up {
		return nil
	}
	for _, number := range s.used() {
		s.each(number, func(id cluster.PGID, at *placed) {
			g := at.record
			if g.Target != device || g.TargetInc != d.Incarnation || !s.barrier(id, at, p) {
				return
			}
			ready := Ready{PG: id, Epoch: g.TargetEpoch, Broken: s.lostBy(g, s.sessionsIn(id.Set()))}
			for i, h := range s.judge(g) {
				if h.up && (h.sound || s.Policy.Off.Has(rules.RecordedSource)) {
					source := g.InSync[i]
					ready.Sources = append(ready.Sources, Source{source, s.devices[source].Incarnation})
				}
			}
			if len(ready.Sources) > 0 {
				out = append(out, ready)
			}
		})
	}
	return out
}

func (s *State) lostBy(g *group, sessions []*Session) bool {
	return slices.ContainsFunc(sessions, func(x *Session) bool { return g.Lost > x.Sound })
}

// barrier is rule 23: each session has adopted the epoch that announced the
// target, or is dead and fenced at every copy of the group (rule 14).
func (s *State) barrier(id cluster.PGID, at *placed, p Progress) bool {
	if s.Policy.Off.Has(rules.Adoption) {
		return true
	}
	for _, x := range s.sessionsIn(id.Set()) {
		// A client that lost acked writes with all caches has to see that before a
		// copy comes in that would hide it.
		since := at.announced
		if at.record.Lost > x.Sound {
			since = at.version
		}
		if p.adopted(x) >= uint64(since) {
			continue
		}
		if !x.Dead || !s.fenced(x, at.record, p) {
			return false
		}
	}
	return true
}

// fenced reports whether every in-sync copy and the target have learned, and
// drained, the generation that ended a dead session. A copy that is away keeps
// it from being so: such a copy leaves the set first.
func (s *State) fenced(x *Session, g *group, p Progress) bool {
	if s.Policy.Off.Has(rules.Fence) {
		return true
	}
	since := uint64(max(s.mod[sessionKey(x.Volume)], s.mod[volumeKey(x.Volume)]))
	for _, id := range g.InSync {
		if p.Devices[id] < since {
			return false
		}
	}
	return g.Target == 0 || p.Devices[g.Target] >= since
}

// JoinGroup names a group of which a target has copied everything.
type JoinGroup struct {
	PG    cluster.PGID
	Epoch uint32 // that announced the target
}

// JoinInSync plans that a target is in sync: everything is copied and durable, and it
// requires no write that it did not get. version is the map version that the
// device has learned. refused are groups where it is not the running target, or
// of another attempt; later those where it has not learned a volume's newest
// generation yet: an attach in between has made chunks dirty there (rule 27).
// Groups where it is in sync already are neither: the answer got lost.
func (s *State) JoinInSync(device cluster.DeviceID, inc cluster.Incarnation, groups []JoinGroup, version uint64,
	now time.Time) (tx *Tx, refused, later []cluster.PGID) {
	tx = s.Begin(now)
	r, d, joined := s.regroup(), s.devices[device], 0
	for _, want := range groups {
		g := s.record(want.PG)
		at := -1
		if g != nil {
			at = slices.Index(g.InSync, device)
		}
		switch {
		case at >= 0 && at < len(g.Joined) && g.Joined[at] == inc:
		case g == nil || d == nil || d.Incarnation != inc || !s.clusterDevice(d).Up ||
			g.Target != device || g.TargetEpoch != want.Epoch || g.TargetInc != inc:
			refused = append(refused, want.PG)
		case s.newerGeneration(want.PG.Set(), version) && !s.Policy.Off.Has(rules.AttachDirties):
			later = append(later, want.PG)
		default:
			r.join(want.PG, device, inc)
			joined++
		}
	}
	r.put(tx)
	if joined > 0 && !r.isTarget(device) {
		tx.event(Info, "in-sync", deviceName(d), "device %d (%s) is in sync in every group that it was brought "+
			"in sync in", device, deviceName(d))
	}
	return tx, refused, later
}

// isTarget reports whether the device is still the target of some group.
func (r *regroup) isTarget(device cluster.DeviceID) bool {
	found := false
	for _, number := range r.s.used() {
		r.s.each(number, func(id cluster.PGID, _ *placed) { found = found || r.now(id).Target == device })
	}
	return found
}

// newerGeneration reports whether a volume of the set may have been attached
// after that version of the map.
func (s *State) newerGeneration(set uint32, version uint64) bool {
	for id, v := range s.volumes {
		if v.PGSet == set && uint64(s.mod[volumeKey(id)]) > version {
			return true
		}
	}
	return false
}

// join puts the target into the in-sync set, at its place in the order of
// preference.
func (r *regroup) join(id cluster.PGID, device cluster.DeviceID, inc cluster.Incarnation) {
	r.giveUp(id)
	g := r.edit(id)
	order := slices.Concat(g.Replicas, g.Want)
	rank := func(x cluster.DeviceID) int { return slices.Index(order, x) }
	at := 0
	for at < len(g.InSync) && rank(g.InSync[at]) < rank(device) {
		at++
	}
	g.InSync = slices.Insert(g.InSync, at, device)
	g.Joined = slices.Insert(g.Joined, at, inc)
	g.Out = without(g.Out, device)
}

// MayReport says why a client's report of a device does not count, if so.
func (s *State) MayReport(id cluster.VolumeID, gen cluster.Generation, device cluster.DeviceID) error {
	held := s.Session(id)
	switch {
	case s.devices[device] == nil:
		return refuse(ErrNotFound, "report device %d: there is none", device)
	case held == nil || held.Generation != gen:
		return refuse(ErrRefused, "report device %d: generation %d is not the one that has volume %d "+
			"attached; attach it again", device, gen, id)
	}
	return nil
}

// Reach returns where a device is to be found, and whether it is up.
func (s *State) Reach(id cluster.DeviceID) (addr, server string, up bool) {
	if d := s.devices[id]; d != nil {
		c := s.clusterDevice(d)
		return c.Addr, c.Server, c.Up
	}
	return "", "", false
}

// MayLeave is rule 29: whether a device may leave a group by plan. It waits
// while it is the last sound copy of a group whose volumes may have acked
// writes that are not flushed; why says so. clean tells which volumes' clients
// said that nothing is unflushed.
func (s *State) MayLeave(id cluster.PGID, device cluster.DeviceID, clean func(cluster.VolumeID) bool,
) (ok bool, why string) {
	g := s.record(id)
	if g == nil {
		return true, ""
	}
	return s.mayLeave(id, g, device, clean)
}

func (s *State) mayLeave(id cluster.PGID, g *group, device cluster.DeviceID, clean func(cluster.VolumeID) bool,
) (ok bool, why string) {
	if !slices.Contains(g.InSync, device) {
		return true, ""
	}
	if len(g.InSync) == 1 {
		return false, "it is the only in-sync copy"
	}
	up := false
	for i, h := range s.judge(g) {
		if g.InSync[i] != device {
			if h.up && h.sound {
				return true, ""
			}
			up = up || h.up
		}
	}
	if !up {
		return false, "no other copy is up"
	}
	if s.Policy.Off.Has(rules.PlannedDropWaits) {
		return true, ""
	}
	for _, x := range s.sessionsIn(id.Set()) {
		if !clean(x.Volume) {
			return false, "it may be the last copy of acked writes of volume " + s.volumes[x.Volume].Name
		}
	}
	return true, ""
}
