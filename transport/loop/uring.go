// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Identities of completions that belong to no op: their low half is 0, which
// slotTable.id never makes.
const (
	wakeID   = 1 << 32
	cancelID = 2 << 32
)

// reapBatch completions are copied out before their callbacks run.
const reapBatch = 64

// A wait keeps the loop's processor from others for keepProcessor ns while the
// loop is busy, which is a count: a shorter wait adds one, up to mostBusy, a longer
// one takes longWait away, and from shortWaits on the loop counts as busy. The pings
// of some connections are fewer short waits than that for each long one, and a loop
// under load does not stop to be busy because the machine once stood still.
const (
	keepProcessor = 20_000_000
	shortWaits    = 32
	mostBusy      = 64
	longWait      = 12
)

// uring is the engine on an io_uring.
//
// Where later work fits in: registered files and buffers in fill (sqe.flags,
// sqe.bufIndex), multishot receive and zero-copy send in reap (cqe.flags says
// whether more follows).
type uring struct {
	l    *Loop
	ring *ring
	// backlog holds ops that found no submission slot. While it holds any, all
	// later ops go there too, so that ops start in order.
	backlog opQueue
	// failed holds ops that were cancelled before the kernel saw them.
	failed  opQueue
	cancels []uint64 // identities that found no submission slot
	// discards run on one thread of their own, started with the first: the ioctl
	// has no ring operation before Linux 6.12, and blocks.
	discards *workers
	batch    [reapBatch]cqe
	spin     spinner
	armed    bool // the poll of the eventfd
	busy     int  // see keepProcessor
}

func newUring(l *Loop) (*uring, error) {
	// Four completions a submission: many receives wait while few are submitted.
	r, err := openRing(l.opts.Entries, 4*l.opts.Entries)
	if err != nil {
		return nil, err
	}
	return &uring{l: l, ring: r, spin: spinner{limit: int64(l.opts.Spin)}}, nil
}

func (u *uring) close() {
	if u.discards != nil {
		u.discards.close()
	}
	u.ring.close()
}

func (u *uring) submit(op *Op) {
	if op.Kind == Discard {
		if u.discards == nil {
			u.discards = newWorkers(u.l, 1)
		}
		u.discards.submit(op)
		return
	}
	if u.backlog.empty() {
		if s := u.slot(); s != nil {
			u.fill(s, op)
			return
		}
	}
	u.backlog.push(op)
}

// slot finds a submission slot, if need be by handing the kernel what the ring
// holds already.
func (u *uring) slot() *sqe {
	if s := u.ring.slot(); s != nil {
		return s
	}
	u.enter(0, 0, 0, false)
	return u.ring.slot()
}

func (u *uring) cancel(op *Op) {
	if op.Kind == Discard {
		u.discards.cancel(op)
		return
	}
	if u.backlog.remove(op) {
		op.res = -int32(unix.ECANCELED)
		u.failed.push(op)
		return
	}
	u.cancels = append(u.cancels, u.l.table.id(op))
}

// prepare moves what waits for submission slots into them.
func (u *uring) prepare() {
	for !u.backlog.empty() {
		s := u.slot()
		if s == nil {
			return
		}
		u.fill(s, u.backlog.pop())
	}
	n := 0
	for _, id := range u.cancels {
		s := u.slot()
		if s == nil {
			break
		}
		s.op, s.fd, s.addr, s.userData = opAsyncCancel, -1, id, cancelID
		n++
	}
	u.cancels = u.cancels[:copy(u.cancels, u.cancels[n:])]
	if !u.armed {
		if s := u.slot(); s != nil {
			s.op, s.fd, s.opFlags, s.userData = opPollAdd, int32(u.l.efd), unix.POLLIN, wakeID
			u.armed = true
		}
	}
}

func (u *uring) ready() bool {
	return !u.failed.empty() || u.discards != nil && u.discards.ready()
}

func (u *uring) wait(timeout int64) {
	u.prepare()
	switch {
	case timeout == 0 || !u.failed.empty() || !u.backlog.empty() || len(u.cancels) > 0 || !u.armed:
		// Something is left to do that no completion would announce.
		u.enter(enterGetEvents, 0, 0, false)
	case u.spin.limit > 0 && u.poll(timeout):
	default:
		u.sleep(timeout)
	}
	u.l.tick()
	if u.ring.overflowed() {
		u.l.count.Overflows++
	}
	u.reap()
	for op := u.failed.pop(); op != nil; op = u.failed.pop() {
		u.l.complete(op, int(op.res))
	}
	if u.discards != nil {
		u.discards.reap()
	}
}

// poll looks for a completion without blocking, for as long as it pays, and
// reports whether there is one.
func (u *uring) poll(timeout int64) bool {
	begin := int64(time.Since(base))
	budget := u.spin.budget()
	if timeout > 0 {
		budget = min(budget, timeout)
	}
	for {
		u.enter(enterGetEvents, 0, 0, false)
		if u.ring.ready() > 0 {
			u.spin.won()
			return true
		}
		if int64(time.Since(base))-begin >= budget {
			u.spin.lost()
			return false
		}
	}
}

// sleep waits for a completion. While waits are short the loop keeps its
// processor in them: giving it up wakes the scheduler's monitor, which then ticks
// every 20 µs until it finds the processor idle, and costs more than the request.
// Other goroutines do not miss it: see ownProcessor.
func (u *uring) sleep(timeout int64) {
	begin := int64(time.Since(base))
	if u.busy >= shortWaits {
		limit := int64(keepProcessor)
		if timeout > 0 {
			limit = min(limit, timeout)
		}
		u.enter(enterGetEvents, 1, limit, false)
		if u.ring.ready() > 0 {
			u.busy = min(u.busy+1, mostBusy)
			return
		}
		// Nothing has completed. Either the scheduler has interrupted the wait, to have
		// the thread for a moment, and it goes on in the next turn; or it was a long one.
		if limit == timeout || int64(time.Since(base))-begin < limit {
			return
		}
		if timeout > 0 {
			timeout -= limit
		}
	}
	u.l.count.Parks++
	u.enter(enterGetEvents, 1, timeout, true)
	if u.ring.ready() > 0 && int64(time.Since(base))-begin < keepProcessor {
		u.busy = min(u.busy+1, mostBusy)
	} else {
		u.busy = max(u.busy-longWait, 0)
	}
}

func (u *uring) enter(flags uintptr, atLeast int, timeout int64, blocks bool) {
	u.l.count.Enters++
	errno := u.ring.enter(flags, atLeast, timeout, blocks)
	switch errno {
	case 0, unix.ETIME, unix.EINTR:
	case unix.EBUSY, unix.EAGAIN:
		// The completion ring is full, or the kernel is short of memory for requests.
		// Unsubmitted slots stay in the ring and go with the next turn's call, which
		// comes after completions were taken.
	default:
		// EBADF, EFAULT, EINVAL, EBADR: our own books are wrong.
		panic(fmt.Sprintf("loop %s: io_uring_enter: %v", u.l.opts.Name, errno))
	}
}

// reap runs the callbacks of what has completed up to now. What completes
// meanwhile waits for the next turn, so that deferred sends are not starved.
func (u *uring) reap() {
	for left := int(u.ring.ready()); left > 0; {
		n := u.ring.take(u.batch[:min(left, reapBatch)])
		left -= n
		for i := range n {
			u.completed(&u.batch[i])
		}
	}
}

func (u *uring) completed(c *cqe) {
	switch c.userData {
	case wakeID:
		u.armed = false
		u.l.drainWakeups()
		return
	case cancelID:
		return // the cancelled op has its own completion
	}
	op := u.l.table.lookup(c.userData)
	if op == nil {
		panic(fmt.Sprintf("loop %s: completion %#x belongs to no op", u.l.opts.Name, c.userData))
	}
	if c.res == -int32(unix.EINTR) {
		// A kernel worker was interrupted: by a cancellation, or for no reason of ours.
		if !op.cancelled {
			u.submit(op)
			return
		}
		c.res = -int32(unix.ECANCELED)
	}
	u.l.count.RingOps++
	u.l.complete(op, int(c.res))
}

// fill writes an op to a zeroed submission slot.
func (u *uring) fill(s *sqe, op *Op) {
	s.fd = int32(op.FD)
	s.userData = u.l.table.id(op)
	s.opFlags = uint32(op.Flags)
	switch op.Kind {
	case Recv, Send:
		s.op = opRecv
		if op.Kind == Send {
			s.op = opSend
			s.opFlags |= unix.MSG_NOSIGNAL
		}
		s.setBuf(op.Buf)
	case Recvmsg, Sendmsg:
		s.op = opRecvmsg
		if op.Kind == Sendmsg {
			s.op = opSendmsg
			s.opFlags |= unix.MSG_NOSIGNAL
		}
		op.setMsg()
		s.addr, s.len = addrOf(unsafe.Pointer(&op.msg)), 1
	case Read, Write:
		s.op = opRead
		if op.Kind == Write {
			s.op = opWrite
		}
		s.off = uint64(op.Off)
		s.setBuf(op.Buf)
	case Readv, Writev:
		s.op = opReadv
		if op.Kind == Writev {
			s.op = opWritev
		}
		s.off = uint64(op.Off)
		s.addr = addrOf(unsafe.Pointer(unsafe.SliceData(op.Iov)))
		s.len = uint32(len(op.Iov))
	case Fsync:
		s.op, s.opFlags = opFsync, fsyncDataSync
	default:
		panic("loop: unknown kind of op")
	}
}

func (s *sqe) setBuf(b []byte) {
	s.addr, s.len = addrOf(unsafe.Pointer(unsafe.SliceData(b))), uint32(len(b))
}

// addrOf turns a pointer into what the kernel wants. The slot table keeps the
// memory reachable, and heap objects do not move.
func addrOf(p unsafe.Pointer) uint64 { return uint64(uintptr(p)) }

// setMsg describes Iov in the op's message header.
func (op *Op) setMsg() {
	op.msg = unix.Msghdr{Iov: unsafe.SliceData(op.Iov)}
	op.msg.SetIovlen(len(op.Iov))
}
