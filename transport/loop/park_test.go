// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// A loop that is busy keeps its processor in its waits, and a loop that is idle
// does not: two loops throw a byte to and fro, then one of them waits for nothing.
func TestBusyLoopKeepsProcessor(t *testing.T) {
	const rounds = 2000
	l, peer := twoLoops(t)
	throw(t, l, peer, rounds, nil)
	s := l.Stats()
	if l.Engine() == Pool {
		t.Log("the pool's waits always give the processor up")
		return
	}
	// A wait that a busy machine has made long parks, and the few after it.
	if waits := s.Enters; s.Parks > waits/2 {
		t.Errorf("%d of %d waits gave the processor up", s.Parks, waits)
	}
	idle := time.NewTicker(2 * keepProcessor)
	defer idle.Stop()
	for deadline := time.Now().Add(patience); l.Stats().Parks == s.Parks; l.Call(func() {}) {
		<-idle.C
		if time.Now().After(deadline) {
			t.Fatal("an idle loop keeps its processor")
		}
	}
}

// The scheduler interrupts a busy loop's waits by signals, a hundred times a second.
// The loop does not take that for being idle: the waits behind it would all give the
// processor up, and keep the scheduler's monitor awake.
func TestInterruptedLoopKeepsProcessor(t *testing.T) {
	l, peer := twoLoops(t)
	if l.Engine() == Pool {
		return
	}
	throw(t, l, peer, 200, nil)
	const interrupts = 200
	was := l.Stats()
	s := was
	for deadline := time.Now().Add(patience); s.Enters < was.Enters+interrupts; s = l.Stats() {
		if err := unix.Tgkill(unix.Getpid(), l.tid, unix.SIGURG); err != nil {
			t.Fatal(err)
		}
		if time.Now().After(deadline) {
			t.Fatalf("%d waits ended in %v", s.Enters-was.Enters, patience)
		}
		runtime.Gosched()
	}
	if parks := s.Parks - was.Parks; parks > interrupts/2 {
		t.Errorf("%d of %d interrupted waits gave the processor up", parks, s.Enters-was.Enters)
	}
}

// Loops that keep their processors hold up nothing else: the world is stopped,
// many times, while as many loops throw bytes as there are processors.
func TestBusyLoopsLetTheWorldStop(t *testing.T) {
	old := runtime.GOMAXPROCS(2)
	defer runtime.GOMAXPROCS(old)
	l, peer := twoLoops(t)
	throw(t, l, peer, 2000, func() {
		for range 20 {
			runtime.GC()
		}
	})
}

// With one processor, loops that wait for each other do not wait out the time for
// which each keeps its own: a throw takes microseconds, not 20 ms.
func TestBusyLoopsOnOneProcessor(t *testing.T) {
	old := runtime.GOMAXPROCS(1)
	defer runtime.GOMAXPROCS(old)
	l, peer := twoLoops(t)
	throw(t, l, peer, 2000, nil)
	if l.Engine() == Pool {
		return
	}
	before := runtime.GOMAXPROCS(0)
	third := startLoop(t, Options{Engine: Uring})
	if n := runtime.GOMAXPROCS(0); n != before+1 {
		t.Errorf("%d processors with one ring more, %d before it", n, before)
	}
	third.Close()
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("%d processors after a ring ended, %d before it", n, before)
	}
}

// twoLoops are on the ring, or on the pool where the kernel refuses it.
func twoLoops(t *testing.T) (l, peer *Loop) {
	return startLoop(t, Options{}), startLoop(t, Options{})
}

// throw makes two loops send a byte to and fro, and meanwhile calls also.
func throw(t *testing.T, l, peer *Loop, rounds int, also func()) {
	t.Helper()
	a, b := pair(t, 0)
	x, y := newCatcher(t, l, a, rounds), newCatcher(t, peer, b, rounds)
	peer.Post(func() { y.catch() })
	l.Post(func() { x.throw() })
	if also != nil {
		also()
	}
	<-x.done
	<-y.done
}

// catcher answers each byte with one, so many times.
type catcher struct {
	t          *testing.T
	l          *Loop
	recv, send Op
	left       int
	done       chan struct{}
}

func newCatcher(t *testing.T, l *Loop, fd, rounds int) *catcher {
	c := &catcher{t: t, l: l, left: rounds, done: make(chan struct{})}
	c.recv = Op{Kind: Recv, FD: fd, Buf: make([]byte, 1), Done: c}
	c.send = Op{Kind: Send, FD: fd, Buf: make([]byte, 1), Done: c}
	return c
}

func (c *catcher) catch() { c.l.Submit(&c.recv) }

func (c *catcher) throw() { c.l.Submit(&c.send) }

func (c *catcher) OpDone(op *Op, res int) {
	if res != 1 {
		c.t.Errorf("%v: %d", op.Kind, res)
		c.left = 1
	}
	if op == &c.send {
		if c.left == 0 {
			close(c.done)
			return
		}
		c.catch()
		return
	}
	c.left--
	c.throw()
}
