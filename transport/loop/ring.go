// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"errors"
	"fmt"
	"sync/atomic"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// This file is the io_uring interface of the kernel (include/uapi/linux/io_uring.h)
// as far as the loop needs it; x/sys/unix has only the system call numbers.

// Operations.
const (
	opReadv       = 1
	opWritev      = 2
	opFsync       = 3
	opPollAdd     = 6
	opSendmsg     = 9
	opRecvmsg     = 10
	opAsyncCancel = 14
	opRead        = 22
	opWrite       = 23
	opSend        = 26
	opRecv        = 27
)

// Flags of io_uring_setup.
const (
	setupCQSize       = 1 << 3
	setupClamp        = 1 << 4
	setupSubmitAll    = 1 << 7  // 5.18: a bad op does not stop the batch
	setupCoopTaskrun  = 1 << 8  // 5.19: no interrupt to run completions
	setupSingleIssuer = 1 << 12 // 6.0
	setupDeferTaskrun = 1 << 13 // 6.1: completions are posted in our own enter
)

// Features that the loop relies on; all of them are in Linux 5.11.
const (
	featSingleMmap   = 1 << 0 // one mapping for both rings
	featNoDrop       = 1 << 1 // a full completion ring queues in the kernel
	featSubmitStable = 1 << 2 // vectors and message headers are copied at submit
	featFastPoll     = 1 << 5 // a socket that is not ready costs no kernel thread
	featExtArg       = 1 << 8 // a time limit in enter

	featNeeded = featSingleMmap | featNoDrop | featSubmitStable | featFastPoll | featExtArg
)

// Flags of io_uring_enter, mmap offsets, and the rest.
const (
	enterGetEvents = 1 << 0
	enterExtArg    = 1 << 3

	mmapRings = 0
	mmapSQEs  = 0x10000000

	sqCQOverflow  = 1 << 1 // in the submission ring's flags
	fsyncDataSync = 1 << 0

	sqeSize = 64
	cqeSize = 16
)

// sqe is one submission.
//
// Byte table:
//
//	 0  1  operation
//	 1  1  flags of the submission
//	 2  2  priority
//	 4  4  file descriptor
//	 8  8  offset in the file
//	16  8  address of the buffer, vectors or message header; the id to cancel
//	24  4  length in bytes, or number of vectors
//	28  4  RWF_*, MSG_*, fsync, poll or cancel flags, as the operation has it
//	32  8  user data: returned in the completion
//	40  2  index of a registered buffer
//	42  2  personality
//	44  4  registered file to use
//	48 16  unused here
type sqe struct {
	op       uint8
	flags    uint8
	ioprio   uint16
	fd       int32
	off      uint64
	addr     uint64
	len      uint32
	opFlags  uint32
	userData uint64
	bufIndex uint16
	persona  uint16
	file     int32
	_        [2]uint64
}

// cqe is one completion.
//
// Byte table: 0 8 user data | 8 4 result or -errno | 12 4 flags.
type cqe struct {
	userData uint64
	res      int32
	flags    uint32
}

// ringParams is struct io_uring_params.
//
// Byte table:
//
//	 0  4  submission slots, in and out      20  4  features, out
//	 4  4  completion slots, in and out      24  4  descriptor of a ring to share workers with
//	 8  4  setup flags                       28 12  reserved
//	12  8  polling thread: cpu, idle ms      40 40  offsets of the submission ring's fields
//	                                         80 40  offsets of the completion ring's fields
type ringParams struct {
	sqEntries, cqEntries, flags uint32
	_                           [2]uint32
	features, wqFD              uint32
	_                           [3]uint32
	sq                          sqOffsets
	cq                          cqOffsets
}

type sqOffsets struct {
	head, tail, mask, entries, flags, dropped, array, _ uint32
	_                                                   uint64
}

type cqOffsets struct {
	head, tail, mask, entries, overflow, cqes, flags, _ uint32
	_                                                   uint64
}

// getEventsArg is struct io_uring_getevents_arg: 0 8 signal mask | 8 4 its size
// | 12 4 least wait in µs | 16 8 address of the time limit.
type getEventsArg struct {
	sigmask   uint64
	sigmaskSz uint32
	minWait   uint32
	ts        uint64
}

// ring is one io_uring: its memory and its indices.
type ring struct {
	fd    int
	rings []byte
	sqes  []byte

	sqHead, sqTail, sqFlags *uint32 // shared: the kernel moves head, we move tail
	sqMask, sqEntries       uint32
	tail                    uint32 // submissions written, not yet all published
	cqHead, cqTail          *uint32
	cqMask                  uint32
	cqOff                   uintptr // of the completions within rings

	arg getEventsArg
	ts  unix.Timespec
}

// ringFlags are tried from the best down, since each arrived with a later kernel.
var ringFlags = [...]uint32{
	setupSubmitAll | setupSingleIssuer | setupDeferTaskrun,
	setupSubmitAll | setupCoopTaskrun,
	setupSubmitAll,
	0,
}

// openRing makes a ring for the calling thread, which must be locked and must be
// the only one to use it.
func openRing(entries, completions int) (*ring, error) {
	var p ringParams
	fd, errno := uintptr(0), syscall.Errno(0)
	for _, flags := range ringFlags {
		p = ringParams{
			cqEntries: uint32(completions),
			flags:     flags | setupCQSize | setupClamp,
		}
		fd, _, errno = unix.Syscall(unix.SYS_IO_URING_SETUP, uintptr(entries),
			uintptr(unsafe.Pointer(&p)), 0)
		if errno != unix.EINVAL {
			break
		}
	}
	if errno != 0 {
		return nil, fmt.Errorf("io_uring_setup with %d entries: %w", entries, errno)
	}
	r := &ring{fd: int(fd)}
	if p.features&featNeeded != featNeeded {
		r.close()
		return nil, fmt.Errorf("io_uring_setup: the kernel has features %#x of %#x: %w",
			p.features, featNeeded, errors.ErrUnsupported)
	}
	if err := r.mapMemory(&p); err != nil {
		r.close()
		return nil, err
	}
	return r, nil
}

func (r *ring) mapMemory(p *ringParams) error {
	size := max(p.sq.array+4*p.sqEntries, p.cq.cqes+cqeSize*p.cqEntries)
	var err error
	const prot, flags = unix.PROT_READ | unix.PROT_WRITE, unix.MAP_SHARED | unix.MAP_POPULATE
	if r.rings, err = unix.Mmap(r.fd, mmapRings, int(size), prot, flags); err != nil {
		return fmt.Errorf("map the rings of an io_uring, %d bytes: %w", size, err)
	}
	r.sqes, err = unix.Mmap(r.fd, mmapSQEs, int(p.sqEntries*sqeSize), prot, flags)
	if err != nil {
		return fmt.Errorf("map %d submission slots of an io_uring: %w", p.sqEntries, err)
	}
	at := func(off uint32) *uint32 { return (*uint32)(unsafe.Pointer(&r.rings[off])) }
	r.sqHead, r.sqTail, r.sqFlags = at(p.sq.head), at(p.sq.tail), at(p.sq.flags)
	r.sqMask, r.sqEntries = *at(p.sq.mask), p.sqEntries
	r.cqHead, r.cqTail, r.cqMask = at(p.cq.head), at(p.cq.tail), *at(p.cq.mask)
	r.cqOff = uintptr(p.cq.cqes)
	r.tail = *r.sqTail
	// The index array stays the identity: slots are used in order.
	for i := range p.sqEntries {
		*at(p.sq.array + 4*i) = i
	}
	return nil
}

func (r *ring) close() {
	if r.sqes != nil {
		_ = unix.Munmap(r.sqes)
	}
	if r.rings != nil {
		_ = unix.Munmap(r.rings)
	}
	_ = unix.Close(r.fd)
}

// slot returns the next free submission slot, zeroed, or nil when there is none
// until the next enter.
func (r *ring) slot() *sqe {
	if r.tail-atomic.LoadUint32(r.sqHead) >= r.sqEntries {
		return nil
	}
	s := (*sqe)(unsafe.Pointer(&r.sqes[(r.tail&r.sqMask)*sqeSize]))
	*s = sqe{}
	r.tail++
	return s
}

// ready is the number of completions that can be taken.
func (r *ring) ready() uint32 { return atomic.LoadUint32(r.cqTail) - *r.cqHead }

// take copies completions out and gives their slots back to the kernel.
func (r *ring) take(into []cqe) int {
	head := *r.cqHead
	n := min(int(atomic.LoadUint32(r.cqTail)-head), len(into))
	for i := range n {
		at := r.cqOff + uintptr((head+uint32(i))&r.cqMask)*cqeSize
		into[i] = *(*cqe)(unsafe.Pointer(&r.rings[at]))
	}
	if n > 0 {
		atomic.StoreUint32(r.cqHead, head+uint32(n))
	}
	return n
}

func (r *ring) overflowed() bool { return atomic.LoadUint32(r.sqFlags)&sqCQOverflow != 0 }

// enter publishes what was written to the slots, and waits for atLeast
// completions, at most timeout ns if that is positive.
//
// Where the wait may be long, blocks says so to the scheduler, which lends this
// thread's processor to others meanwhile. Anything else is a plain system call.
func (r *ring) enter(flags uintptr, atLeast int, timeout int64, blocks bool) syscall.Errno {
	toSubmit := r.tail - atomic.LoadUint32(r.sqHead)
	if toSubmit > 0 {
		atomic.StoreUint32(r.sqTail, r.tail)
	}
	var arg, size uintptr
	if timeout > 0 {
		r.ts = unix.NsecToTimespec(timeout)
		r.arg = getEventsArg{ts: uint64(uintptr(unsafe.Pointer(&r.ts)))}
		flags |= enterExtArg
		arg, size = uintptr(unsafe.Pointer(&r.arg)), unsafe.Sizeof(r.arg)
	}
	var errno syscall.Errno
	if blocks {
		_, _, errno = unix.Syscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd),
			uintptr(toSubmit), uintptr(atLeast), flags, arg, size)
	} else {
		_, _, errno = unix.RawSyscall6(unix.SYS_IO_URING_ENTER, uintptr(r.fd),
			uintptr(toSubmit), uintptr(atLeast), flags, arg, size)
	}
	return errno
}
