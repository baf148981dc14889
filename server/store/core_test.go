// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"braid/transport"
)

const testSize = 64 << 20

// Goal: what is written is read, before and after a flush and a power loss.
func TestWriteFlushCrashRead(t *testing.T) {
	g := newRig(t, testSize, Config{LocalResolve: true})
	g.fence(1, 1)
	g.want(1, 1, 7, 0, 8192, 0)
	g.must(writeReq(1, 1, 1, 7, 4096, 8192, 5))
	g.want(1, 1, 7, 4096, 8192, 5)
	g.want(1, 1, 7, 0, 4096, 0)
	g.flush(1, 1, 1)
	g.must(writeReq(1, 1, 2, 8, 0, 4096, 6)) // not flushed
	g.reopen(Config{LocalResolve: true})
	if got := g.core.Generation(1); got != 1 {
		t.Fatalf("generation %d after the crash, want 1", got)
	}
	g.want(1, 1, 7, 4096, 8192, 5)
	g.want(1, 1, 7, 0, 4096, 0)
	g.want(1, 1, 8, 0, 4096, 0) // never flushed, metadata cannot be there
}

// Goal: a FUA write is durable by itself and licenses nothing.
func TestFUA(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	w := writeReq(1, 1, 1, 3, 0, 4096, 9)
	w.FUA = true
	g.must(w)
	if g.core.Idle(); g.core.al.count != 1 {
		t.Fatal("a FUA write licensed removal from the activity log")
	}
	g.run()
	g.reopen(Config{})
	g.want(1, 1, 3, 0, 4096, 9)
}

// Goal: generations (rule 14). Older ones are refused, also after a restart.
func TestGenerations(t *testing.T) {
	g := newRig(t, testSize, Config{})
	if st := g.do(writeReq(1, 1, 1, 0, 0, 4096, 1)); st != transport.StatusNoSession {
		t.Fatalf("write to an unknown volume: %d", st)
	}
	g.fence(1, 5)
	if st := g.do(writeReq(1, 4, 1, 0, 0, 4096, 1)); st != transport.StatusFenced {
		t.Fatalf("write of an older generation: %d", st)
	}
	g.reopen(Config{})
	r := &Request{Op: OpFence, Volume: 1, Gen: 4}
	if st := g.do(r); st != transport.StatusFenced || r.Value != 5 {
		t.Fatalf("fence with an older generation: %d, value %d", st, r.Value)
	}
}

// Goal: trim makes zeroes, frees whole chunks after a flush, survives a crash.
func TestTrim(t *testing.T) {
	g := newRig(t, testSize, Config{LocalResolve: true, Discard: true})
	g.fence(1, 1)
	free := g.core.Stats().ChunksFree
	g.must(writeReq(1, 1, 1, 2, 0, 1<<20, 3))
	g.flush(1, 1, 1)
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 2, Chunk: 2, Offset: 4096, Length: 8192})
	g.want(1, 1, 2, 4096, 8192, 0)
	g.flush(1, 1, 2)
	g.reopen(Config{LocalResolve: true, Discard: true})
	g.want(1, 1, 2, 4096, 8192, 0)
	r := g.must(readReq(1, 1, 2, 0, 1<<20))
	exp := make([]byte, 1<<20)
	pattern(exp, 3)
	clear(exp[4096:12288])
	if string(r.Data) != string(exp) {
		t.Fatal("wrong bytes around the trimmed range")
	}
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 3, Chunk: 2, Length: 1 << 20})
	g.want(1, 1, 2, 0, 1<<20, 0)
	g.flush(1, 1, 3)
	if s := g.core.Stats(); s.ChunksFree != free || g.disk.Discards != 1 {
		t.Fatalf("%d chunks free, want %d; %d discards", s.ChunksFree, free, g.disk.Discards)
	}
	g.reopen(Config{LocalResolve: true})
	g.want(1, 1, 2, 0, 1<<20, 0)
}

// Goal: trimming what was never written writes nothing, now or at the flush.
func TestTrimOfNothing(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
	g.flush(1, 1, 1)
	writes, flushes := g.disk.Writes, g.disk.Flushes
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 2, Chunk: 9, Length: 1 << 20})
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 2, Chunk: 0, Offset: 4096,
		Length: 1<<20 - 4096, FUA: true})
	g.flush(1, 1, 2)
	if g.disk.Writes != writes || g.disk.Flushes != flushes {
		t.Fatalf("%d writes, %d flushes", g.disk.Writes-writes, g.disk.Flushes-flushes)
	}
}

// Goal: write zeroes with NoHole stays allocated.
func TestZero(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	g.must(&Request{Op: OpZero, NoHole: true, Volume: 1, Gen: 1, Interval: 1, Chunk: 4, Offset: 8192,
		Length: 4096})
	r := g.must(readReq(1, 1, 4, 8192, 4096))
	if r.Hole || string(r.Data) != string(make([]byte, 4096)) {
		t.Fatal("want allocated zeroes")
	}
	b := &Request{Op: OpBitmap, Volume: 1, Gen: 1, Chunk: 4, Data: make([]byte, 32)}
	g.must(b)
	if b.Data[0] != 1<<2 {
		t.Fatalf("bitmap %x", b.Data)
	}
}

// Goal: a clean stop keeps the incarnation, a crash changes it.
func TestIncarnation(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	inc, starts := g.core.Incarnation(), g.core.Identity().Starts
	g.must(writeReq(1, 1, 1, 4, 0, 4096, 8))
	g.must(&Request{Op: OpStop})
	if st := g.do(readReq(1, 1, 4, 0, 4096)); st != transport.StatusRetry {
		t.Fatalf("read after stop: %d", st)
	}
	g.reopen(Config{})
	if g.core.Incarnation() != inc {
		t.Fatal("the incarnation changed over a clean stop")
	}
	if got := g.core.Identity().Starts; got != starts+1 {
		t.Fatalf("start counter %d, want %d", got, starts+1)
	}
	g.want(1, 1, 4, 0, 4096, 8)
	if g.core.stats.Verified != 0 {
		t.Fatal("verified after a clean stop")
	}
	g.reopen(Config{})
	if g.core.Incarnation() == inc {
		t.Fatal("the incarnation survived a crash")
	}
}

// Goal: an older image of a disk that is started again counts the same starts and
// is still another incarnation (rule 21).
func TestRolledBackImage(t *testing.T) {
	g := newRig(t, testSize, Config{StartID: 1})
	g.fence(1, 1)
	old := g.disk.Clone()
	g.open(Config{StartID: 2})
	starts, inc := g.core.Identity().Starts, g.core.Incarnation()
	g.disk = old
	g.open(Config{StartID: 3})
	if id := g.core.Identity(); id.Starts != starts || id.StartID != 3 || g.core.Incarnation() == inc {
		t.Fatalf("start %d again: %+v, incarnation %x", starts, id, g.core.Incarnation())
	}
}
