// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// Engine is the kernel interface that a loop runs on.
type Engine uint8

// Auto takes Uring where the kernel allows it and Pool where it does not.
const (
	Auto  Engine = iota
	Uring        // an io_uring, Linux 5.11 or newer
	Pool         // epoll and a fixed set of worker threads
)

func (e Engine) String() string {
	switch e {
	case Auto:
		return "auto"
	case Uring:
		return "io_uring"
	case Pool:
		return "pool"
	}
	return "unknown"
}

// EngineEnv names the environment variable that decides where Options say Auto:
// auto, io_uring or pool. It is for trials and tests; unset is auto.
const EngineEnv = "BRAID_ENGINE"

// Defaults and limits of Options.
const (
	DefaultEntries = 256 // submission slots of the ring
	DefaultWorkers = 8   // threads of the pool engine
	MaxEntries     = 4096
	MaxWorkers     = 256

	// Rounds of deferred calls in one turn: one call may lead to another (a store
	// replies, its connection then wants to send) and should share the turn.
	maxDeferRounds = 8
)

// Options of a loop. The zero value is fine.
type Options struct {
	Engine  Engine
	Entries int    // submission slots of the ring; a power of two; not a limit on active ops
	Workers int    // threads that do the Pool engine's file I/O
	Name    string // for error texts
	// Spin is how long the loop polls before it blocks. It costs a core's time and
	// pays only where waking an idle core is slow; 0, the default, never polls.
	Spin time.Duration
}

// ErrEngine: the requested engine does not work here.
var ErrEngine = errors.New("engine not available")

// Deferred is run once at the end of a turn.
type Deferred interface{ RunDeferred() }

// Stats counts what a loop did since its start.
type Stats struct {
	Enters    uint64 // system calls that submit and wait (io_uring_enter, epoll_wait)
	Ops       uint64 // operations completed, by whatever engine
	RingOps   uint64 // of these, by io_uring
	Wakeups   uint64 // times another goroutine had to wake the loop
	Turns     uint64
	Parks     uint64 // waits that lent the loop's processor to other goroutines
	Active    uint64 // operations submitted and not completed
	Overflows uint64 // times the kernel had to queue completions beyond its ring
	Batching  uint64 // 1 while the thread has the batch policy; see policy
}

// engine is what differs between io_uring and the pool. All of it runs on the
// loop's thread.
type engine interface {
	// submit takes an op that has a slot. It calls nothing back.
	submit(op *Op)
	// cancel asks for an early end of an op that was submitted.
	cancel(op *Op)
	// wait hands all queued ops to the kernel, waits at most timeout ns (0: not at
	// all; negative: for ever) for a completion or a wake-up, calls Loop.tick, and
	// then Loop.complete for what has completed.
	wait(timeout int64)
	// ready reports whether there is something to complete that will not end a
	// wait by itself. It is asked after asleep was set.
	ready() bool
	// close frees everything. No op is active.
	close()
}

// base is the zero of Now, the same for all loops of the process.
var base = time.Now()

// Loop is one event loop. See the package comment for which methods may be
// called from where.
type Loop struct {
	opts Options
	kind Engine
	eng  engine
	tid  int
	efd  int // eventfd that wakes the loop

	// Owned by the loop's thread.
	now      int64
	table    slotTable
	active   int
	refused  opQueue // submitted while closing; completed at the next turn
	timers   timerHeap
	deferred []Deferred
	running  []Deferred
	spare    []func()
	closing  bool
	count    Stats
	sched    scheduler
	before   uint64 // count.Ops when the last turn began

	// mu guards posts, ended, and the eventfd against writes after its close. It is
	// a leaf.
	mu    sync.Mutex
	posts []func()
	ended bool
	// asleep is true while the loop is, or is about to be, blocked in the kernel.
	// Who turns it to false writes the eventfd; so a busy loop costs no system call.
	asleep atomic.Bool
	stop   atomic.Bool

	startOnce sync.Once
	start     chan struct{}
	done      chan struct{}
	stats     published
}

// published is a copy of the counters that other goroutines may read.
type published struct {
	enters, ops, ringOps, wakeups, turns, parks, active, overflows, batching atomic.Uint64
}

// New makes a loop and its thread, which waits for Start. The loop must be
// closed, whether started or not.
func New(o Options) (*Loop, error) {
	if err := o.complete(); err != nil {
		return nil, err
	}
	efd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("loop %s: make an eventfd: %w", o.Name, err)
	}
	l := &Loop{
		opts:  o,
		efd:   efd,
		table: newSlotTable(4 * o.Entries),
		now:   int64(time.Since(base)),
		start: make(chan struct{}),
		done:  make(chan struct{}),
	}
	made := make(chan error)
	go l.thread(made)
	if err := <-made; err != nil {
		<-l.done
		return nil, err
	}
	return l, nil
}

func (o *Options) complete() error {
	if o.Engine == Auto {
		switch v := os.Getenv(EngineEnv); v {
		case "", "auto":
		case "io_uring":
			o.Engine = Uring
		case "pool":
			o.Engine = Pool
		default:
			return fmt.Errorf("loop: %s=%q: want auto, io_uring or pool", EngineEnv, v)
		}
	}
	if o.Entries == 0 {
		o.Entries = DefaultEntries
	}
	if o.Workers == 0 {
		o.Workers = DefaultWorkers
	}
	if o.Name == "" {
		o.Name = "loop"
	}
	switch {
	case o.Engine > Pool:
		return fmt.Errorf("loop %s: engine %d does not exist", o.Name, o.Engine)
	case o.Entries < 1 || o.Entries > MaxEntries || o.Entries&(o.Entries-1) != 0:
		return fmt.Errorf("loop %s: %d entries: want a power of two up to %d",
			o.Name, o.Entries, MaxEntries)
	case o.Workers < 1 || o.Workers > MaxWorkers:
		return fmt.Errorf("loop %s: %d workers: want 1 to %d", o.Name, o.Workers, MaxWorkers)
	}
	return nil
}

// thread is the loop's only goroutine. The ring is set up here because the
// kernel binds it to the thread that makes it.
func (l *Loop) thread(made chan<- error) {
	// Never unlocked: the thread ends with the goroutine.
	runtime.LockOSThread()
	defer close(l.done)
	defer unix.Close(l.efd)
	l.tid = unix.Gettid()
	if err := l.makeEngine(); err != nil {
		made <- err
		return
	}
	ownProcessor()
	defer returnProcessor()
	l.sched.start()
	defer l.sched.stop()
	made <- nil
	<-l.start
	l.run()
	l.eng.close()
}

func (l *Loop) makeEngine() error {
	var why error
	if l.opts.Engine != Pool {
		eng, err := newUring(l)
		if err == nil {
			l.eng, l.kind = eng, Uring
			return nil
		}
		why = err
	}
	if l.opts.Engine == Uring {
		return fmt.Errorf("loop %s: %w: io_uring: %w (sysctl kernel.io_uring_disabled or a "+
			"container's seccomp profile may forbid it; %s=pool works without)",
			l.opts.Name, ErrEngine, why, EngineEnv)
	}
	eng, err := newPool(l)
	if err != nil {
		return fmt.Errorf("loop %s: %w: %w", l.opts.Name, ErrEngine, err)
	}
	l.eng, l.kind = eng, Pool
	return nil
}

// Start lets the loop run.
func (l *Loop) Start() { l.startOnce.Do(func() { close(l.start) }) }

// Close ends the loop: from now on submitted ops complete with -ECANCELED,
// active ones are cancelled (file I/O that the disk already has runs to its
// end), what was posted runs, and the thread ends. Armed timers do not fire any
// more. Close returns when all of that has happened; calling it again is
// harmless. It must not be called on the loop itself.
func (l *Loop) Close() error {
	l.offLoop("Close")
	l.stop.Store(true)
	l.Start()
	l.wake()
	<-l.done
	return nil
}

// Done is closed when the loop has ended.
func (l *Loop) Done() <-chan struct{} { return l.done }

// Engine is the engine that the loop really uses.
func (l *Loop) Engine() Engine { return l.kind }

// Post makes the loop run fn soon, in the order of the calls. After the loop has
// ended fn is dropped.
func (l *Loop) Post(fn func()) { l.post(fn) }

func (l *Loop) post(fn func()) bool {
	l.mu.Lock()
	if l.ended {
		l.mu.Unlock()
		return false
	}
	l.posts = append(l.posts, fn)
	l.mu.Unlock()
	l.wake()
	return true
}

// Call runs fn on the loop and returns when it has run, or when the loop has
// ended without running it. It must not be called on the loop itself.
func (l *Loop) Call(fn func()) {
	l.offLoop("Call")
	ran := make(chan struct{})
	if l.post(func() { defer close(ran); fn() }) {
		<-ran
	}
}

// offLoop panics on a call that would wait for itself.
func (l *Loop) offLoop(what string) {
	if unix.Gettid() == l.tid {
		panic("loop: " + what + " on the loop's own thread would never return")
	}
}

// wake makes the loop come out of the kernel if it is in there.
func (l *Loop) wake() {
	if !l.asleep.Load() || !l.asleep.CompareAndSwap(true, false) {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.ended {
		return
	}
	one := [8]byte{1} // little- or big-endian: any value but 0 and all ones will do
	if _, err := unix.Write(l.efd, one[:]); err != nil && err != unix.EAGAIN {
		panic(fmt.Sprintf("loop %s: write to its eventfd: %v", l.opts.Name, err))
	}
}

// drainWakeups resets the eventfd; on the loop.
func (l *Loop) drainWakeups() {
	var count [8]byte
	// EAGAIN, when there was nothing to reset, is fine.
	_, _ = unix.Read(l.efd, count[:])
}

// Submit starts op. It goes to the kernel in one batch with all others of this
// turn; op.Done hears of its end in a later turn.
func (l *Loop) Submit(op *Op) {
	if op.active {
		panic("loop: op submitted while it is active")
	}
	op.active, op.cancelled = true, false
	if l.closing {
		l.refused.push(op)
		return
	}
	l.active++
	l.table.put(op)
	l.eng.submit(op)
}

// Cancel asks for op to end early, if it is active. OpDone still comes: with
// -ECANCELED, or with the op's own result where it was too late. File I/O that
// has started is not interrupted.
func (l *Loop) Cancel(op *Op) {
	if op.active && !op.cancelled && !l.closing {
		op.cancelled = true
		l.eng.cancel(op)
	}
}

// Defer runs d once at the end of this turn, before the kernel is entered. The
// caller keeps its own flag to not defer twice.
func (l *Loop) Defer(d Deferred) { l.deferred = append(l.deferred, d) }

// Now is the monotonic time in ns since some moment before the process's first
// loop, the same for all loops, read at most twice a turn.
func (l *Loop) Now() int64 { return l.now }

// Arm starts t, or moves its deadline, to the given time from Now.
func (l *Loop) Arm(t *Timer, after time.Duration) {
	l.timers.arm(t, l.now+max(int64(after), 0))
}

// Disarm stops t, if it is armed.
func (l *Loop) Disarm(t *Timer) { l.timers.disarm(t) }

// Stats returns the counters as of the end of the last turn.
func (l *Loop) Stats() Stats {
	s := &l.stats
	return Stats{
		Enters: s.enters.Load(), Ops: s.ops.Load(), RingOps: s.ringOps.Load(),
		Wakeups: s.wakeups.Load(), Turns: s.turns.Load(), Parks: s.parks.Load(),
		Active: s.active.Load(), Overflows: s.overflows.Load(), Batching: s.batching.Load(),
	}
}

func (l *Loop) publish() {
	s, c := &l.stats, &l.count
	s.enters.Store(c.Enters)
	s.ops.Store(c.Ops)
	s.ringOps.Store(c.RingOps)
	s.wakeups.Store(c.Wakeups)
	s.turns.Store(c.Turns)
	s.parks.Store(c.Parks)
	s.active.Store(uint64(l.active))
	s.overflows.Store(c.Overflows)
	s.batching.Store(l.sched.batching())
}
