// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"slices"
	"time"

	"braid/transport/bio"
	"braid/transport/meter"
)

// SlowRequests is how many of the slowest requests of each kind a port remembers of
// each period of SlowPeriod. It keeps the running period and the one before.
const (
	SlowRequests = 16
	SlowPeriod   = 30 * time.Second
)

// Kinds of requests that are told apart in Meters.
const (
	KindRead = iota
	KindWrite
	KindFlush
	KindOther // trim, write zeroes, block status, cache
	Kinds
)

// KindNames are for labels and tables.
var KindNames = [Kinds]string{"read", "write", "flush", "other"}

// portMeter measures the answered requests of a port. A request of more than 1
// MiB counts by its pieces, as far as each has an answer of its own.
type portMeter struct {
	total   [Kinds]meter.Histogram // from header to answer
	receive meter.Histogram        // of it, until all its bytes were there
	wait    meter.Histogram        // from there to the first frame
	lock    meter.Histogram        // of it, for earlier requests that overlap
	cluster meter.Histogram        // from there until the device was done
	reply   meter.Histogram        // from there until the answer was handed to the socket
	slow    [Kinds][2]slowest      // of each kind; the running period first
}

// replied counts a request whose answer has been handed to the socket.
func (m *portMeter) replied(r *bio.Request, now int64) {
	t := &r.Trace
	if t.Submitted == 0 { // it never got to the device
		return
	}
	took := now - t.Arrived
	kind := KindOf(r.Op)
	m.total[kind].Record(took)
	if r.Op == bio.Write {
		m.receive.Record(t.Submitted - t.Arrived)
	}
	if t.Sent != 0 {
		m.wait.Record(t.Sent - t.Submitted)
		m.cluster.Record(t.Done - t.Sent)
		if t.Granted != t.Submitted {
			m.lock.Record(t.Granted - t.Submitted)
		}
	}
	m.reply.Record(now - t.Done)
	slow := &m.slow[kind]
	if now-slow[0].since > int64(SlowPeriod) {
		slow[1] = slow[0]
		slow[0] = slowest{since: now}
	}
	if took > slow[0].least {
		slow[0].add(r, now, took)
	}
}

// KindOf is the kind of requests that op counts as.
func KindOf(op bio.Op) int {
	switch op {
	case bio.Read:
		return KindRead
	case bio.Write:
		return KindWrite
	case bio.Flush:
		return KindFlush
	}
	return KindOther
}

// SlowRequest is one request with all its steps, in loop time.
type SlowRequest struct {
	Op       bio.Op
	Off, Len uint64
	Failed   bool
	Replied  int64
	Took     int64
	Trace    bio.Trace
}

// slowest keeps the slowest requests of a period, in no order. least is what a
// request must exceed to get in.
type slowest struct {
	since int64
	least int64
	n     int
	list  [SlowRequests]SlowRequest
}

func (s *slowest) add(r *bio.Request, now, took int64) {
	at := s.n
	if at < SlowRequests {
		s.n++
	} else {
		at = s.quickest()
	}
	s.list[at] = SlowRequest{Op: r.Op, Off: r.Off, Len: r.Len, Failed: r.Err != nil, Replied: now,
		Took: took, Trace: r.Trace}
	if s.n == SlowRequests {
		s.least = s.list[s.quickest()].Took
	}
}

func (s *slowest) quickest() int {
	q := 0
	for i := range s.list {
		if s.list[i].Took < s.list[q].Took {
			q = i
		}
	}
	return q
}

// Meters is what a port has measured since it was made.
type Meters struct {
	Total                                [Kinds]meter.Snapshot
	Receive, Lock, Wait, Cluster, Answer meter.Snapshot
}

// Meters copies the histograms.
func (p *Port) Meters() Meters {
	m := &p.meter
	out := Meters{Receive: m.receive.Snapshot(), Lock: m.lock.Snapshot(), Wait: m.wait.Snapshot(),
		Cluster: m.cluster.Snapshot(), Answer: m.reply.Snapshot()}
	for i := range out.Total {
		out.Total[i] = m.total[i].Snapshot()
	}
	return out
}

// Slowest returns the slowest requests of each kind, of the two newest periods in
// which there were any of it; all together the slowest first.
func (p *Port) Slowest() []SlowRequest {
	slower := func(a, b SlowRequest) int { return int(b.Took - a.Took) }
	var out []SlowRequest
	for kind := range p.meter.slow {
		var of []SlowRequest
		for i := range p.meter.slow[kind] {
			s := &p.meter.slow[kind][i]
			of = append(of, s.list[:s.n]...)
		}
		slices.SortFunc(of, slower)
		out = append(out, of[:min(len(of), SlowRequests)]...)
	}
	slices.SortFunc(out, slower)
	return out
}
