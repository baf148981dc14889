// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// Timers fire in the order of their deadlines, not before them, and equal ones
// in the order of Arm; a disarmed one does not fire.
func TestTimers(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		var fired []int
		done := make(chan struct{})
		timers := make([]Timer, 6)
		after := []time.Duration{3, 1, 2, 1, 4, 2} // ms
		for i := range timers {
			timers[i].Fire = func(tm *Timer) {
				if tm.Armed() {
					t.Error("armed while it fires")
				}
				fired = append(fired, i)
				if i == 4 {
					close(done)
				}
			}
		}
		var begin int64
		l.Call(func() {
			begin = l.Now()
			for i := range timers {
				l.Arm(&timers[i], after[i]*time.Millisecond)
			}
			l.Disarm(&timers[5])
			l.Disarm(&timers[5])
		})
		<-done
		l.Call(func() {
			if !slices.Equal(fired, []int{1, 3, 2, 0, 4}) {
				t.Errorf("fired in the order %v", fired)
			}
			if l.Now()-begin < int64(4*time.Millisecond) {
				t.Errorf("fired after %v", time.Duration(l.Now()-begin))
			}
		})
	})
}

// A timer that arms itself for at once fires once a turn and lets I/O go on.
func TestTimerRearmsItself(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		n, done := 0, make(chan struct{})
		tm := &Timer{}
		tm.Fire = func(*Timer) {
			if n++; n == 100 {
				close(done)
			}
			l.Arm(tm, -1)
		}
		l.Call(func() { l.Arm(tm, 0) })
		<-done
		f := tempFile(t)
		want(t, "write", do(t, l, &Op{Kind: Write, FD: int(f.Fd()), Buf: []byte("x")}), 1)
		l.Call(func() { l.Disarm(tm) })
	})
}

// The heap against a sorted list, under random arming, moving and disarming.
func TestTimerHeap(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	var h timerHeap
	timers := make([]Timer, 200)
	when := map[*Timer][2]int64{} // deadline, sequence
	seq := int64(0)
	for range 20000 {
		tm := &timers[r.IntN(len(timers))]
		switch r.IntN(4) {
		case 0, 1:
			seq++
			at := int64(r.IntN(100))
			h.arm(tm, at)
			when[tm] = [2]int64{at, seq}
		case 2:
			h.disarm(tm)
			delete(when, tm)
		case 3:
			if len(when) == 0 {
				continue
			}
			first := h.entries[0].t
			for other, w := range when {
				f := when[first]
				if w[0] < f[0] || w[0] == f[0] && w[1] < f[1] {
					t.Fatalf("the heap's first is %v, but %p has %v", f, other, w)
				}
			}
			h.disarm(first)
			delete(when, first)
		}
		if len(h.entries) != len(when) {
			t.Fatalf("%d in the heap, want %d", len(h.entries), len(when))
		}
		for i, e := range h.entries {
			if e.t.pos != i+1 {
				t.Fatalf("entry %d believes to be at %d", i, e.t.pos-1)
			}
		}
	}
}

// OpDone sees the time at which the kernel returned, not that at which the loop
// went to sleep: a deadline armed there lies in the future.
func TestNowInOpDone(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		const asleep, after = 60 * time.Millisecond, 30 * time.Millisecond
		a, b := pair(t, 0)
		fired := make(chan time.Time, 1)
		var armed, now time.Time
		var seen int64
		tm := &Timer{Fire: func(*Timer) { fired <- time.Now() }}
		op := &Op{Kind: Recv, FD: a, Buf: make([]byte, 1)}
		op.Done = doneFunc(func(*Op, int) {
			armed, seen = time.Now(), l.Now()
			now = base.Add(time.Duration(seen))
			l.Arm(tm, after)
		})
		l.Call(func() { l.Submit(op) })
		<-time.After(asleep) // the loop blocks in the kernel meanwhile
		sent := time.Now()
		if err := unix.Sendto(b, []byte("x"), 0, nil); err != nil {
			t.Fatal(err)
		}
		if at := <-fired; at.Sub(sent) < after {
			t.Errorf("armed for %v, fired after %v", after, at.Sub(sent))
		}
		if now.Before(sent) || now.After(armed) {
			t.Errorf("Now() is %v off in OpDone", armed.Sub(now))
		}
	})
}

type doneFunc func(op *Op, res int)

func (f doneFunc) OpDone(op *Op, res int) { f(op, res) }
