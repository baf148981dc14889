// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"time"

	"golang.org/x/sys/unix"
)

// run turns until Close and everything that Close waits for.
func (l *Loop) run() {
	for {
		l.turn()
		if l.stop.Load() && !l.closing {
			l.closing = true
			l.cancelAll()
		}
		if l.closing && l.quiet() {
			l.publish()
			return
		}
	}
}

// turn is one round: callbacks that are due, then one system call.
func (l *Loop) turn() {
	l.tick()
	l.sched.turn(l.count.Ops-l.before, l.now)
	l.before = l.count.Ops
	l.count.Turns++
	l.runPosts()
	l.runTimers()
	l.runRefused()
	for range maxDeferRounds {
		if len(l.deferred) == 0 {
			break
		}
		l.runDeferred()
	}
	l.publish()
	timeout := l.timeout()
	if timeout == 0 {
		l.eng.wait(0)
		return
	}
	// The order matters: asleep first, then a last look at the queue. A Post that
	// the look misses sees asleep and writes the eventfd.
	l.asleep.Store(true)
	if l.posted() || l.eng.ready() || l.stop.Load() && !l.closing {
		timeout = 0
	}
	l.eng.wait(timeout)
	if !l.asleep.Swap(false) {
		l.count.Wakeups++
	}
}

// tick reads the clock: before the callbacks of a turn, and again when the kernel
// returns, before the first OpDone, which may have slept for long. 40 ns each.
func (l *Loop) tick() { l.now = int64(time.Since(base)) }

// timeout is how long the kernel may keep the loop: 0 when work is left over.
func (l *Loop) timeout() int64 {
	if len(l.deferred) > 0 || !l.refused.empty() {
		return 0
	}
	when, ok := l.timers.next()
	if !ok || l.closing {
		if l.closing && l.active == 0 {
			return 0
		}
		return -1
	}
	return max(when-l.now, 0)
}

func (l *Loop) posted() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return len(l.posts) > 0
}

// runPosts runs what was posted before the turn. What these calls post runs in
// the next turn, so that a loop that feeds itself still does its I/O.
func (l *Loop) runPosts() {
	l.mu.Lock()
	fns := l.posts
	l.posts = l.spare[:0]
	l.mu.Unlock()
	for i, fn := range fns {
		fns[i] = nil
		fn()
	}
	l.spare = fns[:0]
}

// runTimers fires what is due. A timer that is armed again for at once waits for
// the next turn: it has a newer sequence number.
func (l *Loop) runTimers() {
	if l.closing {
		return
	}
	last := l.timers.seq
	for len(l.timers.entries) > 0 {
		e := l.timers.entries[0]
		if e.when > l.now || e.seq > last {
			return
		}
		l.timers.disarm(e.t)
		e.t.Fire(e.t)
	}
}

func (l *Loop) runRefused() {
	q := l.refused.take()
	for op := q.pop(); op != nil; op = q.pop() {
		op.active = false
		l.count.Ops++
		op.Done.OpDone(op, -int(unix.ECANCELED))
	}
}

func (l *Loop) runDeferred() {
	ds := l.deferred
	l.deferred = l.running[:0]
	for i, d := range ds {
		ds[i] = nil
		d.RunDeferred()
	}
	l.running = ds[:0]
}

// complete ends an op; engines call it while they wait, and only there.
func (l *Loop) complete(op *Op, res int) {
	l.table.drop(op)
	l.active--
	l.count.Ops++
	op.active = false
	op.Done.OpDone(op, res)
}

func (l *Loop) cancelAll() {
	for i := range l.table.slots {
		if op := l.table.slots[i].op; op != nil && !op.cancelled {
			op.cancelled = true
			l.eng.cancel(op)
		}
	}
}

// quiet reports whether a closing loop has nothing left to do, and if so ends
// it: later posts are dropped.
func (l *Loop) quiet() bool {
	if l.active > 0 || !l.refused.empty() || len(l.deferred) > 0 {
		return false
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.ended = len(l.posts) == 0
	return l.ended
}
