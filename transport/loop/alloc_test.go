// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// chain runs its ops one after the other, over and over, with a deferred call
// and a timer each time: what a connection does.
type chain struct {
	t     testing.TB
	l     *Loop
	ops   []*Op
	at    int
	left  int
	timer Timer
	done  chan struct{}
	kick  func()
}

func newChain(t testing.TB, l *Loop, ops ...*Op) *chain {
	c := &chain{t: t, l: l, ops: ops, done: make(chan struct{}, 1)}
	c.kick = func() { c.l.Defer(c) }
	c.timer.Fire = func(*Timer) {}
	for _, op := range ops {
		op.Done = c
	}
	return c
}

func (c *chain) run(rounds int) {
	c.left, c.at = rounds, 0
	c.l.Post(c.kick)
	<-c.done
}

func (c *chain) RunDeferred() {
	c.l.Arm(&c.timer, time.Hour)
	c.l.Submit(c.ops[c.at])
}

func (c *chain) OpDone(op *Op, res int) {
	if res < 0 {
		c.t.Errorf("%v: %v", op.Kind, unix.Errno(-res))
	}
	c.l.Disarm(&c.timer)
	if c.at++; c.at == len(c.ops) {
		c.at = 0
		if c.left--; c.left == 0 {
			c.done <- struct{}{}
			return
		}
	}
	c.l.Defer(c)
}

// No operation allocates, on either engine, and none does when it goes through
// the slow paths: waiting for readiness, being cancelled.
func TestAllocs(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		fd := int(tempFile(t).Fd())
		a, b := pair(t, 0)
		buf, one, two := make([]byte, 4096), make([]byte, 100), make([]byte, 200)
		c := newChain(t, l,
			&Op{Kind: Write, FD: fd, Buf: buf},
			&Op{Kind: Read, FD: fd, Buf: buf},
			&Op{Kind: Writev, FD: fd, Iov: vectors(one, two)},
			&Op{Kind: Readv, FD: fd, Iov: vectors(one, two)},
			&Op{Kind: Fsync, FD: fd},
			&Op{Kind: Discard, FD: fd, Len: 4096},
			&Op{Kind: Send, FD: a, Buf: one},
			&Op{Kind: Recv, FD: b, Buf: one},
			&Op{Kind: Sendmsg, FD: a, Iov: vectors(one, two)},
			&Op{Kind: Recvmsg, FD: b, Iov: vectors(one, two)},
		)
		if n := testing.AllocsPerRun(20, func() { c.run(10) }); n != 0 && !raceDetector {
			t.Errorf("%v allocations in 10 rounds of operations", n)
		}
		p := newParked(l, a, b)
		if n := testing.AllocsPerRun(20, func() { p.run(10) }); n != 0 && !raceDetector {
			t.Errorf("%v allocations in 10 rounds of waiting and cancelled receives", n)
		}
	})
}

// parked makes a receive wait for bytes, then makes one wait and cancels it.
type parked struct {
	l          *Loop
	recv, send Op
	cancels    bool
	left       int
	done       chan struct{}
	kick       func()
}

func newParked(l *Loop, a, b int) *parked {
	p := &parked{l: l, done: make(chan struct{}, 1)}
	p.recv = Op{Kind: Recv, FD: a, Buf: make([]byte, 64), Done: p}
	p.send = Op{Kind: Send, FD: b, Buf: make([]byte, 64), Done: doneFunc(func(*Op, int) {})}
	p.kick = p.next
	return p
}

func (p *parked) run(rounds int) {
	p.left = rounds
	p.l.Post(p.kick)
	<-p.done
}

func (p *parked) next() {
	p.l.Submit(&p.recv)
	p.l.Defer(p)
}

func (p *parked) RunDeferred() {
	if p.cancels {
		p.l.Cancel(&p.recv)
	} else {
		p.l.Submit(&p.send)
	}
}

func (p *parked) OpDone(*Op, int) {
	p.cancels = !p.cancels
	if p.left--; p.left == 0 {
		p.done <- struct{}{}
		return
	}
	p.next()
}

// Timers allocate nothing once the heap has grown.
func TestTimerAllocs(t *testing.T) {
	var h timerHeap
	timers := make([]Timer, 100)
	churn := func() {
		for i := range timers {
			h.arm(&timers[i], int64(i*7919%100))
		}
		for i := range timers {
			h.arm(&timers[i], int64(i))
			h.disarm(&timers[i])
		}
	}
	churn()
	if n := testing.AllocsPerRun(10, churn); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
