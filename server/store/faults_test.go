// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"braid/cluster"
	"braid/server/disk"
	"braid/transport"
)

// Goal: the first failed flush retires the device for good (rule 19).
func TestFailedFlushRetires(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
	inc := g.core.Incarnation()
	g.disk.Fail(disk.Fault{Op: "flush", Times: 1})
	f := &Request{Op: OpFlush, Volume: 1, Gen: 1, Interval: 1, Drained: true}
	if st := g.do(f); st != transport.StatusIO || !g.failed || g.core.Err() == nil {
		t.Fatalf("flush: status %d, failed %v, %v", st, g.failed, g.core.Err())
	}
	if g.core.Incarnation() == inc {
		t.Error("the incarnation did not change")
	}
	flushes := g.disk.Flushes
	for _, r := range []*Request{f, readReq(1, 1, 0, 0, 4096), writeReq(1, 1, 1, 0, 0, 4096, 2), {Op: OpStop}} {
		if st := g.do(r); st != transport.StatusIO {
			t.Errorf("op %d after the failure: %d", r.Op, st)
		}
	}
	if g.disk.Flushes != flushes {
		t.Error("the flush was tried again")
	}
}

// Goal: requests in every stage get their reply when the device fails.
func TestFailureAnswersAll(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	var rs []*Request
	for i := range uint64(8) {
		w := writeReq(1, 1, 1, i, 0, 4096, i)
		w.FUA = i%2 == 0
		rs = append(rs, w, &Request{Op: OpFlush, Volume: 1, Gen: 1, Interval: 1})
	}
	rs = append(rs, &Request{Op: OpFence, Volume: 1, Gen: 2})
	g.disk.Fail(disk.Fault{Op: "write", Off: ringOffset, Len: 1 << 20})
	for _, r := range rs {
		g.core.Submit(r)
	}
	g.run()
	if len(g.replies) != len(rs) {
		t.Fatalf("%d replies to %d requests", len(g.replies), len(rs))
	}
}

// Goal: a failed data write changes the incarnation, is reported, and its region
// stays in the log through drained flushes.
func TestFailedWrite(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	inc := g.core.Incarnation()
	g.disk.Fail(disk.Fault{Op: "write", Off: g.core.lay.dataOff, Len: 1 << 30, Times: 1})
	if st := g.do(writeReq(1, 1, 1, 0, 0, 4096, 1)); st != transport.StatusIO {
		t.Fatalf("write: %d", st)
	}
	if g.core.Incarnation() == inc || g.core.Err() != nil {
		t.Fatal("incarnation unchanged, or the device retired")
	}
	g.must(writeReq(1, 1, 1, 1, 0, 4096, 2))
	g.flush(1, 1, 1)
	for g.core.Idle() {
		g.run()
	}
	r := g.must(&Request{Op: OpALList, Volume: 1, Gen: 1})
	if len(r.Regions) != 1 || r.Regions[0].Chunk != 0 || r.Regions[0].Marks&MarkPoisoned == 0 {
		t.Fatalf("activity log: %+v", r.Regions)
	}
}

// Goal: what a failed write may have left is torn, to be resolved, and not rot, to
// be repaired: there may be no other copy. Another write that is under way in the
// chunk meanwhile is not taken for torn.
func TestFailedWriteIsTorn(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 16384, 1))
	g.flush(1, 1, 1)
	g.must(writeReq(1, 1, 2, 1, 0, 4096, 1))
	g.flush(1, 1, 2) // proves the group before: nothing has to be written first
	g.core.Submit(writeReq(1, 1, 2, 0, 8192, 4096, 3))
	g.collect()
	other := g.pending[0]
	g.pending = nil
	w := writeReq(1, 1, 2, 0, 4096, 4096, 2)
	at := g.core.lay.dataAt(g.slotOf(0)) + 4096
	g.disk.Fail(disk.Fault{Op: "write", Off: at, Len: 4096, Times: 1})
	if st := g.do(w); st != transport.StatusIO {
		t.Fatalf("write: %d", st)
	}
	if _, err := g.disk.WriteAt(w.Data, at); err != nil { // it came through all the same
		t.Fatal(err)
	}
	sums := &Request{Op: OpSums, Volume: 1, Gen: 1, Data: alignedBytes(cluster.ChunkSize), Table: &transport.SumTable{}}
	g.core.Submit(sums)
	g.collect()
	if len(g.pending) != 0 {
		t.Fatal("the chunk was read while a write was under way")
	}
	g.pending = append(g.pending, other)
	g.run()
	x := sums.Table
	if x.Torn != (transport.Bitmap{1 << 1}) || x.Rot != (transport.Bitmap{}) || Marks(x.Marks)&MarkPoisoned == 0 {
		t.Fatalf("torn %x, rot %x, marks %v", x.Torn, x.Rot, Marks(x.Marks))
	}
	g.must(writeReq(1, 1, 2, 0, 4096, 4096, 4))
	g.want(1, 1, 0, 4096, 4096, 4)
	g.want(1, 1, 0, 8192, 4096, 3)
}

// Goal: a read error costs that read only.
func TestFailedRead(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
	g.disk.Fail(disk.Fault{Op: "read", Off: g.core.lay.dataOff, Len: 1 << 30, Times: 1})
	if st := g.do(readReq(1, 1, 0, 0, 4096)); st != transport.StatusIO {
		t.Fatalf("read: %d", st)
	}
	g.want(1, 1, 0, 0, 4096, 1)
}

// Goal: a full device says so, applies nothing, and trim makes room again.
func TestFull(t *testing.T) {
	g := newRig(t, 16<<20, Config{LocalResolve: true, Discard: true})
	g.fence(1, 1)
	n := g.core.Stats().Chunks
	for i := range n {
		g.must(writeReq(1, 1, 1, i, 0, 4096, i+1))
	}
	if st := g.do(writeReq(1, 1, 1, n, 0, 4096, 1)); st != transport.StatusNoSpace {
		t.Fatalf("write to a full device: %d", st)
	}
	if r := g.must(readReq(1, 1, n, 0, 4096)); !r.Hole {
		t.Fatal("the refused chunk exists")
	}
	g.must(writeReq(1, 1, 1, 0, 4096, 4096, 77)) // an existing chunk takes writes
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 1, Chunk: 2, Length: 1 << 20})
	g.must(writeReq(1, 1, 1, n, 0, 4096, 9)) // waits for the trim to be durable, by itself
	g.reopen(Config{LocalResolve: true})
	g.want(1, 1, 2, 0, 4096, 0)
}

// Goal: a fence waits for what was admitted before it, refuses older ones from
// its Submit on, and a second client's writes go on meanwhile.
func TestFenceDrains(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	g.fence(2, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
	w := writeReq(1, 1, 1, 0, 0, 4096, 2)
	g.core.Submit(w)
	g.collect()
	if len(g.pending) != 1 {
		t.Fatalf("%d I/Os for a hot write", len(g.pending))
	}
	held := g.pending[0]
	g.pending = nil
	f := &Request{Op: OpFence, Volume: 1, Gen: 2}
	same := &Request{Op: OpFence, Volume: 1, Gen: 2}
	g.core.Submit(f)
	g.core.Submit(same)
	if st := g.do(writeReq(1, 1, 1, 3, 0, 4096, 1)); st != transport.StatusFenced {
		t.Fatalf("old generation after the fence: %d", st)
	}
	g.must(writeReq(2, 1, 1, 0, 0, 4096, 3))
	if len(g.replies) != 0 {
		t.Fatal("the fence did not wait for the write in flight")
	}
	g.pending = append(g.pending, held)
	g.run()
	if len(g.replies) != 3 || f.Status != transport.StatusOK || same.Status != transport.StatusOK {
		t.Fatalf("%d replies, fence %d", len(g.replies), f.Status)
	}
	g.replies = nil
	g.reopen(Config{})
	if g.core.Generation(1) != 2 {
		t.Fatal("the generation was not persisted")
	}
}

// Goal: a dropped volume leaves nothing behind, also after a crash.
func TestDrop(t *testing.T) {
	g := newRig(t, testSize, Config{LocalResolve: true, PageCache: slabPages})
	free := g.core.Stats().ChunksFree
	g.fence(1, 1)
	g.fence(2, 1)
	for i := range uint64(20) {
		g.must(writeReq(1, 1, 1, i, 0, 4096, i+1))
		g.must(writeReq(2, 1, 1, i, 0, 4096, i+100))
	}
	g.flush(1, 1, 1)
	g.flush(2, 1, 1)
	g.must(&Request{Op: OpDrop, Volume: 1})
	if st := g.do(writeReq(1, 1, 1, 0, 0, 4096, 1)); st != transport.StatusNoSession {
		t.Fatalf("write to a dropped volume: %d", st)
	}
	g.must(&Request{Op: OpDrop, Volume: 77})
	for range 3 {
		if s := g.core.Stats(); s.ChunksFree != free-20 {
			t.Fatalf("%d chunks free, want %d", s.ChunksFree, free-20)
		}
		if g.core.Generation(1) != 0 {
			t.Fatal("the generation is still there")
		}
		g.want(2, 1, 3, 0, 4096, 103)
		g.reopen(Config{LocalResolve: true})
	}
}

// Goal: pressure rises when nobody flushes; writes are refused only where the log
// may not grow; a drained flush always gets through and frees the log.
func TestPressure(t *testing.T) {
	for _, most := range []int{16, 0} {
		g := newRig(t, testSize, Config{ALSlots: 8, ALMost: most})
		g.fence(1, 1)
		refused := 0
		for i := range uint64(30) {
			switch st := g.do(writeReq(1, 1, 1, i, 0, 4096, i+1)); st {
			case transport.StatusOK:
				if i == 3 && g.core.Pressure() != 0 || i >= 7 && g.core.Pressure() != 1000 {
					t.Errorf("pressure %d after %d regions", g.core.Pressure(), i+1)
				}
			case transport.StatusLogFull:
				refused++
			default:
				t.Fatalf("status %d", st)
			}
		}
		if most != 0 && refused != 30-most || most == 0 && refused != 0 {
			t.Errorf("%d writes were refused where %d regions are allowed", refused, most)
		}
		g.flush(1, 1, 1)
		g.must(writeReq(1, 1, 2, 29, 0, 4096, 5))
		if p := g.core.Pressure(); p > 500 {
			t.Errorf("pressure %d after a drained flush", p)
		}
	}
}

// Goal: however many regions clients have in flight beyond the size of the log,
// all writes of an interval end, so that its flush can be sent; the log is logged
// again where the tail has to pass it, survives a power loss whole, and empties.
// Method: 2,000 regions on a log of 8, through several turns of the ring.
func TestLogGrows(t *testing.T) {
	cfg := Config{ALSlots: 8}
	g := newRig(t, 3<<30, cfg)
	g.fence(1, 1)
	const regions = 2000
	for i := range uint64(regions) {
		g.core.Submit(writeReq(1, 1, 1, i, 0, 4096, i))
		if i%64 == 0 {
			g.run()
		}
	}
	g.run()
	for _, r := range g.replies {
		if r.Status != transport.StatusOK {
			t.Fatalf("chunk %d: status %d", r.Chunk, r.Status)
		}
	}
	if len(g.replies) != regions {
		t.Fatalf("%d replies", len(g.replies))
	}
	g.replies = nil
	for i := range uint64(3 * 4096) { // FUA licenses nothing
		if g.core.log.next > 2*uint64(g.core.lay.ringPages) {
			break
		}
		w := writeReq(1, 1, 1, i%regions, 4096, 4096, i)
		w.FUA = true
		g.must(w)
	}
	if g.core.log.next < 2*uint64(g.core.lay.ringPages) || g.core.Stats().AL != regions {
		t.Fatalf("page %d, %d regions", g.core.log.next, g.core.Stats().AL)
	}
	g.reopen(cfg)
	if s := g.core.Stats(); s.AL != regions {
		t.Fatalf("%d regions after a power loss", s.AL)
	}
	g.must(&Request{Op: OpFence, Volume: 1, Gen: 2})
	for i := range uint64(regions) {
		g.must(&Request{Op: OpStamp, Volume: 1, Gen: 2, Chunk: i, Tag: cluster.Tag{Gen: 2}})
	}
	g.flush(1, 2, 1)
	g.rest()
	if s := g.core.Stats(); s.AL != 0 {
		t.Fatalf("%d regions are left", s.AL)
	}
}

// Goal: marks keep a region through flushes and crashes until a stamp; a stamp
// with Unlog lets it go without a flush of the client (rules 4 and 20).
func TestMarkAndStamp(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 3)
	const absent, stored = 5, 6
	g.must(writeReq(1, 3, 1, stored, 0, 8192, 1))
	for _, chunk := range []uint64{absent, stored} {
		g.must(&Request{Op: OpMark, Volume: 1, Gen: 3, Chunk: chunk, Marks: MarkTarget})
	}
	g.flush(1, 3, 1)
	list := func() (m map[uint64]Marks) {
		m = map[uint64]Marks{}
		for cursor := uint64(0); ; {
			r := g.must(&Request{Op: OpALList, Volume: 1, Gen: 3, Value: cursor, Length: 1})
			for _, x := range r.Regions {
				m[x.Chunk] = x.Marks
			}
			if cursor = r.Value; cursor == 0 {
				return m
			}
		}
	}
	rest := func() {
		for g.core.Idle() {
			g.run()
		}
	}
	rest()
	g.reopen(Config{})
	if m := list(); len(m) != 2 || m[absent]&MarkTarget == 0 || m[stored]&MarkTarget == 0 {
		t.Fatalf("marks after a crash: %v", m)
	}
	for _, chunk := range []uint64{absent, stored} {
		g.must(&Request{Op: OpStamp, Volume: 1, Gen: 3, Chunk: chunk, Tag: cluster.Tag{Gen: 2, Interval: 9},
			Unlog: chunk == stored})
	}
	// The tag is older than the generation, which shows as suspect; the marks are gone.
	if m := list(); m[absent] != MarkSuspect || m[stored] != MarkSuspect {
		t.Fatalf("marks after the stamp: %v", m)
	}
	tags := g.must(&Request{Op: OpTags, Volume: 1, Gen: 3, Length: 10})
	if len(tags.Chunks) != 1 || tags.Chunks[0].Tag != (cluster.Tag{Gen: 2, Interval: 9}) || tags.Value != 0 {
		t.Fatalf("tags: %+v", tags.Chunks)
	}
	g.must(&Request{Op: OpFlush, Volume: 1, Gen: 3}) // not drained
	rest()
	if m := list(); len(m) != 1 {
		t.Fatalf("want only the entry without Unlog: %v", m)
	}
	g.must(&Request{Op: OpStop})
	g.reopen(Config{})
	if m := list(); len(m) != 1 || m[absent]&MarkTarget != 0 {
		t.Fatalf("after a clean stop: %v", m)
	}
}

// Goal: OpSums tells torn from rot, raw reads carry both, a write heals.
func TestSumsTornRot(t *testing.T) {
	cfg := Config{VerifyReads: true}
	g := newRig(t, testSize, cfg)
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 16384, 1))
	g.must(writeReq(1, 1, 1, 1, 0, 16384, 2))
	g.flush(1, 1, 1)
	for g.core.Idle() {
		g.run()
	}
	g.must(writeReq(1, 1, 2, 0, 4096, 4096, 9)) // in the log, unflushed, and it reaches the disk
	if err := g.disk.Flush(); err != nil {
		t.Fatal(err)
	}
	g.reopen(cfg)
	at := g.core.lay.dataAt
	key := chunkKey{1, 1, 0}
	slot, _ := g.core.slots.find(&key)
	g.disk.Corrupt(at(slot) + 8192)
	table := func(chunk uint64) *transport.SumTable {
		r := &Request{Op: OpSums, Volume: 1, Gen: 1, Chunk: chunk, Data: alignedBytes(1 << 20),
			Table: &transport.SumTable{}}
		return g.must(r).Table
	}
	if x := table(0); x.Torn != (transport.Bitmap{2}) || x.Rot != (transport.Bitmap{}) || !x.Logged ||
		x.Present != (transport.Bitmap{15}) {
		t.Fatalf("torn chunk: %+v", x)
	}
	if x := table(1); x.Torn != (transport.Bitmap{}) || x.Rot != (transport.Bitmap{4}) || x.Logged {
		t.Fatalf("rotten chunk: %+v", x)
	}
	if x := table(7); x.Stored || x.Logged {
		t.Fatalf("absent chunk: %+v", x)
	}
	if st := g.do(readReq(1, 1, 1, 8192, 4096)); st != transport.StatusRot {
		t.Fatalf("read of rot: %d", st)
	}
	raw := readReq(1, 1, 0, 0, 16384)
	raw.Raw = true
	g.must(raw)
	if string(raw.Sums) != string(sumsOf(raw.Data)) {
		t.Fatal("a raw read's checksums are not those of its bytes")
	}
	g.must(writeReq(1, 1, 3, 0, 4096, 4096, 10)) // from another copy
	g.want(1, 1, 0, 4096, 4096, 10)
	if x := table(0); x.Torn != (transport.Bitmap{}) {
		t.Fatal("still torn after a write")
	}
}

// Goal: what a crash left in the activity log takes no room from new regions,
// and an idle device that resolves by itself verifies it and lets it go.
func TestLogAfterCrash(t *testing.T) {
	cfg := Config{ALSlots: 8, LocalResolve: true}
	g := newRig(t, testSize, cfg)
	g.fence(1, 1)
	for range 3 {
		for i := range uint64(16) {
			g.must(writeReq(1, 1, 1, i, 0, 4096, i+1))
		}
		g.must(&Request{Op: OpFlush, Volume: 1, Gen: 1}) // not drained: all stay
		g.reopen(cfg)
		if s := g.core.Stats(); s.AL != 16 || g.core.Pressure() != 0 {
			t.Fatalf("%d regions, pressure %d", s.AL, g.core.Pressure())
		}
	}
	for i := range uint64(16) {
		g.must(writeReq(1, 1, 1, 16+i, 0, 4096, i+1))
	}
	g.flush(1, 1, 1)
	for g.core.Idle() {
		g.run()
	}
	if s := g.core.Stats(); s.AL != 0 || s.Verified == 0 {
		t.Fatalf("%d regions after idleness, %d verified", s.AL, s.Verified)
	}
}

// Goal: users' writes leave the reserve alone, copies may take it, chunks that exist
// stay writable, and the reserve can change at any time.
func TestReserve(t *testing.T) {
	g := newRig(t, 64<<20, Config{})
	g.fence(1, 1)
	slots := uint64(g.core.lay.slots)
	g.core.SetReserve(10)
	n := uint64(0)
	fill := func() transport.Status {
		for ; ; n++ {
			if st := g.do(writeReq(1, 1, n+1, n, 0, 4096, 1)); st != transport.StatusOK {
				return st
			}
			g.flush(1, 1, n+1)
		}
	}
	if st := fill(); st != transport.StatusNoSpace || n != slots-slots/10 {
		t.Fatalf("%d of %d chunks, status %d", n, slots, st)
	}
	g.must(writeReq(1, 1, n+1, 0, 4096, 4096, 2))
	for i := range slots / 10 {
		r := writeReq(1, 1, n+1, 1000+i, 0, 4096, 1)
		r.IsCopy = true
		g.must(r)
		g.flush(1, 1, n+1)
	}
	r := writeReq(1, 1, n+1, 2000, 0, 4096, 1)
	r.IsCopy = true
	if st := g.do(r); st != transport.StatusNoSpace {
		t.Fatalf("a copy on a device without room: status %d", st)
	}
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: n + 1, Chunk: 1000, Length: cluster.ChunkSize})
	g.flush(1, 1, n+1)
	g.rest()
	if st := g.do(writeReq(1, 1, n+2, n, 0, 4096, 1)); st != transport.StatusNoSpace {
		t.Fatalf("a write into what a copy has left: status %d", st)
	}
	g.core.SetReserve(0)
	g.must(writeReq(1, 1, n+2, n, 0, 4096, 1))
}
