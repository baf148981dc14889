// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"testing"

	"golang.org/x/sys/unix"
)

// rehearsal feeds a policy with turns.
type rehearsal struct {
	policy
	t   *testing.T
	now int64
	all int64 // waited for a core
}

// pass lets the time to the next look pass with turns of so many operations, each of
// which has waited so long.
func (r *rehearsal) pass(turns int, ops uint64, each int64) {
	r.t.Helper()
	for i := range turns {
		if i == turns-1 {
			r.now = max(r.now+1, r.look)
		}
		if due := r.due(ops, r.now); due != (i == turns-1) {
			r.t.Fatalf("asked in turn %d of %d: %v", i, turns, due)
		}
	}
	r.all += int64(turns) * each
	r.next(r.now, r.all)
}

func (r *rehearsal) must(batch bool, why string) {
	r.t.Helper()
	if r.batch != batch {
		r.t.Fatalf("batching is %v: %s", r.batch, why)
	}
}

// A loop batches from the first turn on, leaves a crowd, for longer each time, and
// forgives it.
func TestPolicyLeavesACrowd(t *testing.T) {
	r := &rehearsal{t: t}
	r.pass(1, 1, 1e9)
	r.must(true, "the first look")
	wait := int64(firstRetry)
	for range 12 {
		r.pass(100, 1, crowdDelay-1)
		r.must(true, "a wait below the bound")
		r.pass(100, 1, crowdDelay)
		r.must(false, "a wait at the bound")
		left := r.now
		for r.now+policyLook < left+wait {
			r.pass(100, 1, 1e6)
			r.must(false, "in the crowd")
		}
		r.pass(100, 1, 0)
		r.must(true, "the crowd was long ago")
		wait = min(2*wait, longRetry)
	}
	for end := r.now + forgivenFor; r.now < end; {
		r.pass(10, 1, 0)
	}
	r.must(true, "nobody there")
	if r.backoff != 0 {
		t.Fatal("a crowd is not forgiven")
	}
	r.pass(1, 1, crowdDelay)
	r.must(false, "an idle loop was late for its one turn")
}

// With much to do in a turn a loop batches even in a crowd.
func TestDeepPolicyStaysInACrowd(t *testing.T) {
	r := &rehearsal{t: t}
	r.pass(1, 0, 0)
	r.pass(100, 2, 1e9)
	r.must(true, "two operations a turn")
	r.pass(100, 1, 1e9)
	r.must(false, "one operation a turn")
	r.pass(100, 2, 1e9)
	r.must(true, "two operations a turn again")
}

// policyOf is what the kernel says of the loop's thread.
func policyOf(t *testing.T, l *Loop) uintptr {
	t.Helper()
	has, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, uintptr(l.tid), 0, 0)
	if errno != 0 {
		t.Fatal(errno)
	}
	return has
}

// The kernel has been told what the policy says, and keeps the account that it
// goes by.
func TestLoopBatches(t *testing.T) {
	l, peer := twoLoops(t)
	throw(t, l, peer, 2000, nil)
	l.Call(func() {
		want := uintptr(schedOther)
		if l.sched.batch {
			want = schedBatch
		}
		if has := policyOf(t, l); has != want {
			t.Errorf("policy %d, want %d", has, want)
		}
		if l.sched.fd >= 0 && l.sched.delay() == 0 {
			t.Error("never waited for a core, in thousands of turns")
		}
		// Into a crowd, and out of it again.
		for _, c := range []struct {
			crowd bool
			want  uintptr
		}{{true, schedOther}, {false, schedBatch}, {true, schedOther}} {
			l.sched.batch, l.sched.turns, l.sched.ops = c.crowd, 10, 0
			l.sched.look, l.sched.retry, l.sched.policy.waited = 0, 0, -1e15
			l.sched.turn(0, l.now)
			if has := policyOf(t, l); has != c.want {
				t.Errorf("crowd %v: policy %d, want %d", c.crowd, has, c.want)
			}
		}
		if l.sched.batching() != 0 {
			t.Error("says that it batches in a crowd")
		}
	})
}

func TestSchedulerLeftAlone(t *testing.T) {
	t.Setenv(SchedEnv, "normal")
	l, _ := twoLoops(t)
	l.Call(func() {
		for range 1000 {
			l.sched.turn(100, l.now+policyLook)
		}
	})
	if l.Stats().Batching != 0 || policyOf(t, l) != schedOther {
		t.Errorf("batches in spite of %s=normal", SchedEnv)
	}
}

func TestSecondNumber(t *testing.T) {
	for line, want := range map[string]int64{
		"": 0, "12": 0, "12 ": 0, "12 345 6\n": 345, "12 345": 345, "1 2x 3": 2, "0 0 0\n": 0,
	} {
		if got := secondNumber([]byte(line)); got != want {
			t.Errorf("%q: %d, want %d", line, got, want)
		}
	}
}
