// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"braid/transport"
	"braid/transport/loop"
)

// limiter makes a device answer no more than so many of the clients' reads and writes
// in a second, for tests of how evenly a cluster spreads them: one core can then carry
// many servers. Answers wait in the order in which they were ready.
type limiter struct {
	dev   *device
	timer loop.Timer
	each  int64   // ns between two answers; 0: no limit
	delay int64   // ns that each answer waits, in a drill
	until int64   // the drill's end
	next  int64   // when the next answer may leave
	held  []*slot // a ring: first, and count of them
	first int
	count int
}

// limitBurst is what an idle device may answer at once, in time.
const limitBurst = int64(2 * time.Millisecond)

// perSecond is the time between two of n answers a second; 0: there is no limit.
func perSecond(n int) int64 {
	if n <= 0 {
		return 0
	}
	return int64(time.Second) / int64(n)
}

func (l *limiter) init(d *device) {
	l.dev = d
	l.timer.Fire = l.fire
	if l.each > 0 {
		l.held = make([]*slot, maxRequests)
	}
}

// takes holds an answer back, if it comes too soon after others.
func (l *limiter) takes(s *slot) bool {
	if l.each == 0 && l.delay == 0 || s.head.Op != transport.OpRead && s.head.Op != transport.OpWrite ||
		l.dev.state != deviceServing || l.count == len(l.held) {
		return false
	}
	now := l.dev.loop.Now()
	if l.delay > 0 {
		if now >= l.until { // whoever ordered it may be gone
			l.delay = 0
			return l.takes(s)
		}
		l.hold(s, now+l.delay)
		return true
	}
	l.next = max(l.next, now-limitBurst) + l.each
	if l.next <= now {
		return false
	}
	l.hold(s, l.next)
	return true
}

// hold keeps an answer until it is due. Those before it are due before.
func (l *limiter) hold(s *slot, due int64) {
	s.state, s.since = slotPaced, due
	l.held[(l.first+l.count)%len(l.held)] = s
	if l.count++; l.count == 1 {
		l.arm()
	}
}

// slow has each answer wait for some time.
func (l *limiter) slow(delay, during time.Duration) {
	if l.held == nil {
		l.held = make([]*slot, maxRequests)
	}
	l.delay, l.until = int64(delay), l.dev.loop.Now()+int64(during)
}

func (l *limiter) arm() {
	if l.count > 0 {
		l.dev.loop.Arm(&l.timer, time.Duration(l.held[l.first].since-l.dev.loop.Now()))
	}
}

func (l *limiter) fire(*loop.Timer) {
	l.release(l.dev.loop.Now())
	l.arm()
}

// release lets go of what is due by then.
func (l *limiter) release(by int64) {
	for l.count > 0 && l.held[l.first].since <= by {
		s := l.held[l.first]
		l.held[l.first] = nil
		l.first, l.count = (l.first+1)%len(l.held), l.count-1
		l.dev.reply(s, s.req.Status)
	}
}
