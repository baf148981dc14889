// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"testing"
	"time"

	"braid/cluster"
	"braid/transport/bio"
)

// Goal: a slow read is asked elsewhere; the first good answer counts, the late
// one touches nothing. Method: hold one device.
func TestHedgedRead(t *testing.T) {
	s := newScript(t, nil)
	s.mustEnd("write", s.write(0, block(1)), nil)
	for _, d := range s.devs {
		s.hold[d.id] = true
	}
	r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(0)})
	first := s.to[len(s.to)-1]
	for _, d := range s.devs {
		s.hold[d.id] = d.id == first
	}
	s.tick(20 * time.Millisecond)
	if s.isDone(r) {
		t.Fatal("a hedge before its time")
	}
	s.tick(time.Second)
	s.mustEnd("read", r, nil)
	if !bytes.Equal(r.Data, block(1)) || s.core.Stats().Hedges != 1 {
		t.Errorf("hedges: %d", s.core.Stats().Hedges)
	}
	copy(r.Data, block(9))
	s.hold[first] = false
	s.settle()
	if !bytes.Equal(r.Data, block(9)) {
		t.Error("a late reply wrote into memory that was given back")
	}
}

// Goal: where reads are quick, a slow one is asked elsewhere long before the bound;
// where they are slow all the same, it is not. Method: reads of a steady latency,
// then one that is held for a time between.
func TestHedgeFollowsLatency(t *testing.T) {
	for _, usual := range []time.Duration{2 * time.Millisecond, 45 * time.Millisecond} {
		s := newScript(t, nil)
		s.mustEnd("write", s.write(0, block(1)), nil)
		read := func(took time.Duration) *bio.Request {
			for _, d := range s.devs {
				s.hold[d.id] = true
			}
			r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(0)})
			s.now += int64(took)
			return r
		}
		for range 40 {
			r := read(usual)
			s.hold = map[cluster.DeviceID]bool{}
			s.settle()
			s.mustEnd("a usual read", r, nil)
		}
		before := s.core.Stats().Hedges
		read(35 * time.Millisecond)
		s.tick(0)
		if hedged := s.core.Stats().Hedges > before; hedged != (usual < 10*time.Millisecond) {
			t.Errorf("reads take %v, one takes 35 ms: hedged %v", usual, hedged)
		}
	}
}
