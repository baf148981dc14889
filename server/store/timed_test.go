// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"testing"

	"braid/cluster"
	"braid/server/disk"
	"braid/transport"
)

// timedDisk completes I/O in virtual time: a device whose reads and writes take
// 0.1 ms, any number at once, and whose flushes take 2 ms. Data is not kept.
type timedDisk struct {
	core *Core
	disk *disk.Mem // metadata
	now  int64     // microseconds
	ios  []timedIO
	done func(*Request)
}

type timedIO struct {
	at int64
	io *IO
}

const (
	timedFlush    = 2000
	timedTransfer = 100
)

// pump carries out effects, and step ends what ends next.
func (d *timedDisk) pump() {
	for es := d.core.Effects(); len(es) > 0; es = d.core.Effects() {
		for _, e := range es {
			switch e.Kind {
			case EffectReply:
				d.done(e.Req)
			case EffectIO:
				at := d.now + timedTransfer
				if e.IO.Kind == IOFlush {
					at = d.now + timedFlush
				}
				d.ios = append(d.ios, timedIO{at, e.IO})
			}
		}
	}
}

func (d *timedDisk) step() {
	first := 0
	for i := range d.ios {
		if d.ios[i].at < d.ios[first].at {
			first = i
		}
	}
	x := d.ios[first]
	d.ios = append(d.ios[:first], d.ios[first+1:]...)
	d.now = x.at
	var err error
	switch {
	case x.io.Kind == IOFlush:
		err = d.disk.Flush()
	case !x.io.Meta:
	case x.io.Kind == IORead:
		_, err = d.disk.ReadAt(x.io.Data, x.io.Off)
	case x.io.Kind == IOWrite:
		_, err = d.disk.WriteAt(x.io.Data, x.io.Off)
	}
	d.core.IODone(x.io, err)
	d.pump()
}

// timedClient keeps depth writes of 4 KiB going and minds the pressure as sdc
// does: it flushes from 500 on, and from 800 on holds new writes meanwhile.
type timedClient struct {
	timedDisk
	chunk    func(i int) uint64
	interval uint64
	out      map[uint64]int // writes under way, by interval
	ready    []*Request
	flush    *Request
	flushing uint64 // interval that is being flushed, 0: none
	sent     bool
	written  int
	refused  int
	pressed  int
}

func newTimedClient(t *testing.T, slots, depth int) *timedClient {
	g := newRig(t, 8<<30, Config{LocalResolve: true, ALSlots: slots, PageCache: 4 * slots})
	g.fence(1, 1)
	c := &timedClient{timedDisk: timedDisk{core: g.core, disk: g.disk}, interval: 1, out: map[uint64]int{},
		flush: &Request{Op: OpFlush, Volume: 1, Gen: 1, Drained: true}}
	c.done = c.ended
	for range depth {
		c.ready = append(c.ready, writeReq(1, 1, 1, 0, 0, 4096, 5))
	}
	return c
}

func (c *timedClient) ended(r *Request) {
	if r == c.flush {
		c.flushing, c.sent = 0, false
		c.pressed = 0
		return
	}
	c.out[r.Interval]--
	c.ready = append(c.ready, r)
	c.pressed = c.core.Pressure()
	switch r.Status {
	case transport.StatusOK:
		c.written++
	case transport.StatusLogFull:
		c.refused++
		c.pressed = 1000
	default:
		panic(fmt.Sprint("status ", r.Status))
	}
}

// run writes until count more are done; fsync: a flush after every write.
func (c *timedClient) run(count int, fsync bool) {
	c.core.stats = Stats{}
	end := c.written + count
	for c.written < end {
		want := c.pressed >= 500 || fsync && c.out[c.interval] == 0 && c.core.dirty.count > 0
		if c.flushing == 0 && want {
			c.flushing = c.interval
			c.interval++
		}
		if c.flushing != 0 && !c.sent && c.drained() {
			c.sent, c.flush.Interval = true, c.flushing
			c.core.Submit(c.flush)
		}
		hold := c.flushing != 0 && (c.pressed >= 800 || fsync)
		for len(c.ready) > 0 && !hold {
			r := c.ready[0]
			c.ready = c.ready[1:]
			r.Chunk, r.Interval = c.chunk(c.written), c.interval
			r.Offset = uint32(c.written*37%blocks) * cluster.BlockSize
			c.out[c.interval]++
			c.core.Submit(r)
		}
		if c.pump(); len(c.ios) > 0 {
			c.step()
		}
	}
}

func (c *timedClient) drained() bool {
	for i, n := range c.out {
		if i <= c.flushing && n > 0 {
			return false
		}
	}
	return true
}

// Goal: what 4 KiB writes cost on a device whose flush takes 2 ms, with the
// client's answer to pressure: a hot set nothing, 8 times the activity log a small
// part of a flush each (those that wait share one), a synced write one flush and
// one page. Virtual time: the figures are the same on every machine.
func TestCostsOnSlowFlush(t *testing.T) {
	const slots = 512
	hot := func(i int) uint64 { return uint64(i) % 128 }
	x := uint64(1)
	cold := func(int) uint64 {
		x = x*6364136223846793005 + 1442695040888963407
		return x >> 33 % (8 * slots)
	}
	for _, k := range []struct {
		name    string
		chunk   func(int) uint64
		depth   int
		fsync   bool
		flushes float64 // most per write
		pages   float64
		iops    int // least, in virtual time
	}{
		{"hot", hot, 32, false, 0.001, 0.005, 300000},
		{"8 times the log, 32 at once", cold, 32, false, 0.07, 1.3, 7500},
		{"8 times the log, 128 at once", cold, 128, false, 0.02, 1.3, 27000},
		{"hot, fsync each", hot, 1, true, 1.02, 1.3, 400},
	} {
		t.Run(k.name, func(t *testing.T) {
			c := newTimedClient(t, slots, k.depth)
			c.chunk = k.chunk
			n := shorter(16000, 8)
			if k.fsync {
				n = shorter(5000, 8)
			}
			c.run(2*n, k.fsync) // warm
			from := c.now
			c.run(n, k.fsync)
			s := c.core.Stats()
			w := float64(s.Writes)
			pages := float64(s.LogPages+s.FoldPages+s.HeaderPages) / w
			iops := int(float64(n) / (float64(c.now-from+1) / 1e6))
			t.Logf("per write: %.4f flushes, %.3f log pages, %.3f chunk and %.3f header pages, %.3f page reads; "+
				"%d writes/s, %d refused", float64(s.DeviceFlushes)/w, float64(s.LogPages)/w, float64(s.FoldPages)/w,
				float64(s.HeaderPages)/w, float64(s.PageReads)/w, iops, c.refused)
			if f := float64(s.DeviceFlushes) / w; f > k.flushes || pages > k.pages || iops < k.iops {
				t.Errorf("%.4f flushes (most %.4f), %.3f pages (most %.3f), %d writes/s (least %d)", f, k.flushes,
					pages, k.pages, iops, k.iops)
			}
		})
	}
}
