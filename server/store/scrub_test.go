// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"braid/cluster"
	"braid/transport"
)

// scrub makes a pass and returns the rotten blocks by chunk, and how many chunks
// have lost their page.
func (g *rig) scrub() (rot map[uint64]transport.Bitmap, lost int) {
	g.t.Helper()
	rot = map[uint64]transport.Bitmap{}
	r := &Request{Op: OpScrub, Data: alignedBytes(cluster.ChunkSize), Table: &transport.SumTable{}}
	for {
		switch st := g.do(r); st {
		case transport.StatusOK, transport.StatusIO:
			if !r.Hole && r.Table.Rot != (transport.Bitmap{}) {
				rot[r.Chunk] = r.Table.Rot
			}
		case transport.StatusRot:
			lost++
		default:
			g.t.Fatalf("scrub: status %d", st)
		}
		if r.Value == 0 {
			return rot, lost
		}
	}
}

func (g *rig) rest() {
	for g.core.Idle() {
		g.run()
	}
}

// slotOf is where a chunk of volume 1 lies.
func (g *rig) slotOf(chunk uint64) uint32 {
	slot, ok := g.core.slots.find(&chunkKey{1, chunk, 0})
	if !ok {
		g.t.Fatalf("chunk %d is not stored", chunk)
	}
	return slot
}

// stored makes a device with three chunks of 16 blocks, all of it folded.
func stored(t *testing.T, cfg Config) *rig {
	g := newRig(t, testSize, cfg)
	g.fence(1, 1)
	for i := range uint64(3) {
		g.must(writeReq(1, 1, 1, i, 0, 64<<10, i+1))
	}
	g.flush(1, 1, 1)
	g.rest()
	return g
}

// Goal: a pass over one volume reads its chunks, each once, and nothing else.
// Method: two volumes on a device.
func TestScrubOfOneVolume(t *testing.T) {
	g := stored(t, Config{})
	g.fence(2, 1)
	g.must(writeReq(2, 1, 1, 7, 0, 64<<10, 9))
	g.flush(2, 1, 1)
	g.rest()
	r := &Request{Op: OpScrub, Only: 1, Data: alignedBytes(cluster.ChunkSize), Table: &transport.SumTable{}}
	seen := map[uint64]int{}
	for more := true; more; more = r.Value != 0 {
		if st := g.do(r); st != transport.StatusOK {
			t.Fatalf("scrub: status %d", st)
		}
		switch {
		case !r.Hole && r.Volume != 1:
			t.Errorf("it reads chunk %d of volume %d", r.Chunk, r.Volume)
		case !r.Hole:
			seen[r.Chunk]++
		case r.Length > 0:
			t.Errorf("it reads %d bytes that are no chunk", r.Length)
		}
	}
	if len(seen) != 3 || seen[0] != 1 || seen[1] != 1 || seen[2] != 1 {
		t.Errorf("chunks read, and how often: %v", seen)
	}
}

func repairReq(chunk uint64, off, n uint32, version uint64, base uint32) *Request {
	b := alignedBytes(int(base + n))
	pattern(b, version)
	b = b[base:]
	return &Request{Op: OpRepair, Volume: 1, Chunk: chunk, Offset: off, Length: n, Data: b, Sums: sumsOf(b)}
}

// Goal: a pass names exactly the blocks that rotted; a repair with the right bytes
// mends them and nothing else, one with other bytes is refused and writes nothing.
func TestScrubAndRepair(t *testing.T) {
	g := stored(t, Config{VerifyReads: true})
	if rot, lost := g.scrub(); len(rot) != 0 || lost != 0 {
		t.Fatalf("rot on a healthy device: %v, %d", rot, lost)
	}
	s := g.core.Stats()
	if s.ScrubPasses != 1 || s.ScrubChunks != 3 || s.MetaRot != 0 {
		t.Fatalf("%+v", s)
	}
	at := g.core.lay.dataAt(g.slotOf(1))
	for _, b := range []int64{2, 3, 9} {
		g.disk.Corrupt(at + b<<12 + 77)
	}
	want := transport.Bitmap{1<<2 | 1<<3, 1 << 1}
	if rot, _ := g.scrub(); len(rot) != 1 || rot[1] != want {
		t.Fatalf("rot %v", rot)
	}
	writes := g.disk.Writes
	if st := g.do(repairReq(1, 8192, 8192, 99, 8192)); st != transport.StatusRot || g.disk.Writes != writes {
		t.Fatalf("repair with other bytes: status %d, %d writes", st, g.disk.Writes-writes)
	}
	r := g.must(repairReq(1, 0, 64<<10, 2, 0))
	if r.Value != 3 || g.disk.Writes != writes+2 {
		t.Fatalf("%d blocks mended in %d writes", r.Value, g.disk.Writes-writes)
	}
	if rot, _ := g.scrub(); len(rot) != 0 {
		t.Fatalf("still rotten: %v", rot)
	}
	g.want(1, 1, 1, 0, 64<<10, 2)
	if r := g.must(repairReq(1, 0, 64<<10, 2, 0)); r.Value != 0 || g.disk.Writes != writes+2 {
		t.Fatal("a repair of healthy blocks wrote")
	}
	if s := g.core.Stats(); s.Mended != 3 || s.AL != 0 || s.DirtyChunks != 0 {
		t.Fatalf("a repair left traces: %+v", s)
	}
	if r := g.must(repairReq(77, 0, 4096, 2, 0)); !r.Hole || r.Value != 0 {
		t.Fatal("repair of an absent chunk")
	}
}

// Goal: damage of each kind of metadata is found by a pass, mended while the
// device serves, and gone for `sds check` and the next start.
func TestScrubMendsMetadata(t *testing.T) {
	for _, x := range []struct {
		name  string
		where func(g *rig) []int64
		found uint64
	}{
		{"superblock A", func(*rig) []int64 { return []int64{superA + 100} }, 1},
		{"both superblocks", func(*rig) []int64 { return []int64{superA + 100, superB + 5} }, 2},
		{"newest header twin", func(g *rig) []int64 {
			return []int64{g.core.lay.headerAt(0, uint32(g.core.hdrSeq[0]&1)) + 200}
		}, 1},
		{"older header twin", func(g *rig) []int64 {
			return []int64{g.core.lay.headerAt(0, uint32(g.core.hdrSeq[0]&1^1)) + 200}
		}, 1},
		{"both header twins", func(g *rig) []int64 {
			return []int64{g.core.lay.headerAt(0, 0), g.core.lay.headerAt(0, 1)}
		}, 2},
		{"log page", func(g *rig) []int64 { return []int64{g.core.lay.ringAt(g.core.log.next-1) + 70} }, 1},
		{"chunk page", func(g *rig) []int64 {
			s := g.slotOf(1)
			return []int64{g.core.lay.pageAt(s, g.core.slots.info[s].pageSeq&1) + 300}
		}, 1},
	} {
		t.Run(x.name, func(t *testing.T) {
			cfg := Config{LocalResolve: true, VerifyReads: true}
			g := stored(t, cfg)
			g.must(writeReq(1, 1, 2, 0, 0, 4096, 9))
			g.flush(1, 1, 2) // newer in the log
			for _, at := range x.where(g) {
				g.disk.Corrupt(at)
			}
			g.scrub()
			g.must(&Request{Op: OpFlush, Volume: 1, Gen: 1})
			g.run()
			g.rest()
			if s := g.core.Stats(); s.MetaRot != x.found || s.MetaMended != x.found {
				t.Fatalf("%d found, %d mended, want %d", s.MetaRot, s.MetaMended, x.found)
			}
			g.scrub()
			if s := g.core.Stats(); s.MetaRot != x.found {
				t.Fatal("found again")
			}
			g.must(&Request{Op: OpStop})
			if r, err := Check(g.disk, CheckOptions{Data: true}); err != nil || r.Total != 0 {
				t.Fatalf("check: %+v, %v", r, err)
			}
			g.reopen(cfg)
			g.want(1, 1, 0, 0, 4096, 9)
			g.want(1, 1, 1, 0, 64<<10, 2)
		})
	}
}

// Goal: a page that rotted while nobody had it in memory loses the checksums of
// its chunk: the pass says so, and a write of the whole chunk heals it.
func TestScrubLostPage(t *testing.T) {
	g := stored(t, Config{LocalResolve: true})
	for i := range uint64(idleTailPages + 4) { // the log's tail passes the chunk's record
		g.must(writeReq(1, 1, 2+i, 2, 0, 4096, i))
		g.flush(1, 1, 2+i)
	}
	g.rest()
	g.must(&Request{Op: OpStop})
	g.open(Config{LocalResolve: true})
	s := g.slotOf(1)
	g.disk.Corrupt(g.core.lay.pageAt(s, g.core.slots.info[s].pageSeq&1) + 300)
	if _, lost := g.scrub(); lost != 1 {
		t.Fatalf("%d chunks lost their page", lost)
	}
	g.must(writeReq(1, 1, 2, 1, 0, cluster.ChunkSize, 5))
	if _, lost := g.scrub(); lost != 0 {
		t.Fatal("still lost")
	}
	g.want(1, 1, 1, 0, cluster.ChunkSize, 5)
}

// Goal: a write that overlaps what a repair is writing reaches the disk after it,
// so that old bytes never replace new ones; others do not wait.
func TestRepairAndWrite(t *testing.T) {
	g := stored(t, Config{LocalResolve: true, VerifyReads: true})
	g.disk.Corrupt(g.core.lay.dataAt(g.slotOf(1)) + 4096)
	r := repairReq(1, 4096, 4096, 2, 4096)
	g.core.Submit(r)
	g.collect()
	g.complete(0) // its read
	if len(g.pending) != 1 || g.pending[0].io.owner != ownMend || g.pending[0].io.Kind != IOWrite {
		t.Fatalf("%d I/Os instead of the repair's write", len(g.pending))
	}
	held := g.pending[0]
	g.pending = nil
	w := writeReq(1, 1, 2, 1, 0, 16384, 7)
	g.core.Submit(w)
	g.must(writeReq(1, 1, 2, 1, 16384, 4096, 8))
	if len(g.replies) != 0 {
		t.Fatal("the overlapping write did not wait")
	}
	g.pending = append(g.pending, held)
	g.run()
	if len(g.replies) != 2 || r.Status != transport.StatusOK || w.Status != transport.StatusOK {
		t.Fatalf("%d replies: %d, %d", len(g.replies), r.Status, w.Status)
	}
	g.want(1, 1, 1, 0, 16384, 7)
}
