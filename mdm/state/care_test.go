// SPDX-License-Identifier: Apache-2.0

package state

import (
	"maps"
	"slices"
	"testing"

	"braid/cluster"
	"braid/cluster/rules"
)

// yard is a cluster with one volume, whose copies the tests ill-treat.
type yard struct {
	*bench
	reports []ServerReport
	volume  *Volume
	done    Progress
}

func newYard(t testing.TB, servers, replicas int, off ...rules.Rule) *yard {
	y := &yard{bench: newBench(t, 0), done: Progress{Sessions: map[cluster.VolumeID]SessionProgress{},
		Devices: map[cluster.DeviceID]uint64{}}}
	y.state().Policy = Policy{Evict: true, Resync: true, Off: rules.Set(off...)}
	for i := range servers {
		y.reports = append(y.reports, report(i, 1))
		y.register(y.reports[i])
	}
	y.volume = y.create("v", replicas)
	return y
}

// restart lets a server come back, with its cache or without.
func (y *yard) restart(server int, kept bool) {
	if !kept {
		y.reports[server].Devices[0].Incarnation++
	}
	y.reports[server].Devices[0].StartCounter++
	y.register(y.reports[server])
}

func (y *yard) down(server int) { y.commit(y.state().Expire([]string{y.reports[server].Name}, y.now)) }

func (y *yard) fail(server int) {
	y.reports[server].Devices[0].Failed = "EIO on flush"
	y.restart(server, true)
}

func (y *yard) settle() { y.commit(y.state().Settle(y.now)) }

func (y *yard) announce() {
	tx, _ := y.state().Announce(func(cluster.DeviceID) bool { return false }, y.now)
	y.commit(tx)
}

// group is the first one; with as many servers as replicas all are alike.
func (y *yard) group() *group { return y.state().record(y.pg()) }

func (y *yard) pg() cluster.PGID { return cluster.MakePGID(y.volume.PGSet, 0) }

func (y *yard) start(r AttachRequest) *Session {
	y.t.Helper()
	r.Volume, r.Progress = "v", y.done
	if r.Client == "" {
		r.Client, r.Host = "c", "h"
	}
	x, err := y.attach(r)
	if err != nil {
		y.t.Fatal(err)
	}
	return x
}

func (y *yard) adopt(x *Session, version uint64) {
	y.done.Sessions[x.Volume] = SessionProgress{Generation: x.Generation, Adopted: version}
}

func (y *yard) learn(devices ...cluster.DeviceID) {
	for _, id := range devices {
		y.done.Devices[id] = y.state().MapVersion()
	}
}

func (y *yard) ready(id cluster.DeviceID) []Ready { return y.state().ResyncReady(id, y.done) }

func (y *yard) join(id cluster.DeviceID, version uint64, epoch uint32) (refused, later []cluster.PGID) {
	var groups []JoinGroup
	y.state().each(y.volume.PGSet, func(pg cluster.PGID, p *placed) {
		groups = append(groups, JoinGroup{pg, epoch})
	})
	tx, refused, later := y.state().JoinInSync(id, y.state().devices[id].Incarnation, groups, version, y.now)
	y.commit(tx)
	return refused, later
}

func ids(list ...cluster.DeviceID) []cluster.DeviceID { return list }

func (y *yard) wantInSync(what string, want ...cluster.DeviceID) {
	y.t.Helper()
	y.state().each(y.volume.PGSet, func(pg cluster.PGID, p *placed) {
		got := slices.Sorted(slices.Values(p.record.InSync))
		if !slices.Equal(got, want) {
			y.t.Fatalf("%s: group %d has %v in sync, want %v", what, pg.Index(), got, want)
		}
		if len(p.record.Joined) != len(p.record.InSync) {
			y.t.Fatalf("%s: %d incarnations for %d copies", what, len(p.record.Joined), len(p.record.InSync))
		}
	})
}

// Goal: who leaves and who stays, for each way in which two copies can suffer.
// Method: devices 1 and 2 hold every group; after each step the groups settle.
func TestSettle(t *testing.T) {
	type step func(*yard)
	down := func(s int) step { return func(y *yard) { y.down(s) } }
	clean := func(s int) step { return func(y *yard) { y.restart(s, true) } }
	power := func(s int) step { return func(y *yard) { y.restart(s, false) } }
	fail := func(s int) step { return func(y *yard) { y.fail(s) } }
	for _, c := range []struct {
		name  string
		steps []step
		want  []cluster.DeviceID
		lost  bool
		off   []rules.Rule
	}{
		{"nothing", nil, ids(1, 2), false, nil},
		{"one goes away", []step{down(0)}, ids(2), false, nil},
		{"one restarts within its lease", []step{power(0)}, ids(2), false, nil},
		{"one restarts with its cache", []step{clean(0)}, ids(1, 2), false, nil},
		{"one fails", []step{fail(0)}, ids(2), false, nil},
		{"both go away", []step{down(0), down(1)}, ids(2), false, nil},
		{"both go away, the evicted one returns", []step{down(0), down(1), clean(0)}, ids(2), false, nil},
		{"the last one restarts", []step{down(0), power(1)}, ids(2), true, nil},
		{"the last one restarts with its cache", []step{down(0), down(1), clean(1)}, ids(2), false, nil},
		{"the last one fails", []step{down(0), fail(1)}, ids(2), false, nil},
	} {
		y := newYard(t, 2, 2, c.off...)
		for _, do := range c.steps {
			do(y)
			y.settle()
		}
		y.wantInSync(c.name, c.want...)
		if lost := y.group().Lost != 0; lost != c.lost {
			t.Errorf("%s: caches lost: %v", c.name, lost)
		}
		if !y.state().Settle(y.now).Empty() {
			t.Errorf("%s: settling does not come to an end", c.name)
		}
	}
}

// Goal: the last unbroken copy stays where the broken ones are (rules 6, 30),
// also while it is away; when no cache is left, all that are up stay.
func TestTheLastUnbrokenCopyIsWaitedFor(t *testing.T) {
	both := func() *yard { // one broken and up, the other away, at the same moment
		y := newYard(t, 2, 2)
		y.down(0)
		y.down(1)
		y.restart(0, false)
		y.settle()
		y.wantInSync("one broken, one away", 1, 2)
		return y
	}
	y := both()
	y.restart(1, true)
	y.settle()
	y.wantInSync("the unbroken one is back", 2)

	y = both()
	epoch := y.group().Epoch
	y.restart(1, false)
	y.settle()
	y.wantInSync("both lost their caches", 1, 2)
	if g := y.group(); g.Lost == 0 || g.Epoch != epoch+1 || !slices.Equal(g.Joined, []cluster.Incarnation{2, 2}) {
		t.Errorf("after the loss of all caches the group is %+v", g)
	}

	y = both()
	y.reports[1].Devices[0].Failed = "EIO"
	y.restart(1, false)
	y.settle()
	y.wantInSync("the other one failed", 1)

	y = both()
	y.state().Policy.Off = rules.Set(rules.UnbrokenSource)
	y.settle()
	y.wantInSync("without rule 6", 1)
}

// Goal: without the policy nothing leaves by itself, and a client's word counts.
func TestWithoutEviction(t *testing.T) {
	y := newYard(t, 2, 2)
	y.state().Policy = Policy{}
	x := y.start(AttachRequest{})
	y.down(0)
	y.restart(1, false)
	y.settle()
	y.announce()
	y.wantInSync("no policy", 1, 2)
	tx, dropped, last, err := y.state().DropReplica(x.Volume, x.Generation, 2, "restarted", y.now)
	if err != nil || len(dropped) == 0 || len(last) != 0 {
		t.Fatalf("drop: %d groups, %d last, %v", len(dropped), len(last), err)
	}
	y.commit(tx)
	y.wantInSync("dropped", 1)
}

// Goal: a client cannot have the last unbroken copy dropped.
func TestDropReplicaKeepsTheUnbroken(t *testing.T) {
	y := newYard(t, 2, 2)
	x := y.start(AttachRequest{})
	y.down(1)
	y.restart(0, false) // not settled yet: 1 is broken, 2 away
	drop := func(id cluster.DeviceID) (int, int) {
		tx, dropped, last, err := y.state().DropReplica(x.Volume, x.Generation, id, "it says so", y.now)
		if err != nil {
			t.Fatal(err)
		}
		y.commit(tx)
		return len(dropped), len(last)
	}
	if n, last := drop(2); n != 0 || last == 0 {
		t.Errorf("the unbroken copy: %d dropped, %d last", n, last)
	}
	if n, last := drop(1); n == 0 || last != 0 {
		t.Errorf("the broken copy: %d dropped, %d last", n, last)
	}
	y.wantInSync("after the drop", 2)
	if n, last := drop(2); n != 0 || last == 0 {
		t.Errorf("the only copy: %d dropped, %d last", n, last)
	}
}

// Goal: the whole way back: announced, barrier, copied, in sync, each step under
// the next epoch, each repeatable, and refused where it is not due.
func TestResync(t *testing.T) {
	y := newYard(t, 2, 2)
	x := y.start(AttachRequest{})
	y.adopt(x, y.state().MapVersion())
	y.down(0)
	y.settle()
	y.announce()
	if y.group().Target != 0 {
		t.Fatal("a device that is down became a target")
	}
	y.restart(0, false)
	y.settle()
	y.announce()
	g := y.group()
	if g.Target != 1 || g.TargetEpoch != g.Epoch || g.TargetInc != 2 {
		t.Fatalf("announced: %+v", g)
	}
	if pg := wholeMap(t, y.state()).PG(y.pg()); pg.Target != 1 || pg.TargetEpoch != g.Epoch {
		t.Errorf("the map shows %+v", pg)
	}
	if len(y.ready(1)) != 0 {
		t.Error("compares before the session has adopted the epoch (rule 23)")
	}
	y.adopt(x, y.state().MapVersion())
	ready := y.ready(1)
	if len(ready) == 0 || ready[0].Broken || !slices.Equal(ready[0].Sources, []Source{{2, 1}}) {
		t.Fatalf("ready: %+v", ready)
	}
	if refused, _ := y.join(1, y.state().MapVersion(), g.Epoch-1); len(refused) == 0 {
		t.Error("joined for another attempt")
	}
	if _, later := y.join(1, 1, g.Epoch); len(later) == 0 {
		t.Error("joined before it learned the newest generation (rule 27)")
	}
	y.wantInSync("not yet", 2)
	refused, later := y.join(1, y.state().MapVersion(), g.Epoch)
	if len(refused)+len(later) != 0 {
		t.Fatalf("refused %v, later %v", refused, later)
	}
	y.wantInSync("joined", 1, 2)
	if after := y.group(); after.Epoch != g.Epoch+1 || after.Target != 0 || after.TargetEpoch != 0 {
		t.Errorf("after the join: %+v", after)
	}
	if refused, later := y.join(1, y.state().MapVersion(), g.Epoch); len(refused)+len(later) != 0 {
		t.Error("a join whose answer got lost is refused when it is repeated")
	}
	if !y.state().Settle(y.now).Empty() {
		t.Error("something is left to settle")
	}
}

// Goal: an eviction that keeps the target keeps its attempt; a target that
// restarts is given up, and its next run is another attempt.
func TestTargetAttempts(t *testing.T) {
	y := newYard(t, 3, 3)
	y.down(0)
	y.settle()
	y.restart(0, true)
	y.announce()
	first := *y.group()
	y.down(1)
	y.settle()
	if g := y.group(); g.Target != 1 || g.TargetEpoch != first.TargetEpoch || g.Epoch != first.Epoch+1 {
		t.Errorf("another copy left: %+v", g)
	}
	y.restart(0, false)
	y.settle()
	if g := y.group(); g.Target != 0 || g.Epoch != first.Epoch+2 {
		t.Errorf("the target restarted: %+v", g)
	}
	y.announce()
	if g := y.group(); g.Target == 0 || g.TargetEpoch == first.TargetEpoch {
		t.Errorf("announced again: %+v", g)
	}
	held := map[cluster.DeviceID]bool{}
	tx, targets := y.state().Announce(func(id cluster.DeviceID) bool { held[id] = true; return true }, y.now)
	if !tx.Empty() || len(targets) > 0 || len(held) == 0 {
		t.Errorf("devices %v were asked for, %v announced", slices.Collect(maps.Keys(held)), targets)
	}
}

// Goal: a dead session holds a barrier up until every copy has learned that it
// is fenced (rule 14); a session that replaced another counts as far as that one
// had come until it reports by itself.
func TestBarrierAndOldClients(t *testing.T) {
	y := newYard(t, 2, 2)
	x := y.start(AttachRequest{})
	y.adopt(x, y.state().MapVersion())
	y.down(0)
	y.settle()
	y.restart(0, true)
	y.announce()
	y.commit(y.state().ExpireSessions([]cluster.VolumeID{x.Volume}, y.now))
	if v := y.state().volumes[x.Volume]; v.Generation != x.Generation+1 || v.Attached {
		t.Errorf("after the expiry the volume is %+v", v)
	}
	if y.state().Session(x.Volume) != nil || y.state().Holds(x.Volume, "c", x.Generation) {
		t.Error("the dead session counts as one")
	}
	if len(y.ready(1)) != 0 {
		t.Error("compares while a dead client's writes may be under way")
	}
	y.learn(2)
	if len(y.ready(1)) != 0 {
		t.Error("compares before the target itself has learned of it")
	}
	y.learn(1)
	if len(y.ready(1)) == 0 {
		t.Error("the dead session is fenced everywhere, and the barrier still shut")
	}
	next := y.start(AttachRequest{Client: "d", Host: "h2"})
	if next.Generation != x.Generation+2 || len(y.ready(1)) != 0 {
		t.Errorf("generation %d; barrier open before the new client has fenced the old one: %v",
			next.Generation, len(y.ready(1)) != 0)
	}
	y.adopt(next, y.state().MapVersion())
	if len(y.ready(1)) == 0 {
		t.Error("the new client has adopted the epoch, and the barrier is shut")
	}
	y.done.Sessions = map[cluster.VolumeID]SessionProgress{} // another member leads: nobody has reported yet
	if len(y.ready(1)) != 0 {
		t.Error("a new leader takes the session's adoption for granted")
	}
}

// Goal: what an attach learns of the session before: sources, broken copies,
// who else to fence (rule 26), how long to wait (rule 15), whether to resume.
func TestBefore(t *testing.T) {
	y := newYard(t, 3, 3)
	before := func() Before { return y.state().Before(y.state().volumes[y.volume.ID], y.done) }
	if b := before(); !b.Resume || b.Wait != 0 || len(b.Sources)+len(b.Broken)+len(b.Fence) != 0 {
		t.Errorf("without any session: %+v", b)
	}
	x := y.start(AttachRequest{})
	y.adopt(x, y.state().MapVersion())
	if b := before(); !b.Resume || b.Wait != cluster.ReadLease || len(b.Sources) != 3 || len(b.Fence) != 0 {
		t.Errorf("all is well: %+v", b)
	}
	y.down(2)
	y.settle()
	if b := before(); !slices.Equal(b.Fence, ids(3)) || len(b.Sources) != 2 {
		t.Errorf("the old client may read from device 3: %+v", b)
	}
	y.state().Policy.Off = rules.Set(rules.AttachFencesAll)
	if b := before(); len(b.Fence) != 0 {
		t.Errorf("without rule 26: %+v", b)
	}
	y.state().Policy.Off = 0
	y.adopt(x, y.state().MapVersion())
	if b := before(); len(b.Fence) != 0 {
		t.Errorf("the old client knows that device 3 has left: %+v", b)
	}
	y.down(1)
	y.restart(0, false)
	y.settle()
	if b := before(); !b.Resume || len(b.Sources) != 1 || b.Sources[0] != (Source{2, 1}) {
		t.Errorf("one copy is broken, the other away: %+v", b)
	}
	tx, err := y.state().Detach("v", x.Client, x.Generation, y.now)
	if err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	if b := before(); !b.Resume || b.Wait != 0 {
		t.Errorf("after a clean detach: %+v", b)
	}
	if y.state().volumes[x.Volume].Attached {
		t.Error("the map says that a writer is there")
	}
}

// Goal: a report that mdm confirmed takes a device out of where another copy can
// stand for it; a fresh attach may give up what only that device holds, as long
// as it is nobody else's.
func TestEvict(t *testing.T) {
	y := newYard(t, 2, 2)
	x := y.start(AttachRequest{})
	tx, n, last := y.state().Evict(1, "the client cannot reach it", 0, y.now)
	if n == 0 || len(last) > 0 {
		t.Fatalf("%d groups, %d last", n, len(last))
	}
	y.commit(tx)
	y.wantInSync("evicted", 2)
	if _, n, last := y.state().Evict(2, "nor this one", x.Volume, y.now); n != 0 || len(last) == 0 {
		t.Errorf("the only copy: %d groups left, %d last", n, len(last))
	}

	y = newYard(t, 2, 2)
	x = y.start(AttachRequest{})
	y.down(1)
	y.restart(0, false)
	y.settle()
	y.wantInSync("one broken, one away", 1, 2)
	if _, n, _ := y.state().Evict(2, "away", 0, y.now); n != 0 {
		t.Error("the only unbroken copy was given up without being asked")
	}
	y.create("w", 2)
	other, err := y.attach(AttachRequest{Volume: "w", Client: "d", Host: "h2"})
	if err != nil {
		t.Fatal(err)
	}
	if _, n, _ := y.state().Evict(2, "away", x.Volume, y.now); n != 0 {
		t.Error("another volume's acked writes were given up")
	}
	tx, err = y.state().Detach("w", "d", other.Generation, y.now)
	if err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	tx, n, _ = y.state().Evict(2, "away", x.Volume, y.now)
	if n == 0 {
		t.Fatal("a fresh attach could not give up its own unflushed writes")
	}
	y.commit(tx)
	y.settle()
	y.wantInSync("given up", 1)
	if y.group().Lost == 0 {
		t.Error("nobody will know that acked writes are gone")
	}
}

// Goal: rule 29: a planned leaver stays while it is the last sound copy of
// volumes with unflushed writes.
func TestMayLeave(t *testing.T) {
	y := newYard(t, 2, 2)
	y.start(AttachRequest{})
	unclean := func(cluster.VolumeID) bool { return false }
	clean := func(cluster.VolumeID) bool { return true }
	may := func(id cluster.DeviceID, f func(cluster.VolumeID) bool) bool {
		ok, why := y.state().MayLeave(y.pg(), id, f)
		if ok != (why == "") {
			t.Errorf("ok %v, because %q", ok, why)
		}
		return ok
	}
	if !may(1, unclean) || !may(9, unclean) {
		t.Error("a copy cannot leave although another is sound")
	}
	y.restart(1, false)
	if may(1, unclean) || !may(1, clean) || !may(2, unclean) {
		t.Error("the last sound copy leaves, or the broken one does not")
	}
	y.down(1)
	if may(1, clean) {
		t.Error("the only copy that is up leaves")
	}
	y.state().Policy.Off = rules.Set(rules.PlannedDropWaits)
	y.restart(1, true)
	if !may(1, unclean) {
		t.Error("the rule is off and still holds")
	}
}

// Goal: a client whose unflushed writes were on a copy that restarted learns
// that they are gone, also when another copy was made of it in the meantime.
func TestALossIsNotHiddenByAResync(t *testing.T) {
	y := newYard(t, 2, 2)
	x := y.start(AttachRequest{})
	y.adopt(x, y.state().MapVersion())
	y.down(1)
	y.settle()
	y.restart(1, true)
	y.announce()
	y.adopt(x, y.state().MapVersion())
	epoch := y.group().TargetEpoch
	y.restart(0, false)
	y.settle()
	if g := y.group(); g.Lost == 0 || g.LostEpoch != g.Epoch || g.Target != 2 {
		t.Fatalf("the only in-sync copy restarted: %+v", g)
	}
	if len(y.ready(2)) != 0 {
		t.Error("the target may come in before the client knows of the loss")
	}
	y.adopt(x, y.state().MapVersion())
	if ready := y.ready(2); len(ready) == 0 || !ready[0].Broken {
		t.Fatalf("ready: %+v", ready)
	}
	if refused, later := y.join(2, y.state().MapVersion(), epoch); len(refused)+len(later) > 0 {
		t.Fatalf("refused %v, later %v", refused, later)
	}
	y.wantInSync("copied", 1, 2)
	_, dropped, last, err := y.state().DropReplica(x.Volume, x.Generation, 1, "it restarted", y.now)
	if err != nil || len(dropped) != 0 || len(last) == 0 {
		t.Errorf("%d groups go on without the acked writes, %d do not; %v", len(dropped), len(last), err)
	}
	y.commit(y.state().Sound(x.Volume, x.Generation, y.state().MapVersion(), y.now))
	if _, dropped, last, _ = y.state().DropReplica(x.Volume, x.Generation, 1, "it restarted", y.now); len(last) != 0 {
		t.Errorf("a client that lost nothing then: %d dropped, %d last", len(dropped), len(last))
	}
}
