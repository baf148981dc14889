// SPDX-License-Identifier: Apache-2.0

package store

import (
	"runtime"
	"testing"
)

// The core's own cost per request: I/O is free and moves nothing.
func BenchmarkCore(b *testing.B) {
	for _, c := range []struct {
		name  string
		flush bool
		read  bool
	}{{"read", false, true}, {"write", false, false}, {"write+flush", true, false}} {
		b.Run(c.name, func(b *testing.B) {
			g := newRig(b, 1<<30, Config{LocalResolve: true})
			g.fence(1, 1)
			for i := range uint64(256) {
				g.must(writeReq(1, 1, 1, i, 0, 64<<10, i))
			}
			n := &nullRig{core: g.core}
			var rs []*Request
			for range 32 {
				r := writeReq(1, 1, 1, 0, 0, 4096, 5)
				if c.read {
					r = readReq(1, 1, 0, 0, 4096)
				}
				rs = append(rs, r)
			}
			f := &Request{Op: OpFlush, Volume: 1, Gen: 1, Drained: true}
			x := uint64(1)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += len(rs) {
				for _, r := range rs {
					x = x*6364136223846793005 + 1442695040888963407
					r.Chunk, r.Offset, r.Interval = x>>40%256, uint32(x>>20%16)*4096, uint64(i)
					n.core.Submit(r)
				}
				if c.flush {
					n.run()
					f.Interval = uint64(i)
					n.core.Submit(f)
				}
				n.run()
			}
		})
	}
}

// Goal: memory per TiB of written chunks stays within 1.2 GiB. The tables that
// grow with the device are measured; the rest is bounded.
func TestMemory(t *testing.T) {
	const chunks = 1 << 20 // 1 TiB
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	l, err := newLayout(chunks << chunkShift)
	if err != nil {
		t.Fatal(err)
	}
	c := newCore(superblock{layout: l}, Config{})
	c.al.init(c.cfg.ALSlots, 0)
	c.commit.init(c.log.groupMax, len(c.al.ent))
	for c.cache.made < c.cache.limit {
		c.cache.grow()
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	used := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d MiB for a core with 1 TiB of chunks and a full page cache", used>>20)
	if used > 400<<20 {
		t.Errorf("%d MiB", used>>20)
	}
	runtime.KeepAlive(c)
}
