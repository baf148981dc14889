// SPDX-License-Identifier: Apache-2.0

// Package buf is the pool of reference-counted, 4 KiB-aligned buffers in which
// payload travels from a socket to a disk, or back, without being copied.
//
// Ownership: Get hands out a buffer with one reference. A function that keeps a
// buffer past its return says so in its name (Enqueue, Submit) and the caller
// Retains once for it; each holder Releases exactly once. Bytes are immutable
// from the end of the receive until the last Release.
//
// The pool never grows after NewPool: its size is the sum of named consumers,
// and Get returns nil when a class is exhausted. The caller then stops reading
// from its socket until a Release (see Pool.Wait).
package buf

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Align is the alignment of every buffer, in bytes: the block size, which also
// satisfies O_DIRECT on every device that Braid accepts.
const Align = 4096

// ErrTooLarge is returned by callers that ask for more than the largest class.
var ErrTooLarge = errors.New("buf: larger than the largest class")

// Consumer names one user of the pool and what it may hold at once.
type Consumer struct {
	Name  string
	Size  int // bytes per buffer; rounded up to a multiple of Align
	Count int
}

// Buf is one buffer. B is the whole buffer; callers slice it.
type Buf struct {
	B     []byte
	refs  atomic.Int32
	class *class
}

type class struct {
	size  int
	count int
	// mu guards free. It is a leaf and never held across a call out.
	mu   sync.Mutex
	free []*Buf
}

// Pool is a set of size classes carved from one anonymous mapping.
type Pool struct {
	classes     []*class // ascending by size
	mem         []byte
	outstanding atomic.Int64
	poison      bool
	// waitMu guards waiters, which Release calls once each.
	waitMu  sync.Mutex
	waiters []func()
	waiting atomic.Bool
}

// NewPool maps memory for the sum of the consumers. Consumers of equal size
// share a class. The memory is touched lazily by the kernel.
func NewPool(consumers ...Consumer) (*Pool, error) {
	counts := map[int]int{}
	total := 0
	for _, c := range consumers {
		if c.Size <= 0 || c.Count <= 0 {
			return nil, fmt.Errorf("buf: consumer %q asks for %d buffers of %d bytes", c.Name, c.Count, c.Size)
		}
		size := (c.Size + Align - 1) &^ (Align - 1)
		counts[size] += c.Count
		total += size * c.Count
	}
	mem, err := unix.Mmap(-1, 0, total, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("buf: map %d bytes for the buffer pool: %w", total, err)
	}
	p := &Pool{mem: mem}
	for size := range counts {
		p.classes = append(p.classes, &class{size: size, count: counts[size]})
	}
	for i := 1; i < len(p.classes); i++ { // insertion sort: a handful of classes
		for j := i; j > 0 && p.classes[j].size < p.classes[j-1].size; j-- {
			p.classes[j], p.classes[j-1] = p.classes[j-1], p.classes[j]
		}
	}
	off := 0
	for _, c := range p.classes {
		c.free = make([]*Buf, 0, c.count)
		bufs := make([]Buf, c.count)
		for i := range bufs {
			bufs[i].B = mem[off : off+c.size : off+c.size]
			bufs[i].class = c
			off += c.size
		}
		for i := len(bufs) - 1; i >= 0; i-- {
			c.free = append(c.free, &bufs[i])
		}
	}
	return p, nil
}

// Poison makes Release overwrite freed buffers with 0xDB (tests).
func (p *Pool) Poison() { p.poison = true }

// Get returns a buffer of at least n bytes with one reference, or nil when all
// classes that could hold it are exhausted. It never allocates.
func (p *Pool) Get(n int) *Buf {
	for _, c := range p.classes {
		if c.size < n {
			continue
		}
		c.mu.Lock()
		if k := len(c.free); k > 0 {
			b := c.free[k-1]
			c.free = c.free[:k-1]
			c.mu.Unlock()
			if !b.refs.CompareAndSwap(0, 1) {
				panic("buf: a free buffer has references")
			}
			p.outstanding.Add(1)
			return b
		}
		c.mu.Unlock()
		if c.size >= 4*n { // do not burn a huge buffer on a small request
			break
		}
	}
	return nil
}

// MaxSize is the largest class in bytes.
func (p *Pool) MaxSize() int { return p.classes[len(p.classes)-1].size }

// Outstanding is the number of buffers not yet released.
func (p *Pool) Outstanding() int { return int(p.outstanding.Load()) }

// Wait registers fn to be called once, by the goroutine that makes the next
// Release of a last reference. fn must only schedule (loop.Post, Defer).
func (p *Pool) Wait(fn func()) {
	p.waitMu.Lock()
	p.waiters = append(p.waiters, fn)
	p.waitMu.Unlock()
	p.waiting.Store(true)
}

// Close unmaps the memory. It panics if a buffer is outstanding.
func (p *Pool) Close() error {
	if n := p.Outstanding(); n != 0 {
		panic(fmt.Sprintf("buf: pool closed with %d buffers outstanding", n))
	}
	mem := p.mem
	p.mem = nil
	return unix.Munmap(mem)
}

// Retain adds a reference.
func (b *Buf) Retain() {
	if b.refs.Add(1) <= 1 {
		panic("buf: retain of a free buffer")
	}
}

// Release gives a reference back to p, the pool that the buffer came from.
func (p *Pool) Release(b *Buf) {
	n := b.refs.Add(-1)
	if n > 0 {
		return
	}
	if n < 0 {
		panic("buf: released more often than retained")
	}
	if p.poison {
		for i := range b.B {
			b.B[i] = 0xDB
		}
	}
	c := b.class
	c.mu.Lock()
	c.free = append(c.free, b)
	c.mu.Unlock()
	p.outstanding.Add(-1)
	if p.waiting.Load() {
		p.wake()
	}
}

func (p *Pool) wake() {
	p.waitMu.Lock()
	ws := p.waiters
	p.waiters = nil
	p.waiting.Store(false)
	p.waitMu.Unlock()
	for _, fn := range ws {
		fn()
	}
}

// Aligned reports whether b starts on an Align boundary.
func Aligned(b []byte) bool {
	return len(b) == 0 || uintptr(unsafe.Pointer(unsafe.SliceData(b)))%Align == 0
}
