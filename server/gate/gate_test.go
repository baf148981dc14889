// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"
	"testing"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

const (
	self   = cluster.DeviceID(3)
	volume = cluster.VolumeID(7)
)

var (
	both  = []cluster.DeviceID{3, 4}
	first = cluster.MakePGID(1, 0)
)

// testMap has one volume and one set of one group, which is given.
func testMap(version uint64, gen cluster.Generation, pg cluster.PG) *cluster.Map {
	pg.ID, pg.Replicas = first, both
	m := cluster.NewMap()
	m.Version = version
	m.Sets[1] = &cluster.PGSet{Number: 1, Count: 1}
	m.PGs[1] = []*cluster.PG{&pg}
	m.Volumes[volume] = &cluster.Volume{ID: volume, PGSet: 1, StripeWidth: 1, Generation: gen, Attached: true}
	return m
}

func replica(version uint64, gen cluster.Generation, epoch uint32) *cluster.Map {
	return testMap(version, gen, cluster.PG{Epoch: epoch, InSync: both})
}

func target(version uint64, gen cluster.Generation, epoch, attempt uint32) *cluster.Map {
	return testMap(version, gen, cluster.PG{Epoch: epoch, InSync: both[1:], Target: self, TargetEpoch: attempt})
}

func head(op transport.Op, handle, epoch uint32, chunk uint64) *transport.Header {
	return &transport.Header{Op: op, Session: handle, PG: uint32(first), Epoch: epoch, Chunk: chunk}
}

// open does all steps of an open, with a store that agrees.
func open(t *testing.T, g *Gate, o Opener, gen cluster.Generation) uint32 {
	t.Helper()
	r := &transport.OpenRequest{Volume: uint64(volume), Generation: uint64(gen)}
	if s := g.OpenBegin(o, r, 0); s != transport.StatusOK {
		t.Fatalf("open generation %d: %v", gen, s)
	}
	handle, s := g.OpenEnd(o, r, gen, transport.StatusOK)
	if s != transport.StatusOK {
		t.Fatalf("open generation %d: %v at the end", gen, s)
	}
	return handle
}

func want(t *testing.T, what string, got, want transport.Status) {
	t.Helper()
	if got != want {
		t.Errorf("%s: status %d, want %d", what, got, want)
	}
}

// Goal: who may do what under which epoch and role. Method: a table.
func TestAdmission(t *testing.T) {
	const none = transport.StatusRefused
	for _, c := range []struct {
		name  string
		m     *cluster.Map
		op    transport.Op
		epoch uint32
		want  transport.Status
		skip  bool
	}{
		{"no map, flush", nil, transport.OpFlush, 0, transport.StatusNoSession, false},
		{"known epoch", replica(9, 1, 5), transport.OpRead, 5, transport.StatusOK, false},
		{"write", replica(9, 1, 5), transport.OpWrite, 5, transport.StatusOK, false},
		{"old epoch", replica(9, 1, 5), transport.OpRead, 4, transport.StatusStaleEpoch, false},
		{"newer epoch", replica(9, 1, 5), transport.OpWrite, 6, transport.StatusRetry, false},
		{"target reads", target(9, 1, 5, 5), transport.OpRead, 5, none, false},
		{"target copies", target(9, 1, 5, 5), transport.OpCopy, 5, none, false},
		{"target writes", target(9, 1, 5, 5), transport.OpWrite, 5, transport.StatusOK, true},
		{"target trims", target(9, 1, 5, 5), transport.OpTrim, 5, transport.StatusOK, true},
		{"target stamps", target(9, 1, 5, 5), transport.OpStamp, 5, transport.StatusOK, true},
		{"no role", testMap(9, 1, cluster.PG{Epoch: 5, InSync: both[1:]}), transport.OpWrite, 5, none, false},
		{"flush needs no group", target(9, 1, 5, 5), transport.OpFlush, 0, transport.StatusOK, false},
	} {
		g := New(0)
		handle := uint32(1)
		if c.m != nil {
			g.Learn(c.m, self)
			handle = open(t, g, Opener{Conn: 1}, 1)
		}
		var k Ticket
		want(t, c.name, g.Admit(&k, 1, head(c.op, handle, c.epoch, 0)), c.want)
		if k.Skip != c.skip || k.Counted() != (c.want == transport.StatusOK) {
			t.Errorf("%s: ticket %+v", c.name, k)
		}
		g.Done(&k)
		if g.inTurn != 0 || g.before != 0 || c.m != nil && g.group(first).admitted != 0 {
			t.Errorf("%s: counts at rest: %d, %d", c.name, g.inTurn, g.before)
		}
	}
}

// Goal: a chunk is served in its own group only, a read-only session changes
// nothing, a handle counts on its own connection only.
func TestAdmissionOfOddRequests(t *testing.T) {
	g := New(0)
	m := replica(1, 1, 5)
	m.PGs[1] = append(m.PGs[1], &cluster.PG{ID: cluster.MakePGID(1, 1), Epoch: 5, Replicas: both, InSync: both})
	m.Sets[1].Count = 2
	g.Learn(m, self)
	handle := open(t, g, Opener{Conn: 1}, 1)
	var own, foreign uint64
	for c := range uint64(64) {
		if m.VolumePG(m.Volumes[volume], c).ID == first {
			own = c
		} else {
			foreign = c
		}
	}
	var k Ticket
	want(t, "own group", g.Admit(&k, 1, head(transport.OpWrite, handle, 5, own)), transport.StatusOK)
	g.Done(&k)
	want(t, "other group", g.Admit(&k, 1, head(transport.OpWrite, handle, 5, foreign)), transport.StatusInvalid)
	want(t, "other connection", g.Admit(&k, 2, head(transport.OpRead, handle, 5, own)), transport.StatusNoSession)
	want(t, "no handle", g.Admit(&k, 1, head(transport.OpRead, 0, 5, own)), transport.StatusNoSession)
	r := &transport.OpenRequest{Volume: uint64(volume), Generation: 1, ReadOnly: true}
	ro, s := g.OpenEnd(Opener{Conn: 3, Link: 1}, r, 1, transport.StatusOK)
	want(t, "read-only open", s, transport.StatusOK)
	want(t, "read-only write", g.Admit(&k, 3, head(transport.OpWrite, ro, 5, own)), transport.StatusRefused)
	want(t, "read-only read", g.Admit(&k, 3, head(transport.OpRead, ro, 5, own)), transport.StatusOK)
	g.Done(&k)
	if n := testing.AllocsPerRun(100, func() {
		if g.Admit(&k, 1, head(transport.OpWrite, handle, 5, own)) == transport.StatusOK {
			g.Done(&k)
		}
	}); n != 0 {
		t.Errorf("admission allocates %v times", n)
	}
}

// Goal: rule 14, in its order, on opens, reconnects and by word of the map.
func TestGenerationsFence(t *testing.T) {
	g := New(0)
	r := &transport.OpenRequest{Volume: uint64(volume), Generation: 1}
	want(t, "before a map", g.OpenBegin(Opener{Conn: 1}, r, 0), transport.StatusRetry)
	g.Learn(replica(1, 1, 5), self)
	old := open(t, g, Opener{Conn: 1}, 1)
	want(t, "older than persisted", g.OpenBegin(Opener{Conn: 2}, r, 2), transport.StatusFenced)
	r.Generation = 2
	o := Opener{Conn: 2}
	want(t, "newer", g.OpenBegin(o, r, 1), transport.StatusOK)
	var k Ticket
	want(t, "fenced while the store drains", g.Admit(&k, 1, head(transport.OpRead, old, 5, 0)), transport.StatusFenced)
	young, s := g.OpenEnd(o, r, 2, transport.StatusOK)
	want(t, "opened", s, transport.StatusOK)
	want(t, "the new one", g.Admit(&k, 2, head(transport.OpRead, young, 5, 0)), transport.StatusOK)
	g.Done(&k)
	again := open(t, g, Opener{Conn: 3}, 2)
	want(t, "same link", g.Confirm(2, young), transport.StatusNoSession)
	side := open(t, g, Opener{Conn: 4, Link: 1}, 2)
	want(t, "other link", g.Confirm(3, again), transport.StatusOK)
	want(t, "its link", g.Confirm(4, side), transport.StatusOK)

	// mdm fences a dead client: its session ends with the map, and the map counts as
	// adopted when what the session had in flight has ended.
	var write Ticket
	want(t, "write", g.Admit(&write, 3, head(transport.OpWrite, again, 5, 0)), transport.StatusOK)
	g.Learn(replica(2, 3, 5), self)
	want(t, "overtaken", g.Confirm(3, again), transport.StatusFenced)
	if g.Adopted() != 1 {
		t.Errorf("adopted version %d while a fenced write runs", g.Adopted())
	}
	g.Done(&write)
	if g.Adopted() != 2 {
		t.Errorf("adopted version %d after the drain", g.Adopted())
	}
	r.Generation = 2
	want(t, "older than the map", g.OpenBegin(Opener{Conn: 9}, r, 2), transport.StatusFenced)
	g.ConnClosed(3)
	g.ConnClosed(1)
	g.ConnClosed(4)
	if g.Sessions() != 0 {
		t.Errorf("%d sessions left", g.Sessions())
	}
}

// Goal: learning an epoch is a fence (rule 24): what came under it waits for
// what came before, and several maps at once drain together.
func TestLearningIsAFence(t *testing.T) {
	g := New(0)
	g.Learn(replica(1, 1, 5), self)
	h := open(t, g, Opener{Conn: 1}, 1)
	var a, b, c Ticket
	want(t, "a", g.Admit(&a, 1, head(transport.OpWrite, h, 5, 0)), transport.StatusOK)
	want(t, "flush", g.Admit(&b, 1, &transport.Header{Op: transport.OpFlush, Session: h, Chunk: 1}), transport.StatusOK)
	want(t, "flush of a newer map", g.Admit(&c, 1,
		&transport.Header{Op: transport.OpFlush, Session: h, Chunk: 2}), transport.StatusRetry)
	g.Learn(replica(2, 1, 6), self)
	want(t, "new epoch, old write", g.Admit(&c, 1, head(transport.OpWrite, h, 6, 0)), transport.StatusRetry)
	g.Learn(replica(3, 1, 7), self)
	g.Done(&a)
	want(t, "drained", g.Admit(&c, 1, head(transport.OpWrite, h, 7, 0)), transport.StatusOK)
	if g.Adopted() != 1 {
		t.Errorf("adopted %d with a flush of the first map under way", g.Adopted())
	}
	g.Done(&b)
	g.Done(&c)
	if g.Adopted() != 3 || g.inTurn != 0 || g.group(first).admitted != 0 || g.group(first).draining != 0 {
		t.Errorf("at rest: adopted %d, %d in turn, %+v", g.Adopted(), g.inTurn, g.group(first))
	}
}

// Goal: entries of groups that left the in-sync set are reported before a flush
// is let in that could retire them, and again when the old requests have ended.
func TestDemotion(t *testing.T) {
	g := New(0)
	g.Learn(replica(1, 1, 5), self)
	if !g.Demoted() || g.Demoted() {
		t.Error("the first map has to have the log looked at, once")
	}
	h := open(t, g, Opener{Conn: 1}, 1)
	var w, f Ticket
	want(t, "write", g.Admit(&w, 1, head(transport.OpWrite, h, 5, 0)), transport.StatusOK)
	g.Learn(testMap(2, 1, cluster.PG{Epoch: 6, InSync: both[1:]}), self)
	if !g.Demoted() {
		t.Error("leaving the in-sync set was not reported")
	}
	flush := &transport.Header{Op: transport.OpFlush, Session: h, Chunk: 2}
	want(t, "flush before the drain", g.Admit(&f, 1, flush), transport.StatusRetry)
	g.Done(&w)
	if !g.Demoted() {
		t.Error("the drain was not reported")
	}
	want(t, "flush after", g.Admit(&f, 1, flush), transport.StatusOK)
	g.Done(&f)
}

// Goal: rules 11, 25 and 27 on a target: what is skipped is dirty, what is clean
// is applied, an attach and a stamp make dirty again, an attempt keeps its marks
// over epochs, a new one starts over.
func TestTargets(t *testing.T) {
	g := New(0)
	g.Learn(target(1, 1, 5, 5), self)
	h := open(t, g, Opener{Conn: 1}, 1)
	g.Raised()
	tg := g.Targets()[0]
	skips := func(what string, op transport.Op, epoch uint32, chunk uint64, wantSkip bool) {
		t.Helper()
		var k Ticket
		want(t, what, g.Admit(&k, 1, head(op, h, epoch, chunk)), transport.StatusOK)
		if k.Skip != wantSkip {
			t.Errorf("%s: skip is %v", what, k.Skip)
		}
		if !k.Target {
			t.Errorf("%s: what a target takes is no part of a copy", what)
		}
		g.Done(&k)
	}
	skips("before the comparison", transport.OpWrite, 5, 1, true)
	tg.Compare()
	skips("clean", transport.OpWrite, 5, 2, false)
	skips("dirty", transport.OpTrim, 5, 1, true)
	key, ok := tg.Next()
	mark := tg.LastMark(key)
	if !ok || key.Chunk != 1 || tg.Left() != 1 {
		t.Fatalf("next is %+v, %v", key, ok)
	}
	g.Learn(testMap(2, 1, cluster.PG{Epoch: 6, InSync: both[1:], Target: self, TargetEpoch: 5}), self)
	if g.Targets()[0] != tg {
		t.Fatal("a new epoch ended the attempt")
	}
	skips("while it is copied", transport.OpWrite, 6, 1, true)
	if tg.Clean(key, mark) {
		t.Error("a copy that missed a write made its chunk clean")
	}
	mark = tg.LastMark(key)
	if !tg.Clean(key, mark) || tg.Left() != 0 {
		t.Error("a whole copy did not make its chunk clean")
	}
	skips("after the copy", transport.OpZero, 6, 1, false)
	skips("stamp", transport.OpStamp, 6, 1, true)
	skips("after the stamp", transport.OpWrite, 6, 1, true)
	tg.SetJoining(true)
	var k Ticket
	want(t, "stamp while joining", g.Admit(&k, 1, head(transport.OpStamp, h, 6, 2)), transport.StatusRetry)
	g.Learn(target(3, 2, 8, 8), self)
	if got := g.Raised(); !slices.Equal(got, []cluster.VolumeID{volume}) {
		t.Errorf("raised %v after the map", got)
	}
	open(t, g, Opener{Conn: 2}, 2)
	if got := g.Raised(); !slices.Equal(got, []cluster.VolumeID{volume}) {
		t.Errorf("raised %v after the open", got)
	}
	if len(g.Targets()) != 1 || g.Targets()[0] == tg || g.Targets()[0].Left() != 0 {
		t.Error("the new attempt did not start over")
	}
	g.Learn(replica(4, 2, 9), self)
	if len(g.Targets()) != 0 {
		t.Error("the attempt outlived its success")
	}
}

// Goal: a copy runs without a lock only where nobody can write (rule 12).
func TestWriter(t *testing.T) {
	g := New(0)
	m := target(1, 3, 5, 5)
	g.Learn(m, self)
	expect := func(what string, persisted cluster.Generation, conn ConnID, needed bool) {
		t.Helper()
		if w, n := g.Writer(volume, persisted); w.Conn != conn || n != needed {
			t.Errorf("%s: connection %d, needed %v", what, w.Conn, n)
		}
	}
	expect("attached elsewhere", 3, 0, true)
	m2 := target(2, 3, 5, 5)
	m2.Volumes[volume].Attached = false
	g.Learn(m2, self)
	expect("detached", 3, 0, false)
	expect("detached, but a newer one was here", 4, 0, true)
	open(t, g, Opener{Conn: 7}, 4)
	expect("here", 4, 7, true)
	g.ConnClosed(7)
	expect("its connection broke", 4, 0, true)
	if w, n := g.Writer(99, 0); n || w.Conn != 0 {
		t.Error("a volume that does not exist has a writer")
	}
}

// Goal: peers read what is in sync, and nothing else (rules 9 and 24).
func TestPeers(t *testing.T) {
	g := New(0)
	h := &transport.Header{Op: transport.OpSums, Interval: uint64(volume), PG: uint32(first), Epoch: 5}
	var k Ticket
	want(t, "no map", g.AdmitPeer(&k, h), transport.StatusRetry)
	g.Learn(replica(1, 1, 5), self)
	want(t, "in sync", g.AdmitPeer(&k, h), transport.StatusOK)
	g.Done(&k)
	h.Op = transport.OpWrite
	want(t, "write", g.AdmitPeer(&k, h), transport.StatusRefused)
	h.Op, h.Epoch = transport.OpCopy, 4
	want(t, "old epoch", g.AdmitPeer(&k, h), transport.StatusStaleEpoch)
	g.Learn(target(2, 1, 6, 6), self)
	h.Epoch = 6
	want(t, "target", g.AdmitPeer(&k, h), transport.StatusRefused)
	h.Op = transport.OpTags
	want(t, "tags", g.AdmitPeer(&k, h), transport.StatusOK)
	g.Done(&k)
}

// Goal: each switch does what it is for. Method: the smallest request that shows
// the difference.
func TestSwitches(t *testing.T) {
	admit := func(off rules.Off, m, then *cluster.Map, h *transport.Header) (Ticket, transport.Status, *Gate) {
		g := New(off)
		g.Learn(m, self)
		h.Session = open(t, g, Opener{Conn: 1}, 1)
		if then != nil {
			g.Learn(then, self)
		}
		var k Ticket
		s := g.Admit(&k, 1, h)
		return k, s, g
	}
	_, s, _ := admit(rules.Set(rules.EpochFence), replica(1, 1, 5), replica(2, 1, 6), head(transport.OpWrite, 0, 5, 0))
	want(t, "EpochFence", s, transport.StatusOK)
	_, s, _ = admit(rules.Set(rules.Fence), replica(1, 1, 5), replica(2, 2, 5), head(transport.OpWrite, 0, 5, 0))
	want(t, "Fence", s, transport.StatusOK)
	k, s, _ := admit(rules.Set(rules.SkipDirty), target(1, 1, 5, 5), nil, head(transport.OpWrite, 0, 5, 0))
	if want(t, "SkipDirty", s, transport.StatusOK); k.Skip {
		t.Error("SkipDirty: skipped")
	}
	k, s, g := admit(rules.Set(rules.SkippedDirty), target(1, 1, 5, 5), nil, head(transport.OpWrite, 0, 5, 0))
	if want(t, "SkippedDirty", s, transport.StatusOK); !k.Skip || g.Targets()[0].Left() != 0 {
		t.Error("SkippedDirty: marked")
	}
	_, _, g = admit(rules.Set(rules.AttachDirties), target(1, 1, 5, 5), target(2, 2, 5, 5),
		head(transport.OpStamp, 0, 5, 0))
	if len(g.Raised()) != 0 {
		t.Error("AttachDirties: raised")
	}
}
