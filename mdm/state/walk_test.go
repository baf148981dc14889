// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"testing"

	"pgregory.net/rapid"

	"braid/cluster"
)

// walk is a random history of a small cluster, with what the test knows better
// than the state: when each target was really announced, and what each session
// has really adopted.
type walk struct {
	*yard
	sessions  map[cluster.VolumeID]*Session // the registered ones
	announced map[cluster.PGID]uint64       // map version in which the running target was announced
	before    map[cluster.PGID]group
}

func newWalk(t testing.TB) *walk {
	w := &walk{yard: newYard(t, 4, 2), sessions: map[cluster.VolumeID]*Session{},
		announced: map[cluster.PGID]uint64{}, before: map[cluster.PGID]group{}}
	w.create("w", 3)
	w.create("x", 2)
	w.remember()
	return w
}

func (w *walk) groups(f func(cluster.PGID, *placed)) {
	for _, number := range w.state().used() {
		w.state().each(number, f)
	}
}

func (w *walk) remember() {
	w.groups(func(id cluster.PGID, p *placed) { w.before[id] = *p.record })
}

// step takes one random step and checks what it did to every group.
func (w *walk) step(t *rapid.T) {
	server := rapid.IntRange(0, len(w.reports)-1).Draw(t, "server")
	device := w.state().deviceByUUID(w.reports[server].Devices[0].UUID).ID
	name := rapid.SampledFrom([]string{"v", "w", "x"}).Draw(t, "volume")
	volume := w.state().volumeByName(name)
	switch what := rapid.SampledFrom([]string{"down", "clean", "power", "attach", "resume", "detach", "die",
		"adopt", "adopt", "learn", "learn", "evict", "drop", "settle", "settle", "settle", "announce",
		"announce", "join", "join", "join", "reload"}).Draw(t, "step"); what {
	case "down":
		w.down(server)
	case "clean", "power":
		w.restart(server, what == "clean")
	case "attach", "resume":
		x, err := w.attach(AttachRequest{Volume: name, Client: "c" + name, Host: "h", Force: what == "attach",
			GuestAlive: what == "resume", Progress: w.done})
		if err == nil {
			w.sessions[volume.ID] = x
		}
	case "detach":
		tx, err := w.state().Detach(name, "c"+name, 0, w.now)
		if err != nil {
			t.Fatal(err)
		}
		w.commit(tx)
		delete(w.sessions, volume.ID)
	case "die":
		w.commit(w.state().ExpireSessions([]cluster.VolumeID{volume.ID}, w.now))
	case "adopt":
		if x := w.sessions[volume.ID]; x != nil {
			w.adopt(x, w.state().MapVersion())
		}
	case "learn":
		w.learn(device)
	case "evict":
		tx, _, _ := w.state().Evict(device, "reported", 0, w.now)
		w.commit(tx)
	case "drop":
		if x := w.sessions[volume.ID]; x != nil && w.state().Holds(volume.ID, x.Client, x.Generation) {
			// On a client's word the copy is broken, whatever mdm thinks.
			tx, _, _, err := w.state().DropReplica(volume.ID, x.Generation, device, "it says so", w.now)
			if err != nil {
				t.Fatal(err)
			}
			w.commit(tx)
		}
	case "settle":
		w.settle()
		if !w.state().Settle(w.now).Empty() {
			t.Fatal("settling twice changes more")
		}
	case "announce":
		w.announce()
	case "join":
		w.joinReady(t, device)
	case "reload": // another member leads: it has the records, and no reports
		policy := w.state().Policy
		w.states[0] = w.reload()
		w.states[0].Policy = policy
		clear(w.done.Sessions)
		clear(w.done.Devices)
	}
	w.check(t)
	w.remember()
}

// joinReady checks every group that may be copied, and joins them.
func (w *walk) joinReady(t *rapid.T, device cluster.DeviceID) {
	ready := w.ready(device)
	var groups []JoinGroup
	for _, r := range ready {
		groups = append(groups, JoinGroup{r.PG, r.Epoch})
		g := w.state().record(r.PG)
		for _, s := range r.Sources {
			at := slices.Index(g.InSync, s.Device)
			if at < 0 || g.Joined[at] != s.Incarnation || w.state().devices[s.Device].Incarnation != s.Incarnation {
				t.Fatalf("source %+v of group %+v lost its cache or is not in sync", s, g)
			}
		}
		for id, x := range w.sessions {
			if w.state().volumes[id].PGSet != r.PG.Set() || x.Dead {
				continue
			}
			done, dead := w.done.Sessions[id], w.state().sessions[id].Dead
			if !dead && done.Adopted < w.announced[r.PG] && x.Seen < w.announced[r.PG] {
				t.Fatalf("group %x compares; session %+v has adopted %+v, it was announced in %d",
					r.PG, x, done, w.announced[r.PG])
			}
		}
	}
	tx, refused, later := w.state().JoinInSync(device, w.state().devices[device].Incarnation, groups,
		w.state().MapVersion(), w.now)
	if len(refused)+len(later) > 0 {
		t.Fatalf("refused %v, later %v although all is ready", refused, later)
	}
	w.commit(tx)
}

// check holds what must be true between any two steps.
func (w *walk) check(t *rapid.T) {
	for number := range w.state().sets {
		if w.state().volumesIn(number) == 0 {
			t.Fatal("a set lost its volumes")
		}
	}
	w.groups(func(id cluster.PGID, p *placed) {
		g, was := p.record, w.before[id]
		switch {
		case len(g.InSync) == 0 || len(g.Joined) != len(g.InSync):
			t.Fatalf("group %x: %+v", id, g)
		case slices.ContainsFunc(g.InSync, func(d cluster.DeviceID) bool { return !slices.Contains(g.Replicas, d) }):
			t.Fatalf("group %x has copies in sync where none belong: %+v", id, g)
		case g.Target != 0 && (slices.Contains(g.InSync, g.Target) || !slices.Contains(g.Replicas, g.Target)):
			t.Fatalf("group %x: target of %+v", id, g)
		case (g.Target == 0) != (g.TargetEpoch == 0) || g.TargetEpoch > g.Epoch:
			t.Fatalf("group %x: attempt of %+v", id, g)
		}
		shown := !slices.Equal(g.InSync, was.InSync) || g.Target != was.Target || g.TargetEpoch != was.TargetEpoch
		if g.Epoch < was.Epoch || shown && g.Epoch != was.Epoch+1 || g.Epoch > was.Epoch+1 {
			t.Fatalf("group %x went from %+v to %+v", id, was, g)
		}
		for _, d := range was.InSync {
			if !slices.Contains(g.InSync, d) && !slices.Contains(g.Out, d) {
				t.Fatalf("group %x forgot that device %d was in sync: %+v", id, d, g)
			}
		}
		if sound(w.state(), &was) && !sound(w.state(), g) {
			t.Fatalf("group %x lost its last unbroken copy: %+v, now %+v", id, was, g)
		}
		if g.Target != 0 && g.TargetEpoch != was.TargetEpoch {
			w.announced[id] = w.state().MapVersion()
		}
	})
}

func sound(s *State, g *group) bool {
	return slices.ContainsFunc(s.judge(g), func(h health) bool { return h.sound })
}

// Goal: whatever happens in whatever order, no in-sync set is empty, no last
// unbroken copy goes, epochs grow by one with each change, sources kept their
// caches, and a target waits for every session. Method: random steps of servers,
// clients, reports and leaders, all checks after each.
func TestWalks(outer *testing.T) {
	rapid.Check(outer, func(t *rapid.T) {
		w := newWalk(outer)
		for range rapid.IntRange(1, 60).Draw(t, "steps") {
			w.step(t)
		}
	})
}
