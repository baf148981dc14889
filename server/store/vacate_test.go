// SPDX-License-Identifier: Apache-2.0

package store

import (
	"slices"
	"testing"

	"braid/cluster"
	"braid/transport"
)

// Goal: what is vacated is gone for good, activity-log entries and all, and
// nothing else is. Method: two volumes, of which the odd chunks go, while some of
// their entries are marked as suspect; then power losses.
func TestVacate(t *testing.T) {
	for _, clean := range []bool{false, true} {
		g := newRig(t, testSize, Config{PageCache: slabPages})
		g.fence(1, 1)
		g.fence(2, 1)
		for i := range uint64(40) {
			g.must(writeReq(1, 1, 1, i, 0, 4096, i+1))
		}
		g.must(writeReq(2, 1, 1, 1, 0, 4096, 500))
		free := g.core.Stats().ChunksFree
		g.flush(1, 1, 1)
		g.must(writeReq(1, 1, 2, 7, 4096, 4096, 900)) // in the log, and not to be flushed
		gone := func(id cluster.VolumeID, chunk uint64) bool { return id == 1 && chunk%2 == 1 }
		g.core.Suspect(gone)
		g.must(&Request{Op: OpVacate, Gone: gone})
		g.core.EachRegion(func(id cluster.VolumeID, _ uint32, chunk uint64) {
			if e := g.core.al.find(&chunkKey{volume: uint64(id), chunk: chunk}); gone(id, chunk) &&
				!g.core.al.ent[e].unlog {
				t.Errorf("chunk %d is gone and keeps its entry", chunk)
			}
		})
		for g.core.Idle() {
			g.run()
		}
		if clean {
			g.must(&Request{Op: OpStop})
		}
		g.reopen(Config{})
		if s := g.core.Stats(); s.ChunksFree != free+20 {
			t.Fatalf("clean stop %v: %d chunks free, want %d", clean, s.ChunksFree, free+20)
		}
		g.want(1, 1, 6, 0, 4096, 7)
		g.want(1, 1, 7, 0, 4096, 0)
		g.want(2, 1, 1, 0, 4096, 500)
	}
}

// Goal: a mark that is taken away before it is durable is answered, and the device comes to
// rest: it committed for ever. Method: the chunk goes in a commit that is under way.
func TestVacateTakesAMarkAway(t *testing.T) {
	g := newRig(t, testSize, Config{})
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
	vacate := &Request{Op: OpVacate, Gone: func(cluster.VolumeID, uint64) bool { return true }}
	g.core.Submit(vacate)
	g.collect()
	if len(g.pending) == 0 {
		t.Fatal("no commit is under way")
	}
	mark := &Request{Op: OpMark, Volume: 1, Gen: 1, Chunk: 3, Marks: MarkTarget}
	g.core.Submit(mark)
	for range 1000 {
		if g.collect(); len(g.pending) == 0 {
			break
		}
		g.complete(0)
	}
	if len(g.pending) > 0 {
		t.Error("the device does not come to rest")
	}
	if !slices.Contains(g.replies, vacate) || !slices.Contains(g.replies, mark) ||
		mark.Status != transport.StatusRetry {
		t.Errorf("answers to %d requests; the mark's status is %d", len(g.replies), mark.Status)
	}
}
