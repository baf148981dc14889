// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"testing"

	"braid/cluster"
	"braid/server/disk"
	"braid/transport"
)

// lostPage makes a device with chunk 1, 16 blocks of version 2, whose page is not
// in memory, and rots on the disk; so does the page before it, if both is set.
func lostPage(t *testing.T, cfg Config, both bool) *rig {
	cfg.PageCache = slabPages
	g := newRig(t, 256<<20, cfg)
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 1, 0, 64<<10, 1))
	g.flush(1, 1, 1)
	g.rest()
	g.must(writeReq(1, 1, 2, 1, 0, 64<<10, 2))
	g.flush(1, 1, 2)
	g.rest()
	for i := range uint64(2 * slabPages) { // others take its place, and the log's tail passes it
		g.must(writeReq(1, 1, 3+i, 10+i, 0, 4096, i))
		g.flush(1, 1, 3+i)
		g.rest()
	}
	s := g.slotOf(1)
	if g.core.slots.info[s].page != 0 {
		t.Fatal("the page is still in memory")
	}
	seq := g.core.slots.info[s].pageSeq
	g.disk.Corrupt(g.core.lay.pageAt(s, seq&1) + 300)
	if both {
		g.disk.Corrupt(g.core.lay.pageAt(s, seq&1^1) + 300)
	}
	return g
}

func (g *rig) sums(chunk uint64) *transport.SumTable {
	g.t.Helper()
	r := &Request{Op: OpSums, Volume: 1, Gen: 1, Chunk: chunk, Data: alignedBytes(cluster.ChunkSize),
		Table: &transport.SumTable{}}
	return g.must(r).Table
}

// wantRot: nothing of the range is handed out.
func (g *rig) wantRot(chunk uint64, off, n uint32) {
	g.t.Helper()
	r := readReq(1, 1, chunk, off, n)
	if st := g.do(r); st != transport.StatusRot {
		g.t.Fatalf("read at %d: status %d, hole %v", off, st, r.Hole)
	}
}

// Goal: where a chunk's page rots while it is not in memory, nothing of the chunk
// is handed out that nobody can verify, neither bytes nor zeroes; writes go on; and
// the copy is mended, block by block, from another one, as a resync does it.
func TestLostPage(t *testing.T) {
	for _, x := range []struct{ verify, both, crash bool }{
		{true, true, false}, {true, true, true}, {false, true, true}, {false, false, true}, {true, false, false},
	} {
		t.Run(fmt.Sprintf("%+v", x), func(t *testing.T) {
			cfg := Config{VerifyReads: x.verify, PageCache: slabPages}
			g := lostPage(t, cfg, x.both)
			var all transport.Bitmap
			for b := range blocks {
				all.Set(b)
			}
			for range 2 {
				g.wantRot(1, 0, 4096)
				g.wantRot(1, 64<<10, 4096) // absent, which the page knew
				if s := g.sums(1); !s.Stored || s.Rot != all || s.Present != all || s.Logged {
					t.Fatalf("%+v", s)
				}
			}
			g.must(writeReq(1, 1, 900, 1, 4096, 4096, 9))
			g.want(1, 1, 1, 4096, 4096, 9)
			g.wantRot(1, 0, 8192)
			g.flush(1, 1, 900)
			if x.crash {
				g.reopen(cfg)
			} else {
				g.rest()
			}
			g.want(1, 1, 1, 4096, 4096, 9)
			if x.both {
				g.wantRot(1, 0, 4096)
				g.wantRot(1, 64<<10, 4096)
			}
			g.mendLost(1)
			g.must(&Request{Op: OpStop})
			if r, err := Check(g.disk, CheckOptions{Data: true}); err != nil || r.Total != 0 {
				t.Fatalf("check: %+v, %v", r, err)
			}
			g.reopen(cfg)
			g.want(1, 1, 1, 0, 4096, 2)
			if rot, lost := g.scrub(); len(rot) != 0 || lost != 0 {
				t.Fatalf("still rotten: %v, %d", rot, lost)
			}
		})
	}
}

// mendLost copies chunk 1 as a resync does: what differs from a source that has
// blocks 0 to 15 and no others.
func (g *rig) mendLost(chunk uint64) {
	g.t.Helper()
	s := g.sums(chunk)
	g.must(&Request{Op: OpMark, Volume: 1, Gen: 1, Chunk: chunk, Marks: MarkTarget})
	good := alignedBytes(64 << 10)
	pattern(good, 2)
	for b := range uint32(blocks) {
		switch {
		case b >= 16 && s.Present.Has(int(b)):
			g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 901, Chunk: chunk, Offset: b << blockShift,
				Length: pageSize})
		case b < 16 && b != 1 && (s.Rot.Has(int(b)) || s.Torn.Has(int(b))):
			d := alignedBytes(pageSize)
			copy(d, good[b<<blockShift:])
			g.must(&Request{Op: OpWrite, Volume: 1, Gen: 1, Interval: 901, Chunk: chunk, Offset: b << blockShift,
				Length: pageSize, Data: d, Sums: sumsOf(d)})
		}
	}
	g.must(&Request{Op: OpStamp, Volume: 1, Gen: 1, Chunk: chunk, Tag: cluster.Tag{Gen: 1, Interval: 901}})
	g.flush(1, 1, 901)
	g.rest()
	if s := g.sums(chunk); s.Rot != (transport.Bitmap{}) || s.Present != (transport.Bitmap{255, 255}) ||
		Marks(s.Marks)&MarkTarget != 0 {
		g.t.Fatalf("after mending: %+v", s)
	}
}

// Goal: a trim, a drop and a write of all of it work on a chunk whose page is lost.
func TestLostPageGoes(t *testing.T) {
	cfg := Config{LocalResolve: true, VerifyReads: true, PageCache: slabPages}
	g := lostPage(t, cfg, true)
	g.must(writeReq(1, 1, 900, 1, 0, cluster.ChunkSize, 7))
	g.flush(1, 1, 900)
	g.reopen(cfg)
	g.want(1, 1, 1, 0, cluster.ChunkSize, 7)
	if rot, lost := g.scrub(); len(rot) != 0 || lost != 0 {
		t.Fatalf("still rotten: %v, %d", rot, lost)
	}
	g = lostPage(t, cfg, true)
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 900, Chunk: 1, Length: cluster.ChunkSize})
	g.flush(1, 1, 900)
	g.reopen(cfg)
	if r := g.must(readReq(1, 1, 1, 0, cluster.ChunkSize)); !r.Hole {
		t.Fatal("the trimmed chunk is still there")
	}
}

// Goal: where the log's last group speaks of a chunk whose page is lost, the log
// goes on all the same: what the group wrote is there, and the rest is lost.
func TestLostPageInDoubt(t *testing.T) {
	cfg := Config{LocalResolve: true, VerifyReads: true, PageCache: slabPages}
	g := lostPage(t, cfg, true)
	s := g.slotOf(1)
	g.disk.Corrupt(g.core.lay.pageAt(s, g.core.slots.info[s].pageSeq&1) + 300) // good again, for the write
	g.must(writeReq(1, 1, 900, 1, 4096, 4096, 9))
	g.must(&Request{Op: OpFlush, Volume: 1, Gen: 1})
	g.disk.Corrupt(g.core.lay.pageAt(s, g.core.slots.info[s].pageSeq&1) + 300)
	g.open(cfg)
	if p := g.core.cache.at(g.core.slots.info[s].page); p.state != pageOverlay || !p.needsBits {
		t.Fatalf("the chunk is not in doubt: state %d", p.state)
	}
	for range 50 {
		g.core.Idle()
		g.run()
	}
	g.flush(1, 1, 901)
	for range 50 {
		g.core.Idle()
		g.run()
	}
	if s := g.core.Stats(); s.Unfolded != 0 {
		t.Fatalf("%d chunks keep the log: %s", s.Unfolded, g.core.debug())
	}
	g.want(1, 1, 1, 4096, 4096, 9)
	g.wantRot(1, 0, 4096)
}

// Goal: a page that cannot be read this once is no lost one. The comparison that a
// crash has made necessary is done at the next use: what was being written is torn,
// and not rot.
func TestUnreadablePage(t *testing.T) {
	cfg := Config{VerifyReads: true}
	g := newRig(t, testSize, cfg)
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 64<<10, 1))
	g.flush(1, 1, 1)
	g.rest()
	for i := range uint64(idleTailPages + 4) { // the log's tail passes the chunk's record
		g.must(writeReq(1, 1, 2+i, 2, 0, 4096, i))
		g.flush(1, 1, 2+i)
	}
	g.rest()
	g.must(writeReq(1, 1, 900, 0, 4096, 4096, 2))
	if err := g.disk.Flush(); err != nil { // the data is there, and no metadata
		t.Fatal(err)
	}
	g.open(cfg)
	g.disk.Fail(disk.Fault{Op: "read", Off: g.core.lay.pageAt(g.slotOf(0), 0), Len: 2 * pageSize, Times: 1})
	reads := g.core.Stats().PageReads
	g.core.Idle() // compares what nobody asks for
	g.run()
	if g.core.Stats().PageReads != reads+1 || g.core.Stats().Verified != 0 {
		t.Fatalf("%+v", g.core.Stats())
	}
	if x := g.sums(0); x.Torn != (transport.Bitmap{1 << 1}) || x.Rot != (transport.Bitmap{}) {
		t.Fatalf("torn %x, rot %x", x.Torn, x.Rot)
	}
	g.want(1, 1, 0, 0, 4096, 1)
}
