// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"testing"
	"time"

	"braid/transport/bio"
)

// request makes one that has gone through all its steps, at and after a time.
func measured(op bio.Op, at, took int64) (*bio.Request, int64) {
	r := &bio.Request{Op: op, Len: 4096}
	r.Trace.Begin(at, at+took/10)
	r.Trace.Granted = at + 2*took/10
	r.Trace.Sent = at + 3*took/10
	r.Trace.AddHop(bio.Hop{Device: 7, Sent: r.Trace.Sent, Answered: at + 9*took/10})
	r.Trace.Done = at + 9*took/10
	return r, at + took
}

// Goal: the steps of a request add up to its whole, and the slowest of each period
// are kept, the slowest first; quick reads are not pushed out by slow writes. Method:
// three periods; nothing runs on a loop.
func TestMeterKeepsTheSlowest(t *testing.T) {
	p := &Port{}
	m := &p.meter
	at := int64(time.Hour)
	for period := range 3 {
		for i := range 1000 {
			// In a scrambled order, each period slower than the one before.
			took := int64(1+(i*617)%1000+1000*period) * 1000
			m.replied(measured(bio.Write, at, took))
		}
		m.replied(measured(bio.Read, at, 1000))
		at += int64(SlowPeriod) + 1
	}
	list := p.Slowest()
	if len(list) != SlowRequests+2 {
		t.Fatalf("%d requests are kept, want %d writes and 2 reads", len(list), SlowRequests)
	}
	for _, r := range list[SlowRequests:] {
		if r.Op != bio.Read {
			t.Errorf("%v of %d is the quickest, want a read", r.Op, r.Took)
		}
	}
	for i, r := range list[:SlowRequests] {
		if want := int64(3000-i) * 1000; r.Took != want || r.Trace.HopCount != 1 || r.Trace.Hops[0].Device != 7 {
			t.Errorf("place %d took %d, want %d; trace %+v", i, r.Took, want, r.Trace)
		}
	}
	s := p.Meters()
	total := s.Total[KindWrite]
	if total.Count() != 3000 || s.Lock.Count() != 3003 {
		t.Errorf("%d requests, %d locks", total.Count(), s.Lock.Count())
	}
	sum := s.Receive.Sum + s.Wait.Sum + s.Cluster.Sum + s.Answer.Sum
	const unmeasured = 3 * 100 // of reads: until all their bytes were there
	if all := total.Sum + s.Total[KindRead].Sum - unmeasured; sum != all {
		t.Errorf("the steps take %v, the requests %v", sum, all)
	}
}

// Goal: measuring allocates nothing, and an answer that never got to the device
// is not counted.
func TestMeterAllocatesNothing(t *testing.T) {
	p := &Port{}
	at := int64(time.Hour)
	r, end := measured(bio.Read, at, 1000)
	if n := testing.AllocsPerRun(1000, func() {
		end += 1000
		p.meter.replied(r, end)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	p = &Port{}
	r.Trace.Submitted = 0
	p.meter.replied(r, end)
	if m := p.Meters(); m.Total[KindRead].Count() != 0 {
		t.Error("a request that was refused is counted")
	}
}

// BenchmarkReplied is what the measuring of a request costs its front end.
func BenchmarkReplied(b *testing.B) {
	p := &Port{}
	r, end := measured(bio.Read, int64(time.Hour), 100_000)
	for i := range b.N {
		p.meter.replied(r, end+int64(i&1023)*100)
	}
}
