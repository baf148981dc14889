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
	paceStep    = int64(300 * time.Millisecond) // beside clients: what they see follows after that
	paceAlone   = int64(800 * time.Millisecond) // at the floor, until what clients see is their own
	paceKept    = int64(30 * time.Second)       // what was learned there holds so long
	paceFresh   = int64(500 * time.Millisecond)
	pacePatient = int64(5 * time.Millisecond / time.Microsecond) // µs
)

// pacer sets how many bytes a second are compared and copied, by what that does to
// clients. Each device that takes part, this one and the sources, tells the 99th
// percentile of its clients' reads and writes of late. Where that is above the aim,
// copying slows down, at once and as often as what clients see has had the time to
// follow; while it is not, copying becomes faster step by step; where no client is
// served, quickly.
//
// The aim is what an operator has set. Otherwise it is 5 ms, or, on a device whose
// clients wait for longer even if hardly anything is copied, twice that: it is learned
// at the least rate, which comes by itself where the aim is too tight, and forgotten
// after a while, since clients change. Where copies are missing the aim is twice as
// much: until they are there, another fault may lose data.
type pacer struct {
	most  int64 // bytes per second; 0: no bound
	short bool  // some group has fewer copies than it should
	aim   int64 // µs, of the operator; 0: none
	rate  int64 // as it is
	busy  bool  // clients are served
	wall  int64 // the rate at which clients suffered last; near to it, steps are small
	low   int64 // since when the rate is at its least; 0: it is not
	acted int64 // when the rate was changed last
	asked int64 // when the rate was looked at last
	began int64 // when counting of done began
	done  int64 // bytes since
	front map[cluster.DeviceID]*front
}

// front is what one device's clients see, in µs.
type front struct {
	now     int64 // the 99th percentile, newest
	heard   int64
	alone   int64 // at the least rate; 0: not known
	learned int64
}

func newPacer(most int64) pacer {
	return pacer{most: most, rate: paceStart, front: map[cluster.DeviceID]*front{}}
}

// hear takes what a device says of its clients' requests: microseconds, 0: it has
// served none lately.
func (p *pacer) hear(now int64, id cluster.DeviceID, micros uint32) {
	if micros == 0 {
		return
	}
	f := p.front[id]
	if f == nil {
		f = &front{}
		p.front[id] = f
	}
	f.now, f.heard = int64(micros), now
}

// suffer reports whether clients of any device are served, and wait for too long.
func (p *pacer) suffer(now int64) (busy, hurt bool) {
	for _, f := range p.front {
		if now-f.heard > paceFresh {
			continue
		}
		busy = true
		if f.alone != 0 && now-f.learned > paceKept {
			f.alone = 0
		}
		if p.low != 0 && now-p.low >= paceAlone && (f.alone == 0 || f.now > 2*f.alone) {
			f.alone, f.learned = f.now, now
		}
		aim := p.aim
		if aim == 0 {
			if aim = max(pacePatient, 2*f.alone); p.short {
				aim *= 2
			}
		}
		hurt = hurt || f.now > aim
	}
	return busy, hurt
}

// tick sets the rate anew, from time to time.
func (p *pacer) tick(now int64) {
	if now-p.asked < paceEvery {
		return
	}
	p.asked = now
	busy, hurt := p.suffer(now)
	came := busy && !p.busy
	p.busy = busy
	if busy && !came && now-p.acted < paceStep {
		return
	}
	// Where less is done than is allowed, the rate stays near to what is done, so
	// that it need not come down from far when clients suffer.
	if passed := now - p.began; passed > 0 && p.done > 0 {
		if done := p.done * int64(time.Second) / passed; p.rate > 4*done {
			p.rate = max(4*done, paceStart)
		}
	}
	p.acted, p.began, p.done = now, now, 0
	switch {
	case came:
		p.rate, p.wall = paceStart, 0
	case hurt:
		p.wall = p.rate
		p.rate = p.rate * 7 / 10
	case busy && p.rate > p.wall*8/10 && p.rate < p.wall*12/10:
		p.rate += p.rate/40 + 1<<19
	case busy:
		p.rate += p.rate/8 + 2<<20
	default:
		p.rate *= 2
	}
	p.rate = min(max(p.rate, paceFloor), paceCeiling)
	if p.most > 0 {
		p.rate = min(p.rate, p.most)
	}
	switch {
	case p.rate > paceFloor:
		p.low = 0
	case p.low == 0:
		p.low = now
	}
}
