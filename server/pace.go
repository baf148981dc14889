// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

// Before a device is full, and clients' writes that need space have to wait, they are
// slowed: the answer to a write that took a new chunk comes later, the later the less
// is left, up to paceMost. All other answers come as ever, and no more than paceSlots
// wait at a time: slots are for everybody.
const (
	paceMost  = 200 * time.Millisecond
	paceSlots = maxRequests / 4
)

// pacer holds answers back.
type pacer struct {
	dev   *device
	timer loop.Timer
	held  []*slot // their state is slotPaced; since is when they are due
}

func (p *pacer) init(d *device) {
	p.dev, p.held = d, make([]*slot, 0, paceSlots)
	p.timer.Fire = p.fire
}

// takes holds an answer back, if it is one of those.
func (p *pacer) takes(s *slot) bool {
	r := &s.req
	if !r.Fresh || r.Status != transport.StatusOK || s.head.Op == transport.OpRead {
		return false
	}
	d := p.dev
	wait := paceFor(d.core.Scarcity())
	if wait == 0 || len(p.held) == cap(p.held) || d.state != deviceServing || s.conn.closed {
		return false
	}
	d.stats.paced.Add(1)
	d.releaseBuf(s) // the store has it
	s.state, s.since = slotPaced, d.loop.Now()+int64(wait)
	p.held = append(p.held, s)
	p.arm()
	return true
}

// paceFor is how long an answer is held back where so many thousandths of the last
// chunks are used.
func paceFor(scarcity uint32) time.Duration {
	x := time.Duration(min(scarcity, store.ScarcityMost))
	return paceMost * x * x / (store.ScarcityMost * store.ScarcityMost)
}

// arm sets the timer to the answer that is due first.
func (p *pacer) arm() {
	if len(p.held) == 0 {
		return
	}
	first := p.held[0].since
	for _, s := range p.held {
		first = min(first, s.since)
	}
	p.dev.loop.Arm(&p.timer, time.Duration(first-p.dev.loop.Now()))
}

func (p *pacer) fire(*loop.Timer) {
	p.release(p.dev.loop.Now())
	p.arm()
}

// release lets go of what is due by then.
func (p *pacer) release(by int64) {
	left := p.held[:0]
	for _, s := range p.held {
		if s.since > by {
			left = append(left, s)
			continue
		}
		p.dev.reply(s, s.req.Status)
	}
	clear(p.held[len(left):])
	p.held = left
}
