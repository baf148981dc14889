// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// blkDiscard is the ioctl BLKDISCARD, _IO(0x12, 119).
const blkDiscard = 0x1277

// workers are a fixed number of threads that do blocking file I/O for one loop.
type workers struct {
	l  *Loop
	wg sync.WaitGroup
	// mu guards the rest and the state of ops that are with the workers. It is a
	// leaf and never held across I/O.
	mu   sync.Mutex
	some sync.Cond // queue is not empty, or stop
	// queue waits for a worker; done waits for the loop.
	queue, done opQueue
	idle        int
	stop        bool
}

func newWorkers(l *Loop, n int) *workers {
	w := &workers{l: l}
	w.some.L = &w.mu
	w.wg.Add(n)
	for range n {
		go w.work()
	}
	return w
}

// close ends the threads. No op is with them.
func (w *workers) close() {
	w.mu.Lock()
	w.stop = true
	w.mu.Unlock()
	w.some.Broadcast()
	w.wg.Wait()
}

func (w *workers) submit(op *Op) {
	op.state = opQueued
	var q opQueue
	q.push(op)
	w.submitAll(q, 1)
}

// submitAll takes a list of n ops whose state is opQueued.
func (w *workers) submitAll(q opQueue, n int) {
	w.mu.Lock()
	w.queue.append(q)
	wake := min(n, w.idle)
	w.mu.Unlock()
	for range wake {
		w.some.Signal()
	}
}

// cancel ends op early if no worker has taken it yet.
func (w *workers) cancel(op *Op) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if op.state == opQueued && w.queue.remove(op) {
		op.state, op.res = opDone, -int32(unix.ECANCELED)
		w.done.push(op)
	}
}

func (w *workers) ready() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return !w.done.empty()
}

// reap completes what the workers have finished; on the loop.
func (w *workers) reap() {
	w.mu.Lock()
	q := w.done.take()
	w.mu.Unlock()
	for op := q.pop(); op != nil; op = q.pop() {
		w.l.complete(op, int(op.res))
	}
}

func (w *workers) work() {
	defer w.wg.Done()
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		op := w.queue.pop()
		if op == nil {
			if w.stop {
				return
			}
			w.idle++
			w.some.Wait()
			w.idle--
			continue
		}
		op.state = opRunning
		w.mu.Unlock()
		op.res = int32(op.fileIO())
		w.mu.Lock()
		op.state = opDone
		first := w.done.empty()
		w.done.push(op)
		if first {
			w.mu.Unlock()
			w.l.wake()
			w.mu.Lock()
		}
	}
}

// fileIO does a file operation and returns what OpDone gets.
func (op *Op) fileIO() int {
	for {
		var n uintptr
		var errno unix.Errno
		switch op.Kind {
		case Read:
			n, errno = op.pio(unix.SYS_PREADV2, nil)
		case Write:
			n, errno = op.pio(unix.SYS_PWRITEV2, nil)
		case Readv:
			n, errno = op.pio(unix.SYS_PREADV2, op.Iov)
		case Writev:
			n, errno = op.pio(unix.SYS_PWRITEV2, op.Iov)
		case Fsync:
			_, _, errno = unix.Syscall(unix.SYS_FDATASYNC, uintptr(op.FD), 0, 0)
		case Discard:
			errno = op.discard()
		default:
			panic("loop: unknown kind of op")
		}
		switch errno {
		case 0:
			return int(n)
		case unix.EINTR:
		default:
			return -int(errno)
		}
	}
}

// pio reads or writes at Off: Iov if there is one, else Buf, through the op's
// own vector so that nothing is allocated.
func (op *Op) pio(trap uintptr, iov []unix.Iovec) (uintptr, unix.Errno) {
	p, n := unsafe.SliceData(iov), len(iov)
	if op.Kind == Read || op.Kind == Write {
		op.one.Base = unsafe.SliceData(op.Buf)
		op.one.SetLen(len(op.Buf))
		p, n = &op.one, 1
	}
	// On 64-bit machines the whole offset is in its low half, and the kernel
	// ignores the high one.
	done, _, errno := unix.Syscall6(trap, uintptr(op.FD), uintptr(unsafe.Pointer(p)),
		uintptr(n), uintptr(op.Off), 0, uintptr(op.Flags))
	return done, errno
}

func (op *Op) discard() unix.Errno {
	var st unix.Stat_t
	if err := unix.Fstat(op.FD, &st); err != nil {
		return err.(unix.Errno)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFBLK {
		span := [2]uint64{uint64(op.Off), uint64(op.Len)}
		_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(op.FD), blkDiscard,
			uintptr(unsafe.Pointer(&span)))
		return errno
	}
	err := unix.Fallocate(op.FD, unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, op.Off, op.Len)
	if err != nil {
		return err.(unix.Errno)
	}
	return 0
}
