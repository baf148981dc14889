// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/server/disk"
	"braid/transport"
)

// rig drives a core over a disk in memory. Reads and writes happen when they
// complete, in an order that rnd draws; a flush covers what was complete when it
// began.
type rig struct {
	t       testing.TB
	disk    *disk.Mem
	core    *Core
	rnd     *rand.Rand
	pending []*rigIO
	replies []*Request
	failed  bool
	// each is called before each completion (crash enumeration).
	each func()
	// plant changes an I/O before it happens (planted errors).
	plant func(*rigIO)
}

type rigIO struct {
	io   *IO
	mark int
	data []byte
	off  int64
}

func newRig(t testing.TB, size int64, cfg Config) *rig {
	l, err := newLayout(size)
	if err != nil {
		t.Fatal(err)
	}
	return newRigWith(t, l, cfg)
}

func newRigWith(t testing.TB, l layout, cfg Config) *rig {
	d := disk.NewMem(l.size)
	if _, err := format(d, l, cluster.UUID{1, 2, 3}, cluster.UUID{9}, nil); err != nil {
		t.Fatal(err)
	}
	r := &rig{t: t, disk: d, rnd: rand.New(rand.NewPCG(1, 2))}
	r.open(cfg)
	return r
}

func (g *rig) open(cfg Config) {
	g.t.Helper()
	c, err := Open(g.disk, cfg)
	if err != nil {
		g.t.Fatalf("open: %v", err)
	}
	g.core, g.pending, g.replies, g.failed = c, nil, nil, false
}

// collect carries out effects: replies are kept, I/O becomes pending.
func (g *rig) collect() {
	for es := g.core.Effects(); len(es) > 0; es = g.core.Effects() {
		for _, e := range es {
			switch e.Kind {
			case EffectReply:
				g.replies = append(g.replies, e.Req)
			case EffectFailed:
				g.failed = true
			case EffectIO:
				for _, p := range g.pending {
					if e.IO.owner == ownFlush && p.io.owner == ownLog {
						g.t.Fatal("the device flush of a commit was issued before its log pages were written")
					}
				}
				g.pending = append(g.pending, &rigIO{io: e.IO, mark: g.disk.Mark(), data: e.IO.Data, off: e.IO.Off})
			}
		}
	}
}

// complete ends one pending I/O.
func (g *rig) complete(k int) {
	if g.each != nil {
		g.each()
	}
	p := g.pending[k]
	g.pending = append(g.pending[:k], g.pending[k+1:]...)
	if g.plant != nil {
		g.plant(p)
	}
	var err error
	switch p.io.Kind {
	case IORead:
		_, err = g.disk.ReadAt(p.io.Data, p.off)
	case IOWrite:
		_, err = g.disk.WriteAt(p.io.Data, p.off)
	case IOFlush:
		err = g.disk.FlushTo(min(p.mark, g.disk.Mark()))
	case IODiscard:
		err = g.disk.Discard(p.io.Off, p.io.Len)
	}
	g.core.IODone(p.io, err)
	g.collect()
}

// run goes on until nothing is pending.
func (g *rig) run() {
	g.collect()
	for len(g.pending) > 0 {
		g.complete(g.rnd.IntN(len(g.pending)))
	}
}

func (g *rig) inflight() (ws []disk.MemWrite) {
	for _, p := range g.pending {
		if p.io.Kind == IOWrite {
			ws = append(ws, disk.MemWrite{Off: p.io.Off, Data: append([]byte(nil), p.io.Data...)})
		}
	}
	return ws
}

// do submits a request and runs until it is answered.
func (g *rig) do(r *Request) transport.Status {
	g.t.Helper()
	g.core.Submit(r)
	g.run()
	for i, x := range g.replies {
		if x == r {
			g.replies = append(g.replies[:i], g.replies[i+1:]...)
			return r.Status
		}
	}
	g.t.Fatalf("op %d was not answered", r.Op)
	return 0
}

func (g *rig) must(r *Request) *Request {
	g.t.Helper()
	if st := g.do(r); st != transport.StatusOK {
		g.t.Fatalf("op %d: status %d (%v)", r.Op, st, g.core.Err())
	}
	return r
}

func (g *rig) fence(v cluster.VolumeID, gen cluster.Generation) {
	g.t.Helper()
	g.must(&Request{Op: OpFence, Volume: v, Gen: gen})
}

// pattern fills blocks so that each says which version it is.
func pattern(b []byte, version uint64) {
	for o := 0; o < len(b); o += cluster.BlockSize {
		x := version*0x9E3779B97F4A7C15 + uint64(o)
		for i := o; i < o+cluster.BlockSize; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], x)
			x = x*6364136223846793005 + 1442695040888963407
		}
	}
}

func sumsOf(b []byte) []byte {
	s := make([]byte, len(b)/cluster.BlockSize*8)
	for i := range len(s) / 8 {
		binary.LittleEndian.PutUint64(s[8*i:], xxhash.Sum64(b[i*cluster.BlockSize:(i+1)*cluster.BlockSize]))
	}
	return s
}

func writeReq(v cluster.VolumeID, gen cluster.Generation, interval, chunk uint64, off, n uint32,
	version uint64) *Request {
	b := alignedBytes(int(n))
	pattern(b, version)
	return &Request{Op: OpWrite, Volume: v, Gen: gen, Interval: interval, Chunk: chunk, Offset: off,
		Length: n, Data: b, Sums: sumsOf(b)}
}

func readReq(v cluster.VolumeID, gen cluster.Generation, chunk uint64, off, n uint32) *Request {
	return &Request{Op: OpRead, Volume: v, Gen: gen, Chunk: chunk, Offset: off, Length: n,
		Data: alignedBytes(int(n)), Sums: make([]byte, n/cluster.BlockSize*8)}
}

// want reads a range and compares it with a version, 0: zeroes.
func (g *rig) want(v cluster.VolumeID, gen cluster.Generation, chunk uint64, off, n uint32, version uint64) {
	g.t.Helper()
	r := g.must(readReq(v, gen, chunk, off, n))
	exp := make([]byte, n)
	if version != 0 {
		pattern(exp, version)
	}
	if r.Hole {
		if version != 0 {
			g.t.Fatalf("chunk %d offset %d: a hole instead of version %d", chunk, off, version)
		}
		return
	}
	if string(r.Data) != string(exp) {
		g.t.Fatalf("chunk %d offset %d: not version %d", chunk, off, version)
	}
	if string(r.Sums) != string(sumsOf(exp)) {
		g.t.Fatalf("chunk %d offset %d: wrong checksums", chunk, off)
	}
}

func (g *rig) flush(v cluster.VolumeID, gen cluster.Generation, interval uint64) {
	g.t.Helper()
	g.must(&Request{Op: OpFlush, Volume: v, Gen: gen, Interval: interval, Drained: true})
}

// reopen loses power and starts again.
func (g *rig) reopen(cfg Config) {
	g.t.Helper()
	g.disk = g.disk.Crash(g.rnd, g.inflight())
	g.open(cfg)
}
