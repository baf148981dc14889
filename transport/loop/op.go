// SPDX-License-Identifier: Apache-2.0

package loop

import "golang.org/x/sys/unix"

// Kind is what an Op does.
type Kind uint8

// The operations. Recv and Send use Buf; Recvmsg and Sendmsg use Iov. Read,
// Write use Buf at Off of a file; Readv, Writev use Iov. Fsync is fdatasync.
// Discard gives Len bytes at Off back: a hole in a file, BLKDISCARD on a block
// device.
const (
	Recv Kind = iota
	Recvmsg
	Send
	Sendmsg
	Read
	Readv
	Write
	Writev
	Fsync
	Discard
	kindCount
)

var kindNames = [kindCount]string{
	"recv", "recvmsg", "send", "sendmsg", "read", "readv", "write", "writev", "fsync", "discard",
}

func (k Kind) String() string {
	if k < kindCount {
		return kindNames[k]
	}
	return "unknown"
}

// socket reports whether the operation is one of a socket.
func (k Kind) socket() bool { return k <= Sendmsg }

// sends reports whether a socket operation waits for room rather than for bytes.
func (k Kind) sends() bool { return k == Send || k == Sendmsg }

// MaxIov is the most vectors that one Op may carry (IOV_MAX of the kernel).
const MaxIov = 1024

// Completer is told when an Op has ended, on the loop's thread.
type Completer interface {
	// OpDone: res is a byte count (0 at the end of a stream or file), or -errno.
	// A count may be short: of sockets always, of files at their end and after a
	// signal. The op may be submitted again from here.
	OpDone(op *Op, res int)
}

// Op is one operation, embedded by value in the caller's own request structure
// (which must live on the heap or in a slot table) and reused. It and its
// memory must stay untouched until OpDone. It must not be copied while active.
//
// A socket may be in blocking or in non-blocking mode; the loop never blocks on
// it either way.
type Op struct {
	Kind  Kind
	FD    int
	Off   int64
	Len   int64 // Discard only
	Buf   []byte
	Iov   []unix.Iovec
	Flags int // MSG_* for sockets (MSG_WAITALL is a hint), RWF_* for files
	Done  Completer
	Tag   uint64 // the caller's own

	msg       unix.Msghdr
	one       unix.Iovec // Buf as a vector
	next      *Op        // link of whichever queue of the engine the op is in
	slot      int32      // index in the slot table
	res       int32      // outcome on its way back from a worker
	state     opState
	active    bool
	cancelled bool // Cancel was called
}

// opState says where the pool engine (or the discard worker) has the op.
type opState uint8

const (
	opIdle    opState = iota
	opFresh           // socket: to be tried at the next turn
	opWaiting         // socket: waits for the poll set
	opQueued          // file: in the workers' queue
	opRunning         // file: a worker has it
	opDone            // in a completion queue
)

// Active reports whether the op has been submitted and has not completed yet.
func (op *Op) Active() bool { return op.active }

// opQueue is an intrusive first-in first-out list through Op.next.
type opQueue struct {
	head, tail *Op
}

func (q *opQueue) push(op *Op) {
	op.next = nil
	if q.tail == nil {
		q.head = op
	} else {
		q.tail.next = op
	}
	q.tail = op
}

// append moves all of o behind what q holds.
func (q *opQueue) append(o opQueue) {
	switch {
	case o.head == nil:
	case q.head == nil:
		*q = o
	default:
		q.tail.next, q.tail = o.head, o.tail
	}
}

func (q *opQueue) pop() *Op {
	op := q.head
	if op == nil {
		return nil
	}
	q.head = op.next
	if q.head == nil {
		q.tail = nil
	}
	op.next = nil
	return op
}

// remove takes op out, wherever it is, and reports whether it was there. It
// walks the list: for cancellation only.
func (q *opQueue) remove(op *Op) bool {
	var prev *Op
	for o := q.head; o != nil; prev, o = o, o.next {
		if o != op {
			continue
		}
		if prev == nil {
			q.head = o.next
		} else {
			prev.next = o.next
		}
		if q.tail == o {
			q.tail = prev
		}
		o.next = nil
		return true
	}
	return false
}

func (q *opQueue) empty() bool { return q.head == nil }

// take empties q and returns what it held.
func (q *opQueue) take() opQueue {
	t := *q
	*q = opQueue{}
	return t
}

// slotTable maps the identity that travels through the kernel back to the op,
// and keeps active ops (and so their memory) reachable for the collector. It
// grows when all slots are taken and never shrinks: ops that wait for ever on
// idle sockets must not be able to starve the disk.
type slotTable struct {
	slots []slot
	free  []int32
}

type slot struct {
	op *Op
	// reuse counts the uses of the slot, so that a late cancellation cannot hit
	// the next op in it.
	reuse uint32
}

func newSlotTable(n int) slotTable {
	t := slotTable{slots: make([]slot, 0, n), free: make([]int32, 0, n)}
	t.grow(n)
	return t
}

func (t *slotTable) grow(n int) {
	first := len(t.slots)
	t.slots = append(t.slots, make([]slot, n)...)
	for i := first + n - 1; i >= first; i-- {
		t.free = append(t.free, int32(i))
	}
}

func (t *slotTable) put(op *Op) {
	if len(t.free) == 0 {
		t.grow(len(t.slots))
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	op.slot = i
	s := &t.slots[i]
	s.op = op
	s.reuse++
}

// id is the op's identity as it travels through the kernel: never 0.
func (t *slotTable) id(op *Op) uint64 {
	return uint64(t.slots[op.slot].reuse)<<32 | uint64(uint32(op.slot)) + 1
}

// lookup returns the op of an identity, or nil when that use has ended.
func (t *slotTable) lookup(id uint64) *Op {
	i := int(uint32(id)) - 1
	if i < 0 || i >= len(t.slots) {
		return nil
	}
	s := &t.slots[i]
	if s.op == nil || s.reuse != uint32(id>>32) {
		return nil
	}
	return s.op
}

func (t *slotTable) drop(op *Op) {
	t.slots[op.slot].op = nil
	t.free = append(t.free, op.slot)
}
