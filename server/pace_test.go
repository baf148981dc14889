// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"

	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

// Goal: as a device gets full, writes that take a new chunk are slowed, and no other:
// neither those before nor those to what exists. Each is answered. Method: a device is
// written until it is full, several writes at a time, then what is there again.
func TestWritesAreSlowedBeforeTheDeviceIsFull(t *testing.T) {
	b := newFileDisk(t, testDiskSize)
	format(t, b)
	r := startRig(t, loop.Auto, newFakeManager(), b)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	const atATime = 4
	interval := uint64(0)
	write := func(chunk uint64) (stored int) {
		t.Helper()
		interval++
		for i := range uint64(atATime) {
			p.send(transport.Header{Op: transport.OpWrite, PG: uint32(testPG), Epoch: epoch, Interval: interval,
				Chunk: chunk + i, Length: 4096}, make([]byte, 4096))
		}
		for range atATime {
			switch s := p.receive().Status; s {
			case transport.StatusOK:
				stored++
			case transport.StatusNoSpace:
			default:
				t.Fatalf("a write ends with status %d", s)
			}
		}
		p.send(transport.Header{Op: transport.OpFlush, Interval: interval}, nil)
		if s := p.receive().Status; s != transport.StatusOK {
			t.Fatalf("a flush ends with status %d", s)
		}
		return stored
	}
	paced := &r.srv.devices[0].stats.paced
	chunks := uint64(0)
	for {
		n := write(chunks)
		if chunks == 0 && paced.Load() > 0 {
			t.Error("a write to an empty device is slowed")
		}
		chunks += uint64(n)
		if n < atATime {
			break
		}
	}
	slowed := paced.Load()
	if slowed == 0 || slowed > chunks/16+atATime {
		t.Errorf("of %d writes that took chunks %d were slowed", chunks, slowed)
	}
	for chunk := uint64(0); chunk+atATime <= chunks; chunk += atATime {
		if n := write(chunk); n != atATime {
			t.Errorf("%d of %d writes to what exists found space", n, atATime)
		}
	}
	if n := paced.Load(); n != slowed {
		t.Errorf("%d writes to what exists were slowed", n-slowed)
	}
	p.close()
	r.stop()
}

// Goal: the pause grows with what is used, up to its bound.
func TestPace(t *testing.T) {
	last := paceFor(0)
	if last != 0 {
		t.Errorf("a write waits %v where there is space", last)
	}
	for x := uint32(100); x <= store.ScarcityMost; x += 100 {
		if next := paceFor(x); next <= last {
			t.Errorf("%v at %d, and %v before", next, x, last)
		} else {
			last = next
		}
	}
	if last != paceMost || paceFor(5000) != paceMost {
		t.Errorf("the longest pause is %v", last)
	}
}
