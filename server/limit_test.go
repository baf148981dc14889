// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"
	"time"

	"braid/transport"
	"braid/transport/loop"
)

// Goal: with a limit no answer to a read or a write leaves before its time, in their
// order and all of them; what is no I/O is not held back. Method: more writes than the
// limit allows in a moment, and the clock.
func TestIOPSLimit(t *testing.T) {
	b := newFileDisk(t, testDiskSize)
	format(t, b)
	r := startRig(t, loop.Auto, newFakeManager(), b)
	const limit, writes = 500, 40
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	d := r.srv.devices[0]
	d.loop.Call(func() { d.limit.each = perSecond(limit); d.limit.init(d) })
	began := time.Now()
	for range writes {
		p.send(transport.Header{Op: transport.OpWrite, PG: uint32(testPG), Epoch: epoch, Interval: 1,
			Length: 4096}, make([]byte, 4096))
		if s := p.receive().Status; s != transport.StatusOK {
			t.Fatalf("a write ends with status %d", s)
		}
	}
	least := time.Duration(writes)*time.Second/limit - time.Duration(limitBurst)
	if took := time.Since(began); took < least {
		t.Errorf("%d writes took %v, at %d a second at least %v", writes, took, limit, least)
	}
	p.send(transport.Header{Op: transport.OpFlush, Interval: 1}, nil)
	if s := p.receive().Status; s != transport.StatusOK {
		t.Fatalf("a flush ends with status %d", s)
	}
	// Answers that wait leave before the server does.
	for range 8 {
		p.send(transport.Header{Op: transport.OpRead, PG: uint32(testPG), Epoch: epoch, Length: 4096}, nil)
	}
	for range 8 {
		if s := p.receive().Status; s != transport.StatusOK {
			t.Fatalf("a read ends with status %d", s)
		}
	}
	p.close()
	r.stop()
}

// Goal: a drill's slow disk is slow, keeps the order, and is over by itself. Method:
// reads with a delay that ends while they go on, and the clock.
func TestSlowDiskEnds(t *testing.T) {
	b := newFileDisk(t, testDiskSize)
	format(t, b)
	r := startRig(t, loop.Auto, newFakeManager(), b)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	const delay, during = 50 * time.Millisecond, 200 * time.Millisecond
	d := r.srv.devices[0]
	began := time.Now()
	d.loop.Call(func() { d.limit.slow(delay, during) })
	read := func() time.Duration {
		begin := time.Now()
		p.send(transport.Header{Op: transport.OpRead, PG: uint32(testPG), Epoch: epoch, Length: 4096}, nil)
		if s := p.receive().Status; s != transport.StatusOK {
			t.Fatalf("a read ends with status %d", s)
		}
		return time.Since(begin)
	}
	if took := read(); took < delay && time.Since(began) < during {
		t.Errorf("a read of a slow disk took %v, at least %v", took, delay)
	}
	for time.Since(began) < during+delay {
		read()
	}
	read()
	d.loop.Call(func() {
		if d.limit.delay != 0 || d.limit.count != 0 {
			t.Errorf("the drill is over and %v stays, %d answers are held", time.Duration(d.limit.delay), d.limit.count)
		}
	})
	p.close()
	r.stop()
}
