// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Bounds of the scheduling policy; see policy.
const (
	policyLook  = 50_000_000     // ns between two decisions
	crowdDelay  = 200_000        // ns without a core before each turn, from which others have the cores
	firstRetry  = 200_000_000    // ns without batching after that, doubled each time
	longRetry   = 32_000_000_000 // up to this
	forgivenFor = 5_000_000_000  // ns without a crowd after which it begins anew
)

// policy decides which scheduling policy the loop's thread has, SCHED_BATCH or
// SCHED_OTHER (sched(7)). It is arithmetic alone; scheduler below asks the kernel.
//
// A thread of the batch policy that becomes ready waits until a core is free or
// whoever has it sleeps or has used up its slice. Where client and servers share busy
// cores, SCHED_OTHER lets each completion and each message push somebody else off a
// core for the sake of one or two requests; with SCHED_BATCH they pile up meanwhile
// and are done together. The price is paid where a program computes on all cores: each
// step of each request would wait for a slice of some milliseconds. A loop with many
// operations a turn loses little by that. One with few goes back to SCHED_OTHER, for
// longer each time that it finds the crowd again.
type policy struct {
	batch   bool
	turns   uint64 // since the last look
	ops     uint64 // completed in them
	look    int64  // when to look next
	waited  int64  // ns waited for a core, as of the last look
	retry   int64  // batch again, however few operations there are
	backoff int64
}

// due counts a turn and its operations and reports whether next is to be asked.
func (p *policy) due(ops uint64, now int64) bool {
	p.turns++
	p.ops += ops
	return now >= p.look
}

// next decides for the time to come. waited is how long the thread has been ready
// to run without a core, in ns since it began.
func (p *policy) next(now, waited int64) {
	deep := 2*p.ops >= 3*p.turns
	crowd := (waited-p.waited)/int64(max(p.turns, 1)) >= crowdDelay
	p.turns, p.ops, p.waited, p.look = 0, 0, waited, now+policyLook
	switch {
	case !p.batch:
		p.batch = deep || now >= p.retry
	case crowd && !deep:
		p.batch = false
		p.backoff = min(max(2*p.backoff, firstRetry), longRetry)
		p.retry = now + p.backoff
	case now-p.retry >= forgivenFor:
		p.backoff = 0
	}
}

// scheduler sets the thread's policy in the kernel. Only a thread that has
// SCHED_OTHER to begin with is touched: another policy is the operator's choice.
type scheduler struct {
	policy
	on  bool
	fd  int // of the thread's schedstat; -1 where the kernel keeps none
	buf [64]byte
}

const (
	schedOther = 0
	schedBatch = 3
)

// SchedEnv, set to "normal", leaves the scheduling policy of loops alone.
const SchedEnv = "BRAID_SCHED"

// batching is 1 while the thread has the batch policy.
func (s *scheduler) batching() uint64 {
	if s.on && s.batch {
		return 1
	}
	return 0
}

// start is called on the loop's thread.
func (s *scheduler) start() {
	s.fd = -1
	has, _, errno := unix.RawSyscall(unix.SYS_SCHED_GETSCHEDULER, 0, 0, 0)
	s.on = errno == 0 && has == schedOther && os.Getenv(SchedEnv) != "normal"
	if !s.on {
		return
	}
	path := fmt.Sprintf("/proc/self/task/%d/schedstat", unix.Gettid())
	if fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0); err == nil {
		s.fd = fd
	}
}

func (s *scheduler) stop() {
	if s.fd >= 0 {
		_ = unix.Close(s.fd)
	}
}

// turn is called once a turn, with the operations that the last one has completed.
func (s *scheduler) turn(ops uint64, now int64) {
	if s.on && s.due(ops, now) {
		was := s.batch
		s.next(now, s.delay())
		if s.batch != was {
			s.set()
		}
	}
}

func (s *scheduler) set() {
	var priority int32
	to := uintptr(schedOther)
	if s.batch {
		to = schedBatch
	}
	_, _, errno := unix.RawSyscall(unix.SYS_SCHED_SETSCHEDULER, 0, to, uintptr(unsafe.Pointer(&priority)))
	s.on = errno == 0 // a sandbox that forbids it forbids it for good
}

// delay is how long the thread was ready to run and had no core, in ns: the second
// number of /proc/PID/schedstat (Documentation/scheduler/sched-stats.rst).
func (s *scheduler) delay() int64 {
	if s.fd < 0 {
		return 0
	}
	n, _, errno := unix.RawSyscall6(unix.SYS_PREAD64, uintptr(s.fd),
		uintptr(unsafe.Pointer(&s.buf)), uintptr(len(s.buf)), 0, 0, 0)
	if errno != 0 {
		return 0
	}
	return secondNumber(s.buf[:n])
}

// secondNumber of a line of decimal numbers; 0 where there is none.
func secondNumber(line []byte) int64 {
	field, n := 0, int64(0)
	for _, c := range line {
		switch {
		case c == ' ':
			field++
		case c < '0' || c > '9' || field > 1:
			return n
		case field == 1:
			n = n*10 + int64(c-'0')
		}
	}
	return n
}
