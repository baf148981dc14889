// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// epollBatch readiness events are taken at a time.
const epollBatch = 128

// pool is the engine for where io_uring is forbidden: non-blocking calls and an
// epoll set for sockets, worker threads for files. It does for each op what the
// ring does, with several times the system calls.
type pool struct {
	l    *Loop
	epfd int
	// fresh holds socket ops to try at the end of the turn, files what goes to the
	// workers then, done what has ended and is to be completed.
	fresh, files, done opQueue
	fileCount          int
	workers            *workers
	// socks is indexed by descriptor.
	socks  []sock
	events [epollBatch]unix.EpollEvent
}

// sock is what waits for one socket to become ready.
type sock struct {
	recvs, sends opQueue
	// armed is what the poll set will report, once. It is 0 whenever nothing waits:
	// then the owner may close the descriptor and its number may come back.
	armed uint32
}

func newPool(l *Loop) (engine, error) {
	epfd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll set: %w", err)
	}
	ev := unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(l.efd)}
	if err := unix.EpollCtl(epfd, unix.EPOLL_CTL_ADD, l.efd, &ev); err != nil {
		unix.Close(epfd)
		return nil, fmt.Errorf("watch an eventfd: %w", err)
	}
	return &pool{l: l, epfd: epfd, workers: newWorkers(l, l.opts.Workers)}, nil
}

func (p *pool) close() {
	p.workers.close()
	unix.Close(p.epfd)
}

func (p *pool) submit(op *Op) {
	if op.Kind.socket() {
		op.state = opFresh
		p.fresh.push(op)
		return
	}
	op.state = opQueued
	p.files.push(op)
	p.fileCount++
}

func (p *pool) cancel(op *Op) {
	switch {
	case !op.Kind.socket():
		if !p.files.remove(op) {
			p.workers.cancel(op)
			return
		}
		p.fileCount--
	case op.state == opFresh:
		p.fresh.remove(op)
	case op.state == opWaiting:
		s := &p.socks[op.FD]
		s.queue(op).remove(op)
		p.arm(op.FD)
	default:
		return
	}
	p.end(op, -int(unix.ECANCELED))
}

func (p *pool) end(op *Op, res int) {
	op.state, op.res = opDone, int32(res)
	p.done.push(op)
}

func (p *pool) wait(timeout int64) {
	if p.fileCount > 0 {
		p.workers.submitAll(p.files.take(), p.fileCount)
		p.fileCount = 0
	}
	for op := p.fresh.pop(); op != nil; op = p.fresh.pop() {
		p.first(op)
	}
	if !p.done.empty() { // also where a descriptor could not be watched
		timeout = 0
	}
	n := p.poll(timeout)
	p.l.tick()
	for _, ev := range p.events[:n] {
		if int(ev.Fd) == p.l.efd {
			p.l.drainWakeups()
			continue
		}
		p.readiness(int(ev.Fd), ev.Events)
	}
	// Callbacks come last: they submit and cancel.
	done := p.done.take()
	for op := done.pop(); op != nil; op = done.pop() {
		p.l.complete(op, int(op.res))
	}
	p.workers.reap()
}

func (p *pool) ready() bool { return !p.done.empty() || p.workers.ready() }

// poll is epoll_wait. Its time limit has a resolution of 1 ms, rounded up.
func (p *pool) poll(timeout int64) int {
	p.l.count.Enters++
	var n uintptr
	var errno syscall.Errno
	set := uintptr(unsafe.Pointer(&p.events))
	if timeout == 0 {
		n, _, errno = unix.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epfd), set, epollBatch, 0, 0, 0)
	} else {
		ms := -1
		if timeout > 0 {
			const longest = 1 << 30
			ms = int(min((timeout+999_999)/1_000_000, longest))
		}
		p.l.count.Parks++
		n, _, errno = unix.Syscall6(unix.SYS_EPOLL_PWAIT, uintptr(p.epfd), set, epollBatch,
			uintptr(ms), 0, 0)
	}
	switch errno {
	case 0:
		return int(n)
	case unix.EINTR:
		return 0
	}
	panic(fmt.Sprintf("loop %s: epoll_wait: %v", p.l.opts.Name, errno))
}

// first tries a newly submitted socket op, unless others wait before it.
func (p *pool) first(op *Op) {
	if op.FD >= 0 && op.FD < len(p.socks) {
		if q := p.socks[op.FD].queue(op); !q.empty() {
			op.state = opWaiting
			q.push(op)
			return
		}
	}
	res := op.socketIO()
	if res != -int(unix.EAGAIN) || op.Flags&unix.MSG_DONTWAIT != 0 {
		p.end(op, res)
		return
	}
	for op.FD >= len(p.socks) {
		p.socks = append(p.socks, sock{})
	}
	op.state = opWaiting
	p.socks[op.FD].queue(op).push(op)
	p.arm(op.FD)
}

func (s *sock) queue(op *Op) *opQueue {
	if op.Kind.sends() {
		return &s.sends
	}
	return &s.recvs
}

// readiness tries what waits for fd.
func (p *pool) readiness(fd int, events uint32) {
	if fd >= len(p.socks) {
		return
	}
	s := &p.socks[fd]
	s.armed = 0 // reported once
	const ended = unix.EPOLLHUP | unix.EPOLLERR
	if events&(unix.EPOLLIN|unix.EPOLLRDHUP|ended) != 0 {
		p.retry(&s.recvs)
	}
	if events&(unix.EPOLLOUT|ended) != 0 {
		p.retry(&s.sends)
	}
	p.arm(fd)
}

func (p *pool) retry(q *opQueue) {
	for q.head != nil {
		res := q.head.socketIO()
		if res == -int(unix.EAGAIN) {
			return
		}
		p.end(q.pop(), res)
	}
}

// arm makes the poll set report, once, what the ops of fd wait for.
func (p *pool) arm(fd int) {
	s := &p.socks[fd]
	var events uint32
	if !s.recvs.empty() {
		events |= unix.EPOLLIN | unix.EPOLLRDHUP
	}
	if !s.sends.empty() {
		events |= unix.EPOLLOUT
	}
	if events == s.armed {
		return
	}
	s.armed = events
	if events == 0 {
		p.control(unix.EPOLL_CTL_DEL, fd, 0)
		return
	}
	errno := p.control(unix.EPOLL_CTL_MOD, fd, events|unix.EPOLLONESHOT)
	if errno == unix.ENOENT {
		errno = p.control(unix.EPOLL_CTL_ADD, fd, events|unix.EPOLLONESHOT)
	}
	if errno == 0 {
		return
	}
	// No memory or no watches left for this user, or the owner closed the descriptor
	// under its ops: it hears of it from them.
	s.armed = 0
	for _, q := range [...]*opQueue{&s.recvs, &s.sends} {
		for op := q.pop(); op != nil; op = q.pop() {
			p.end(op, -int(errno))
		}
	}
}

func (p *pool) control(op, fd int, events uint32) syscall.Errno {
	ev := unix.EpollEvent{Events: events, Fd: int32(fd)}
	_, _, errno := unix.RawSyscall6(unix.SYS_EPOLL_CTL, uintptr(p.epfd), uintptr(op), uintptr(fd),
		uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

// socketIO tries a socket operation without blocking.
func (op *Op) socketIO() int {
	var trap uintptr
	flags := uintptr(op.Flags) | unix.MSG_DONTWAIT
	switch op.Kind {
	case Recv:
		trap = unix.SYS_RECVFROM
	case Send:
		trap, flags = unix.SYS_SENDTO, flags|unix.MSG_NOSIGNAL
	case Recvmsg:
		trap = unix.SYS_RECVMSG
	case Sendmsg:
		trap, flags = unix.SYS_SENDMSG, flags|unix.MSG_NOSIGNAL
	}
	for {
		var n uintptr
		var errno syscall.Errno
		if op.Kind == Recv || op.Kind == Send {
			n, _, errno = unix.RawSyscall6(trap, uintptr(op.FD),
				uintptr(unsafe.Pointer(unsafe.SliceData(op.Buf))), uintptr(len(op.Buf)), flags, 0, 0)
		} else {
			op.setMsg()
			n, _, errno = unix.RawSyscall6(trap, uintptr(op.FD),
				uintptr(unsafe.Pointer(&op.msg)), flags, 0, 0, 0)
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
