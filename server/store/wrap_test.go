// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"braid/cluster"
)

// Goal: groups of several pages that run over the end of a small ring, with
// power losses drawn at every completion: whatever was flushed is there, and the
// log is never found with a hole.
func TestRingWraps(t *testing.T) {
	const chunks = 4
	rounds := uint64(shorter(60, 2))
	l, err := layoutWith(32<<20, leastRing*4)
	if err != nil {
		t.Fatal(err)
	}
	cfg := Config{LocalResolve: true, VerifyReads: true}
	g := newRigWith(t, l, cfg)
	g.fence(1, 1)
	flushed := uint64(0)
	check := func() {
		x := &rig{t: t, disk: g.disk.Crash(g.rnd, g.inflight()), rnd: g.rnd}
		x.open(cfg)
		if x.core.Generation(1) != 1 {
			t.Fatal("the generation is gone")
		}
		for i := range uint64(chunks) { // what the last group says is believed once it was looked at
			x.must(readReq(1, 1, i, 0, 4096))
		}
		tags := x.must(&Request{Op: OpTags, Volume: 1, Gen: 1, Length: 100})
		if flushed > 0 && len(tags.Chunks) != chunks {
			t.Fatalf("%d chunks after flush %d", len(tags.Chunks), flushed)
		}
		for _, c := range tags.Chunks {
			if c.Tag.Interval < flushed {
				t.Fatalf("chunk %d: tag %v after flush %d", c.Chunk, c.Tag, flushed)
			}
		}
	}
	n := 0
	g.each = func() {
		if n++; n%5 == 0 {
			check()
		}
	}
	var ws []*Request
	for i := range uint64(chunks) {
		ws = append(ws, writeReq(1, 1, 1, i, 0, cluster.ChunkSize, i+1))
	}
	wraps := 0
	for round := uint64(1); round <= rounds; round++ {
		before := g.core.log.next / uint64(l.ringPages)
		for _, w := range ws {
			w.Interval = round
			g.core.Submit(w)
		}
		g.run()
		g.flush(1, 1, round)
		flushed = round
		g.replies = nil
		if after := g.core.log.next; after/uint64(l.ringPages) != before && after%uint64(l.ringPages) != 0 {
			wraps++
		}
	}
	if wraps == 0 {
		t.Fatal("the ring never wrapped within a group")
	}
	t.Logf("%d wraps, %d completions, %+v", wraps, n, g.core.Stats())
}
