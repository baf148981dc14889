// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"braid/cluster"
	"braid/cluster/rules"
)

// missing is the failure of a device that its server does not report any more.
// Nobody knows more about it than before.
const missing = "its server started without it"

// health is what mdm knows of the device under a copy.
type health struct {
	up    bool // serves
	sound bool // its cache is, as far as mdm knows, the one with which the copy came in
}

// away: it may come back with everything that it acked.
func (h health) away() bool { return !h.up && h.sound }

// health judges a copy that came into its group in the incarnation joined.
func (s *State) health(id cluster.DeviceID, joined cluster.Incarnation) health {
	d := s.devices[id]
	if d == nil {
		return health{}
	}
	// A device that failed lost its cache with that (rule 19), whatever it says.
	kept := d.Failed == "" || d.Failed == missing
	return health{up: s.clusterDevice(d).Up,
		sound: kept && (joined == 0 || d.Incarnation == 0 || d.Incarnation == joined)}
}

// judge returns the health of each in-sync copy, in the order of InSync.
func (s *State) judge(g *group) []health {
	out := make([]health, len(g.InSync))
	for i, id := range g.InSync {
		var joined cluster.Incarnation
		if i < len(g.Joined) {
			joined = g.Joined[i]
		}
		out[i] = s.health(id, joined)
	}
	return out
}

// Settle plans what has to follow from what is known of the devices, in all
// groups at once:
//
//   - A target that is away or restarted is given up.
//   - Where a copy is up and sound, those that are not leave (rule 16): I/O goes
//     on with the sound ones, and the others come back as targets.
//   - Where none is, one that is away may hold acked writes that no other has:
//     nothing changes until it is back. That keeps the last unbroken copy in the
//     set while broken ones are there (rule 30: broken ones go first).
//   - Where none is and none is away, all copies lost their caches: what those
//     that are up hold now is the truth. Sessions of that time cannot be resumed
//     (rules 6, 28).
//
// An in-sync set is never empty, and nothing but mdm shrinks one.
func (s *State) Settle(now time.Time) *Tx {
	r := s.regroup()
	t := tally{out: map[cluster.DeviceID]int{}, aborted: map[cluster.DeviceID]int{}}
	for _, number := range s.used() {
		s.each(number, func(id cluster.PGID, _ *placed) {
			r.settleTarget(id, &t)
			r.settleCopies(id, &t)
			r.retire(id, &t)
		})
	}
	tx := s.Begin(now)
	s.depart(r, tx)
	r.put(tx)
	t.events(s, tx)
	return tx
}

func (r *regroup) settleTarget(id cluster.PGID, t *tally) {
	g := r.now(id)
	if g.Target == 0 {
		return
	}
	if h := r.s.health(g.Target, g.TargetInc); !h.up || !h.sound {
		t.aborted[g.Target]++
		r.giveUp(id)
	}
}

func (r *regroup) settleCopies(id cluster.PGID, t *tally) {
	g := r.now(id)
	judged := r.s.judge(g)
	has := func(f func(health) bool) bool { return slices.ContainsFunc(judged, f) }
	good := func(h health) bool { return h.up && h.sound }
	switch {
	case has(good):
		r.learn(id)
		if r.s.Policy.Evict {
			r.expel(id, judged, good, t)
		}
	case has(health.away):
		if r.s.Policy.Off.Has(rules.UnbrokenSource) && r.s.Policy.Evict && has(func(h health) bool { return h.up }) {
			r.expel(id, judged, func(h health) bool { return h.up }, t)
		}
	case has(func(h health) bool { return h.up }):
		// Every copy is broken, and there is nothing to wait for.
		if r.s.Policy.Evict {
			r.expel(id, judged, func(h health) bool { return h.up }, t)
		}
		r.accept(id)
		t.lost++
	}
}

// expel takes out the copies that are not to stay.
func (r *regroup) expel(id cluster.PGID, judged []health, stays func(health) bool, t *tally) {
	for i, device := range slices.Clone(r.now(id).InSync) {
		if !stays(judged[i]) {
			t.out[device]++
			r.leave(id, device)
		}
	}
}

// accept takes what the copies hold now as the truth. The epoch tells clients:
// their version of the map says whether they know.
func (r *regroup) accept(id cluster.PGID) {
	g := r.edit(id)
	for i, device := range g.InSync {
		if d := r.s.devices[device]; d != nil {
			g.Joined[i] = d.Incarnation
		}
	}
	g.Lost, g.LostEpoch = r.s.Revision, g.Epoch
}

// learn notes incarnations that were not known when the copies came in.
func (r *regroup) learn(id cluster.PGID) {
	g := r.now(id)
	for i, device := range g.InSync {
		d := r.s.devices[device]
		if d == nil || d.Incarnation == 0 || i < len(g.Joined) && g.Joined[i] != 0 {
			continue
		}
		g = r.note(id)
		g.Joined[i] = d.Incarnation
	}
}

// tally counts what one plan does, for the events.
type tally struct {
	out     map[cluster.DeviceID]int // groups that each device left
	aborted map[cluster.DeviceID]int // runs that each device had as a target
	lost    int                      // groups whose copies were all broken
	moved   int                      // groups that have reached where they were to lie
}

func (t *tally) events(s *State, tx *Tx) {
	for _, id := range slices.Sorted(maps.Keys(t.out)) {
		tx.event(Warning, "replica-dropped", s.deviceName(id), "device %d (%s) is no longer in sync in %d "+
			"groups: %s; I/O goes on with the other copies", id, s.deviceName(id), t.out[id], s.ails(id))
	}
	for _, id := range slices.Sorted(maps.Keys(t.aborted)) {
		tx.event(Warning, "resync-stopped", s.deviceName(id), "device %d (%s) is no longer brought in sync "+
			"in %d groups: %s", id, s.deviceName(id), t.aborted[id], s.ails(id))
	}
	if t.moved > 0 {
		tx.event(Info, "moved", "", "%s moved", thereAre(t.moved, "%d group has", "%d groups have"))
	}
	if t.lost > 0 {
		tx.event(Error, "caches-lost", "", "all copies of %d groups restarted without their caches: every "+
			"flushed write is there, acknowledged ones that were not flushed may be lost; guests "+
			"that had some see an error and have to mount anew", t.lost)
	}
}

func (s *State) deviceName(id cluster.DeviceID) string {
	if d := s.devices[id]; d != nil {
		return deviceName(d)
	}
	return fmt.Sprint(uint32(id))
}

// ails says what is wrong with a device, for people.
func (s *State) ails(id cluster.DeviceID) string {
	d := s.devices[id]
	switch {
	case d == nil:
		return "it was removed"
	case d.Failed != "":
		return "it is out of service, " + strings.TrimSpace(d.Failed)
	case !s.clusterDevice(d).Up:
		return "its server is down"
	}
	return "it restarted without its cache"
}

// Evict plans that a device which mdm calls unreachable leaves the in-sync sets
// where another copy that is up and sound stays, and is no target any more.
// last names the groups that keep it.
//
// abandoned is the volume whose fresh attach gives up what only this device may
// hold: the device then also leaves groups where it is the last sound copy, as
// long as no other volume's acked writes may be lost with it. 0: nobody does.
func (s *State) Evict(device cluster.DeviceID, reason string, abandoned cluster.VolumeID, now time.Time,
) (tx *Tx, evicted int, last []cluster.PGID) {
	r := s.regroup()
	for _, h := range s.inSync(device, nil) {
		if s.mayLose(h.id, h.g, device, abandoned) {
			r.leave(h.id, device)
			evicted++
		} else {
			last = append(last, h.id)
		}
	}
	aborted := 0
	for _, number := range s.used() {
		s.each(number, func(id cluster.PGID, p *placed) {
			if p.record.Target == device {
				r.giveUp(id)
				aborted++
			}
		})
	}
	tx = s.Begin(now)
	r.put(tx)
	if evicted+aborted > 0 {
		var what []string
		for _, x := range []struct {
			n    int
			text string
		}{{evicted, "left the in-sync sets of %d groups"}, {aborted, "is no longer brought in sync in %d groups"},
			{len(last), "stays in %d that have no other copy to go on with"}} {
			if x.n > 0 {
				what = append(what, fmt.Sprintf(x.text, x.n))
			}
		}
		tx.event(Warning, "replica-dropped", s.deviceName(device), "device %d (%s) %s: %s", device,
			s.deviceName(device), strings.Join(what, ", "), reason)
	}
	return tx, evicted, last
}

// mayLose reports whether the group can go on without the device.
func (s *State) mayLose(id cluster.PGID, g *group, device cluster.DeviceID, abandoned cluster.VolumeID) bool {
	up, last := false, true
	for i, h := range s.judge(g) {
		if g.InSync[i] == device {
			continue
		}
		up = up || h.up
		if h.up && h.sound {
			last = false
		}
	}
	switch {
	case len(g.InSync) < 2 || !up:
		return false
	case !last || s.Policy.Off.Has(rules.UnbrokenSource):
		return true
	}
	return abandoned != 0 && !slices.ContainsFunc(s.sessionsIn(id.Set()), func(x *Session) bool {
		return x.Volume != abandoned
	})
}

// sessionsIn returns the sessions, living and dead, of the volumes in a set.
func (s *State) sessionsIn(set uint32) []*Session {
	var out []*Session
	for _, id := range slices.Sorted(maps.Keys(s.sessions)) {
		if v := s.volumes[id]; v != nil && v.PGSet == set {
			out = append(out, s.sessions[id])
		}
	}
	return out
}
