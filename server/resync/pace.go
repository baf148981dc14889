// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"time"

	"braid/cluster"
)

// Terms of the pace.
const (
	paceFloor   = 8 << 20 // bytes per second: a copy comes back, however busy the rest is
	paceStart   = 32 << 20
	paceCeiling = 4 << 30 // as good as no bound
	paceEvery   = int64(100 * time.Millisecond)
	paceWindow  = int64(5 * time.Second) // of the lowest latency
	paceDip     = int64(200 * time.Millisecond)
	paceFresh   = int64(500 * time.Millisecond)
	paceSlack   = 2000 // µs that latency may rise at least
)

// pacer sets how many bytes a second are compared and copied, by what that does to
// clients. Each device that takes part, this one and the sources, tells how long
// its clients' requests have taken lately. Where that exceeds twice the lowest
// that was seen in the last seconds, copying slows down at once; while it does
// not, it becomes faster step by step; where no client is served, quickly.
//
// What clients see without a copy beside them is learned in dips: when they come,
// and once in each window, the rate is at its least for a moment.
type pacer struct {
	most  int64 // bytes per second; 0: no bound
	rate  int64 // as it is
	full  int64 // outside of a dip
	dip   int64 // until then, or since then there was none
	busy  bool  // clients are served
	asked int64 // when the rate was looked at last
	done  int64 // bytes since
	front map[cluster.DeviceID]*front
}

// front is what one device's clients see.
type front struct {
	now       int64 // µs, newest
	heard     int64
	low, prev int64 // lowest of this window and of the one before
	since     int64 // of this window
}

func newPacer(most int64) pacer {
	return pacer{most: most, rate: paceStart, full: paceStart, front: map[cluster.DeviceID]*front{}}
}

// hear takes what a device says of its clients' requests: microseconds, 0: it has
// served none lately.
func (p *pacer) hear(now int64, id cluster.DeviceID, micros uint32) {
	if micros == 0 {
		return
	}
	f := p.front[id]
	if f == nil {
		f = &front{low: int64(micros), prev: int64(micros), since: now}
		p.front[id] = f
	}
	if now-f.since > paceWindow {
		f.prev, f.low, f.since = f.low, int64(micros), now
	}
	f.now, f.heard, f.low = int64(micros), now, min(f.low, int64(micros))
}

// tick sets the rate anew, from time to time.
func (p *pacer) tick(now int64) {
	passed := now - p.asked
	if passed < paceEvery {
		return
	}
	if now < p.dip {
		return
	}
	// Where less is done than is allowed, the rate stays near to what is done, so
	// that it need not come down from far when clients suffer.
	if done := p.done * int64(time.Second) / passed; done > 0 && p.full > 4*done {
		p.full = max(4*done, paceStart)
	}
	p.asked, p.done = now, 0
	busy, hurt := false, false
	for _, f := range p.front {
		if now-f.heard > paceFresh {
			continue
		}
		busy = true
		low := min(f.low, f.prev)
		hurt = hurt || f.now > low+max(low, paceSlack)
	}
	came := busy && !p.busy
	p.busy = busy
	switch {
	case came:
		p.full = paceStart
	case hurt:
		p.full = p.full * 7 / 10
	case busy:
		p.full += p.full/10 + 1<<20
	default:
		p.full *= 2
	}
	p.full = min(max(p.full, paceFloor), paceCeiling)
	if p.most > 0 {
		p.full = min(p.full, p.most)
	}
	p.rate = p.full
	if came || busy && now-p.dip > paceWindow {
		p.dip, p.rate = now+paceDip, min(p.full, paceFloor)
	}
	if came {
		clear(p.front)
	}
}
