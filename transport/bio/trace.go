// SPDX-License-Identifier: Apache-2.0

package bio

// MaxHops is how many answers of devices a Trace keeps. Where there are more, the
// slowest stay.
const MaxHops = 6

// Trace is when a request reached its steps, in the time of its loop (ns). 0: it
// did not, or the step has no meaning for it. The front end calls Begin; the
// device fills in the rest as far as it can.
type Trace struct {
	Arrived   int64 // its header was parsed
	Submitted int64 // all its bytes were there, and the device got it
	Granted   int64 // no earlier request overlaps any more
	Sent      int64 // its first frame was given to a connection
	Done      int64 // the device completed it
	HopCount  int32 // answers, also those that are not kept
	Hops      [MaxHops]Hop
}

// Hop is one device's share of a request: a frame and its answer.
type Hop struct {
	Device   uint32 // the cluster's number of it
	Status   uint16 // of the answer; 0: it went well
	Tries    uint8  // frames so far, this one included
	Sent     int64  // loop time
	Answered int64
	Server   uint32 // µs from the header's arrival at the server to its answer
	Store    uint32 // µs of these in the server's store: log, disk, and the queues before them
}

// Begin forgets an earlier use.
func (t *Trace) Begin(arrived, now int64) {
	t.Arrived, t.Submitted = arrived, now
	t.Granted, t.Sent, t.Done, t.HopCount = 0, 0, 0, 0
}

// Kept are the hops that are there, in no particular order once there were more
// than MaxHops.
func (t *Trace) Kept() []Hop { return t.Hops[:min(t.HopCount, MaxHops)] }

// AddHop keeps an answer, unless all that are kept took longer.
func (t *Trace) AddHop(h Hop) {
	at := t.HopCount
	t.HopCount++
	if at < MaxHops {
		t.Hops[at] = h
		return
	}
	quickest := 0
	for i := range t.Hops {
		if t.Hops[i].took() < t.Hops[quickest].took() {
			quickest = i
		}
	}
	if h.took() > t.Hops[quickest].took() {
		t.Hops[quickest] = h
	}
}

func (h *Hop) took() int64 { return h.Answered - h.Sent }
