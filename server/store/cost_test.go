// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"testing"

	"braid/cluster"
	"braid/server/disk"
)

// nullRig completes every I/O at once and moves no data, so that only the core's
// own work shows. Metadata goes to disk, if there is one.
type nullRig struct {
	core *Core
	disk *disk.Mem
	ios  []*IO
	done int
}

func (n *nullRig) run() {
	for {
		es := n.core.Effects()
		if len(es) == 0 && len(n.ios) == 0 {
			return
		}
		for _, e := range es {
			switch e.Kind {
			case EffectReply:
				n.done++
				if e.Req.Status != 0 {
					panic(fmt.Sprintf("op %d: status %d", e.Req.Op, e.Req.Status))
				}
			case EffectIO:
				n.ios = append(n.ios, e.IO)
			}
		}
		for _, io := range n.ios {
			n.core.IODone(io, n.meta(io))
		}
		n.ios = n.ios[:0]
	}
}

func (n *nullRig) meta(io *IO) (err error) {
	if n.disk == nil || !io.Meta {
		return nil
	}
	switch io.Kind {
	case IORead:
		_, err = n.disk.ReadAt(io.Data, io.Off)
	case IOWrite:
		_, err = n.disk.WriteAt(io.Data, io.Off)
	case IOFlush:
		err = n.disk.Flush()
	}
	return err
}

// Goal: no allocation per 4 KiB read, hot write, and write with flush, in
// steady state.
func TestAllocations(t *testing.T) {
	g := newRig(t, 256<<20, Config{LocalResolve: true})
	g.fence(1, 1)
	for i := range uint64(64) {
		g.must(writeReq(1, 1, 1, i, 0, 64<<10, i))
	}
	n := &nullRig{core: g.core}
	w := writeReq(1, 1, 1, 0, 0, 4096, 5)
	r := readReq(1, 1, 0, 0, 4096)
	f := &Request{Op: OpFlush, Volume: 1, Gen: 1, Interval: 1, Drained: true}
	k := uint64(0)
	work := func(reqs ...*Request) func() {
		return func() {
			k++
			for _, q := range reqs {
				q.Chunk = k * 7 % 64
				q.Interval = k
				n.core.Submit(q)
				n.run()
			}
		}
	}
	for _, c := range []struct {
		name string
		fn   func()
	}{{"read", work(r)}, {"write", work(w)}, {"write and flush", work(w, f)}} {
		for range 2000 {
			c.fn()
		}
		if a := testing.AllocsPerRun(2000, c.fn); a > 0.01 {
			t.Errorf("%s: %.3f allocations", c.name, a)
		}
	}
}

func (n *nullRig) counters() string {
	s := n.core.Stats()
	w := float64(max(s.Writes, 1))
	return fmt.Sprintf("per write: %.4f device flushes, %.4f log pages, %.4f chunk pages, "+
		"%.4f header pages, %.4f page reads (%d writes, AL %d/%d, pressure %d)",
		float64(s.DeviceFlushes)/w, float64(s.LogPages)/w, float64(s.FoldPages)/w,
		float64(s.HeaderPages)/w, float64(s.PageReads)/w, s.Writes, s.AL, s.ALSlots, n.core.Pressure())
}

// client writes 4 KiB blocks at depth and flushes like a client that follows
// the pressure.
type costClient struct {
	n        *nullRig
	depth    int
	interval uint64
	reqs     []*Request
}

func (c *costClient) write(chunk func(i int) uint64, count, flushEvery int) {
	for i := 0; i < count; {
		for k := range c.depth {
			r := c.reqs[k]
			r.Chunk, r.Interval = chunk(i), c.interval
			r.Offset = uint32(i*37%blocks) * cluster.BlockSize
			c.n.core.Submit(r)
			i++
		}
		c.n.run()
		if i%flushEvery < c.depth || c.n.core.Pressure() > 250 {
			c.n.core.Submit(&Request{Op: OpFlush, Volume: 1, Gen: 1, Interval: c.interval, Drained: true})
			c.interval++
			c.n.run()
		}
	}
}

func newCostClient(t *testing.T, slots, depth int) *costClient {
	g := newRig(t, 8<<30, Config{LocalResolve: true, ALSlots: slots, PageCache: 4 * slots})
	g.fence(1, 1)
	c := &costClient{n: &nullRig{core: g.core, disk: g.disk}, depth: depth, interval: 1}
	for range depth {
		c.reqs = append(c.reqs, writeReq(1, 1, 1, 0, 0, 4096, 5))
	}
	return c
}

// Goal: what 4 KiB writes cost in metadata, held as bounds: a hot set costs next
// to nothing, a set of 8 times the activity log about two pages, fsync after
// each write one log page and one device flush.
func TestCosts(t *testing.T) {
	const slots = 512
	t.Run("hot", func(t *testing.T) {
		c := newCostClient(t, slots, 32)
		warm := func(i int) uint64 { return uint64(i) % 128 }
		c.write(warm, 4096, 1<<30)
		c.n.core.stats = Stats{}
		c.write(warm, shorter(64000, 8), 1<<30)
		s := c.n.core.Stats()
		t.Log(c.n.counters())
		if s.LogPages+s.FoldPages+s.HeaderPages > s.Writes/200 || s.DeviceFlushes > s.Writes/1000 {
			t.Error("a hot set costs too much")
		}
	})
	t.Run("eight times the log", func(t *testing.T) {
		c := newCostClient(t, slots, 32)
		x := uint64(1)
		cold := func(int) uint64 {
			x = x*6364136223846793005 + 1442695040888963407
			return x >> 33 % (8 * slots)
		}
		c.write(cold, shorter(32000, 2), 1<<30)
		c.n.core.stats = Stats{}
		c.write(cold, shorter(64000, 8), 1<<30)
		s := c.n.core.Stats()
		t.Log(c.n.counters())
		if s.LogPages+s.FoldPages+s.HeaderPages > s.Writes*5/2 || s.DeviceFlushes > s.Writes/10 {
			t.Error("a cold set costs too much")
		}
	})
	t.Run("fsync each", func(t *testing.T) {
		c := newCostClient(t, slots, 1)
		hot := func(i int) uint64 { return uint64(i) % 128 }
		c.write(hot, 4096, 1)
		c.n.core.stats = Stats{}
		c.write(hot, shorter(32000, 8), 1)
		s := c.n.core.Stats()
		t.Log(c.n.counters())
		if s.LogPages > s.Writes*11/10 || s.DeviceFlushes > s.Writes*11/10 {
			t.Error("fsync costs more than one page and one device flush")
		}
	})
}
