// SPDX-License-Identifier: Apache-2.0

package core

import (
	"strings"
	"testing"
	"time"

	"braid/transport"
	"braid/transport/bio"
)

// Goal: a request's trace names each device that answered, in the order of time,
// and the devices' histograms count the same answers. Method: a write, which goes
// to two copies, a flush, and a read.
func TestTraceOfARequest(t *testing.T) {
	s := newStub(t)
	for op, answers := range map[bio.Op]int32{bio.Write: 2, bio.Read: 1} {
		r := &bio.Request{Op: op, Off: 8192, Len: 4096, Data: make([]byte, 4096)}
		r.Trace.Begin(s.now, s.now)
		s.do(r)
		if tr := &r.Trace; tr.HopCount != answers || tr.Granted != s.now || tr.Sent != s.now {
			t.Errorf("%v: trace %+v at %d", op, tr, s.now)
		}
		for _, h := range r.Trace.Kept() {
			if h.Device == 0 || h.Sent != s.now || h.Answered != s.now || h.Tries != 1 || h.Status != 0 {
				t.Errorf("%v: hop %+v", op, h)
			}
		}
		if op == bio.Write {
			flush := &bio.Request{Op: bio.Flush}
			s.do(flush)
			if flush.Trace.HopCount != 2 {
				t.Errorf("flush: trace %+v", flush.Trace)
			}
		}
	}
	var reads, writes, flushes uint64
	for _, d := range s.c.Devices() {
		reads += d.Answer[FrameRead].Count()
		writes += d.Answer[FrameWrite].Count()
		flushes += d.Answer[FrameFlush].Count()
		if d.Links != 1 || d.AwaySince != 0 || !d.InSync {
			t.Errorf("device %+v", d)
		}
	}
	if reads != 1 || writes != 2 || flushes != 2 {
		t.Errorf("%d reads, %d writes, %d flushes were answered", reads, writes, flushes)
	}
}

// Goal: waiting requests are grouped by what they wait for, with what happens
// next. Method: a write that nobody answers, and a read of the same blocks; then
// the devices go away.
func TestWaitingNamesTheReason(t *testing.T) {
	s := newStub(t)
	s.now += 1000
	s.c.Submit(s.now, &bio.Request{Op: bio.Write, Off: 4096, Len: 8192, Data: make([]byte, 8192)})
	s.c.Submit(s.now, &bio.Request{Op: bio.Read, Off: 8192, Len: 4096, Data: make([]byte, 4096)})
	later := s.now + int64(5*time.Second)
	find := func(reason WaitReason) *Wait {
		for _, w := range s.c.Waiting(later, int64(time.Second)) {
			if w.Reason == reason {
				return &w
			}
		}
		t.Errorf("nothing waits for %s: %+v", reason, s.c.Waiting(later, int64(time.Second)))
		return &Wait{}
	}
	if w := find(WaitRange); w.Requests != 1 || w.Op != bio.Read || w.Off != 8192 ||
		!strings.Contains(w.Why, "earlier write of 8K at 4096") || w.Since != s.now {
		t.Errorf("range lock: %+v", w)
	}
	if w := find(WaitAnswer); w.Device == 0 || w.Requests != 1 || w.Op != bio.Write || w.Next == "" {
		t.Errorf("answer: %+v", w)
	}
	for i := range s.c.links {
		if s.c.links[i].state == linkOpen {
			s.c.LinkClosed(s.now, int32(i))
		}
	}
	if w := find(WaitNotConnected); w.Device == 0 || !strings.Contains(w.Next, "in-sync sets") {
		t.Errorf("away: %+v", w)
	}
	if list := s.c.Waiting(later, int64(time.Hour)); len(list) != 0 {
		t.Errorf("nothing waits for an hour: %+v", list)
	}
}

// Goal: every status that an answer can have is told in words.
func TestStatusText(t *testing.T) {
	for _, s := range []transport.Status{transport.StatusStaleEpoch, transport.StatusRefused, transport.StatusRetry,
		transport.StatusBadSum, transport.StatusNoSpace} {
		if statusText(s) == "failed" {
			t.Errorf("status %d has no words", s)
		}
	}
}
