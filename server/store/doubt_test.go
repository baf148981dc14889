// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"braid/transport"
)

// overwrite submits a write and lets its data, and only that much, reach the
// disk; then the power goes.
func (g *rig) overwrite(cfg Config, w *Request) {
	g.t.Helper()
	g.core.Submit(w)
	g.collect()
	// A look at the old data, and a proof, may have to come first.
	for len(g.pending) > 0 && (g.pending[0].io.Meta || g.pending[0].io.Kind != IOWrite) {
		g.complete(0)
	}
	if len(g.pending) != 1 || g.pending[0].io.Kind != IOWrite {
		g.t.Fatalf("%d I/Os pending instead of the data write", len(g.pending))
	}
	p := g.pending[0].io
	if _, err := g.disk.WriteAt(p.Data, p.Off); err != nil {
		g.t.Fatal(err)
	}
	if err := g.disk.Flush(); err != nil {
		g.t.Fatal(err)
	}
	g.open(cfg)
}

func (g *rig) wantOneOf(chunk uint64, versions ...uint64) {
	g.t.Helper()
	r := g.must(readReq(1, 1, chunk, 0, 4096))
	for _, v := range versions {
		exp := make([]byte, 4096)
		pattern(exp, v)
		if !r.Hole && string(r.Data) == string(exp) {
			return
		}
	}
	g.t.Fatalf("neither of the versions %v (hole: %v)", versions, r.Hole)
}

// Goal: a block that was new in the last group of the log, flushed and acked,
// and is being overwritten when the power goes, is not taken for one whose data
// never came. Once after a flush, once after a clean stop, once after a recovery
// that has just settled the doubt.
func TestOverwriteOfNewBlock(t *testing.T) {
	cfg := Config{LocalResolve: true, VerifyReads: true}
	t.Run("after a flush", func(t *testing.T) {
		g := newRig(t, testSize, cfg)
		g.fence(1, 1)
		g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
		g.must(&Request{Op: OpFlush, Volume: 1, Gen: 1})
		g.overwrite(cfg, writeReq(1, 1, 2, 0, 0, 4096, 2))
		g.wantOneOf(0, 1, 2)
	})
	t.Run("after a clean stop", func(t *testing.T) {
		g := newRig(t, testSize, cfg)
		g.fence(1, 1)
		g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
		g.must(&Request{Op: OpStop})
		g.open(cfg)
		g.overwrite(cfg, writeReq(1, 1, 2, 0, 0, 4096, 2))
		g.wantOneOf(0, 1, 2)
	})
	t.Run("after a recovery", func(t *testing.T) {
		g := newRig(t, testSize, cfg)
		g.fence(1, 1)
		g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
		g.must(&Request{Op: OpFlush, Volume: 1, Gen: 1})
		g.open(cfg)
		g.overwrite(cfg, writeReq(1, 1, 2, 0, 0, 4096, 2))
		g.wantOneOf(0, 1, 2)
	})
	t.Run("while it is flushed", func(t *testing.T) {
		g := newRig(t, testSize, cfg)
		g.fence(1, 1)
		g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
		w := writeReq(1, 1, 2, 0, 0, 4096, 2)
		g.core.Submit(w)
		g.collect()
		held := g.pending[0]
		g.pending = nil
		f := &Request{Op: OpFlush, Volume: 1, Gen: 1, Interval: 1, Drained: true}
		if st := g.do(f); st != transport.StatusOK {
			t.Fatalf("flush: %d", st)
		}
		if _, err := g.disk.WriteAt(held.io.Data, held.io.Off); err != nil {
			t.Fatal(err)
		}
		if err := g.disk.Flush(); err != nil {
			t.Fatal(err)
		}
		g.open(cfg)
		g.wantOneOf(0, 1, 2)
	})
}

// Goal: where the data of the last group never came, the block stays absent:
// what another chunk left in the slot does not show.
func TestStaleDataNeverShows(t *testing.T) {
	cfg := Config{LocalResolve: true, VerifyReads: true}
	g := newRig(t, testSize, cfg)
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 4096, 1))
	g.must(&Request{Op: OpFlush, Volume: 1, Gen: 1})
	slot, _ := g.core.slots.find(&chunkKey{volume: 1})
	stale := alignedBytes(pageSize)
	copy(stale, "another volume's secret")
	if _, err := g.disk.WriteAt(stale, g.core.lay.dataAt(slot)); err != nil {
		t.Fatal(err)
	}
	if err := g.disk.Flush(); err != nil { // as if the log page had come through and the data had not
		t.Fatal(err)
	}
	g.open(cfg)
	g.want(1, 1, 0, 0, 4096, 0)
}
