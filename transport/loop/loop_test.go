// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"errors"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The engine follows Options, then the environment; nonsense is refused.
func TestEngineChoice(t *testing.T) {
	best := Uring
	if kernelRefusesUring() {
		best = Pool
	}
	for _, c := range []struct {
		env  string
		asks Engine
		gets Engine
	}{{"", Auto, best}, {"auto", Auto, best}, {"pool", Auto, Pool}, {"io_uring", Pool, Pool}} {
		t.Setenv(EngineEnv, c.env)
		if l := startLoop(t, Options{Engine: c.asks}); l.Engine() != c.gets {
			t.Errorf("%s=%q, asked for %v: got %v, want %v", EngineEnv, c.env, c.asks, l.Engine(), c.gets)
		}
	}
	t.Setenv(EngineEnv, "magic")
	if _, err := New(Options{}); err == nil || !strings.Contains(err.Error(), "want auto, io_uring or pool") {
		t.Errorf("engine from nowhere: %v", err)
	}
	for _, o := range []Options{{Entries: 3}, {Entries: 1 << 20}, {Workers: -1}, {Engine: 9}} {
		if _, err := New(o); err == nil {
			t.Errorf("%+v was accepted", o)
		}
	}
}

// A loop that was never started can be closed, twice; what was posted runs.
func TestCloseUnstarted(t *testing.T) {
	for _, e := range []Engine{Auto, Pool} {
		l, err := New(Options{Engine: e})
		if err != nil {
			t.Fatal(err)
		}
		ran := false
		l.Post(func() { ran = true })
		for range 2 {
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
		}
		if !ran {
			t.Error("a post was lost")
		}
		l.Post(func() { t.Error("ran after the end") })
		l.Call(func() { t.Error("ran after the end") })
	}
}

// Close with everything pending: each op completes once, posts run, what is
// submitted meanwhile completes with ECANCELED.
func TestCloseWithOpsPending(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		const n = 100
		f := tempFile(t)
		w := newWaiter()
		again := &resubmitter{l: l}
		l.Call(func() {
			for i := range n {
				a, b := pair(t, 0)
				l.Submit(&Op{Kind: Recv, FD: a, Buf: make([]byte, 10), Done: w})
				fill(t, b)
				l.Submit(&Op{Kind: Send, FD: b, Buf: make([]byte, 10), Done: w})
				l.Submit(&Op{Kind: Write, FD: int(f.Fd()), Off: int64(i) << 12, Buf: make([]byte, 4096), Done: w})
				l.Submit(&Op{Kind: Fsync, FD: int(f.Fd()), Done: w})
				l.Submit(&Op{Kind: Discard, FD: int(f.Fd()), Len: 4096, Done: w})
			}
			a, _ := pair(t, 0)
			again.op = Op{Kind: Recv, FD: a, Buf: make([]byte, 10), Done: again}
			l.Submit(&again.op)
			l.Arm(&Timer{Fire: func(*Timer) { t.Error("a timer fired in a closing loop") }}, time.Hour)
		})
		posted := 0
		for range 10 {
			l.Post(func() { posted++ })
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		<-l.Done()
		// The bytes that fill sent let some receives end well: peers' data is theirs.
		if len(w.c) != 5*n || posted != 10 {
			t.Fatalf("%d of %d ops completed, %d of 10 posts ran", len(w.c), 5*n, posted)
		}
		if !slices.Equal(again.res, []int{-int(unix.ECANCELED), -int(unix.ECANCELED)}) {
			t.Fatalf("results %v", again.res)
		}
		if s := l.Stats(); s.Active != 0 {
			t.Fatalf("%d ops active after Close", s.Active)
		}
	})
}

// resubmitter submits its op once more from its OpDone.
type resubmitter struct {
	l   *Loop
	op  Op
	res []int
}

func (r *resubmitter) OpDone(op *Op, res int) {
	r.res = append(r.res, res)
	if len(r.res) == 1 {
		r.l.Submit(op)
	}
}

// Posts from many goroutines all run, each goroutine's in its order, whether the
// loop sleeps or not.
func TestPostStorm(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		const goroutines, each = 8, 5000
		var next [goroutines]int
		var wg sync.WaitGroup
		for g := range goroutines {
			wg.Go(func() {
				for i := range each {
					l.Post(func() {
						if next[g] != i {
							t.Errorf("goroutine %d: post %d ran as number %d", g, i, next[g])
						}
						next[g]++
					})
					if i%64 == g {
						runtime.Gosched()
					}
					if i%1000 == g {
						l.Call(func() {})
					}
				}
			})
		}
		wg.Wait()
		l.Call(func() {
			for g, n := range next {
				if n != each {
					t.Errorf("goroutine %d: %d of %d posts ran", g, n, each)
				}
			}
		})
		if s := l.Stats(); s.Wakeups == 0 || s.Wakeups > s.Turns {
			t.Errorf("%d wake-ups in %d turns", s.Wakeups, s.Turns)
		}
	})
}

// Far more active ops than ring slots: the ring is flushed, its completion side
// overflows, and nothing is lost or starved.
func TestMoreOpsThanRingSlots(t *testing.T) {
	onEnginesWith(t, Options{Entries: 4, Workers: 2}, func(t *testing.T, l *Loop) {
		const n = 500
		w := newWaiter()
		f := tempFile(t)
		want(t, "write", do(t, l, &Op{Kind: Write, FD: int(f.Fd()), Buf: random(1, n)}), n)
		peers := make([]int, n)
		l.Call(func() {
			for i := range n {
				a, b := pair(t, 0)
				peers[i] = b
				l.Submit(&Op{Kind: Recv, FD: a, Buf: make([]byte, 10), Done: w, Tag: 1})
			}
			for i := range n {
				op := &Op{Kind: Read, FD: int(f.Fd()), Off: int64(i), Buf: make([]byte, 1), Done: w, Tag: 2}
				l.Submit(op)
			}
		})
		for range n {
			o := w.next(t)
			want(t, "file op behind idle receives", int(o.op.Tag), 2)
			want(t, "read", o.res, 1)
		}
		l.Call(func() {
			// All become ready while the loop cannot take completions.
			for _, b := range peers {
				if err := unix.Sendto(b, []byte("x"), 0, nil); err != nil {
					t.Error(err)
				}
			}
		})
		for range n {
			want(t, "recv", w.next(t).res, 1)
		}
		// And a cancellation storm beyond the ring.
		ops := make([]*Op, n)
		l.Call(func() {
			for i := range ops {
				a, _ := pair(t, 0)
				ops[i] = &Op{Kind: Recv, FD: a, Buf: make([]byte, 10), Done: w}
				l.Submit(ops[i])
			}
		})
		l.Call(func() {
			for _, op := range ops {
				l.Cancel(op)
			}
		})
		for range n {
			wantErrno(t, "recv", w.next(t).res, unix.ECANCELED)
		}
		s := l.Stats()
		if s.Active != 0 {
			t.Fatalf("%d ops left", s.Active)
		}
		if l.Engine() == Uring && s.Overflows == 0 {
			t.Error("the completion ring never overflowed; the test shows less than it should")
		}
	})
}

// pinger sends one message back and forth between two loops.
type pinger struct {
	l     *Loop
	recv  Op
	send  Op
	left  int
	ended chan error
}

func newPinger(l *Loop, fd, rounds int) *pinger {
	p := &pinger{l: l, left: rounds, ended: make(chan error, 1)}
	p.recv = Op{Kind: Recv, FD: fd, Buf: make([]byte, 64), Done: p}
	p.send = Op{Kind: Send, FD: fd, Buf: make([]byte, 64), Done: p}
	return p
}

func (p *pinger) OpDone(op *Op, res int) {
	if res != 64 {
		p.ended <- errors.New("a ping was cut")
		return
	}
	if op == &p.send {
		p.l.Submit(&p.recv)
		return
	}
	if p.left--; p.left == 0 {
		p.ended <- nil
		return
	}
	p.l.Submit(&p.send)
}

// Two loops, of any engines, talk to each other.
func TestTwoLoops(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		for _, e := range []Engine{Auto, Pool} {
			const rounds = 200
			other := startLoop(t, Options{Engine: e})
			a, b := pair(t, 0)
			x, y := newPinger(l, a, rounds), newPinger(other, b, rounds+1)
			other.Post(func() { other.Submit(&y.recv) })
			l.Post(func() { l.Submit(&x.send) })
			if err := <-x.ended; err != nil {
				t.Fatal(err)
			}
		}
	})
}

// deferrer counts its runs and may defer another one from inside.
type deferrer struct {
	l    *Loop
	runs int
	then Deferred
}

func (d *deferrer) RunDeferred() {
	d.runs++
	if d.then != nil {
		d.l.Defer(d.then)
	}
}

// Deferred calls run once, in the turn of their Defer, also those made by
// deferred calls; one that defers itself for ever does not stop the loop.
func TestDefer(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		second := &deferrer{l: l}
		first := &deferrer{l: l, then: second}
		var turn, turns uint64
		l.Call(func() {
			turn = l.count.Turns
			l.Defer(first)
			l.Defer(&deferrer{l: l, then: deferFunc(func() { turns = l.count.Turns })})
			if first.runs != 0 {
				t.Error("ran inside Defer")
			}
		})
		l.Call(func() {
			if first.runs != 1 || second.runs != 1 || turns != turn {
				t.Errorf("ran %d and %d times, in turn %d of %d", first.runs, second.runs, turns, turn)
			}
		})
		forever := &deferrer{l: l}
		forever.then = forever
		l.Call(func() { l.Defer(forever) })
		f := tempFile(t)
		want(t, "write", do(t, l, &Op{Kind: Write, FD: int(f.Fd()), Buf: []byte("x")}), 1)
		l.Call(func() { forever.then = nil })
	})
}

type deferFunc func()

func (f deferFunc) RunDeferred() { f() }

// Submitting an op twice, or waiting for the loop on the loop, is a bug of the
// caller and stops it at once.
func TestMisuse(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		a, _ := pair(t, 0)
		w := newWaiter()
		op := &Op{Kind: Recv, FD: a, Buf: make([]byte, 1), Done: w}
		l.Call(func() {
			l.Submit(op)
			mustPanic(t, "second Submit", func() { l.Submit(op) })
			mustPanic(t, "Call on the loop", func() { l.Call(func() {}) })
			mustPanic(t, "Close on the loop", func() { _ = l.Close() })
			if !op.Active() {
				t.Error("the op is not active")
			}
			l.Cancel(op)
		})
		wantErrno(t, "recv", w.next(t).res, unix.ECANCELED)
	})
}

func mustPanic(t *testing.T, what string, fn func()) {
	t.Helper()
	defer func() {
		if recover() == nil {
			t.Errorf("%s: no panic", what)
		}
	}()
	fn()
}
