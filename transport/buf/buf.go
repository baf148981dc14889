// SPDX-License-Identifier: Apache-2.0

package buf

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Align is the alignment of every buffer, in bytes: the block size, which also
// satisfies O_DIRECT on every device that Braid accepts.
const Align = 4096

// maxUpgrade bounds how much larger than the fitting class a buffer may be that
// stands in for it when it is exhausted.
const maxUpgrade = 4

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
	// poisoned: B holds nothing but the poison since the last Release. Whoever owns
	// the buffer, or the class's mu while it is free, may touch it.
	poisoned bool
}

type class struct {
	pool  *Pool
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
			return nil, fmt.Errorf("buf: consumer %q asks for %d buffers of %d bytes: want at least 1 of 1",
				c.Name, c.Count, c.Size)
		}
		size := (c.Size + Align - 1) &^ (Align - 1)
		counts[size] += c.Count
		total += size * c.Count
	}
	if total == 0 {
		return nil, errors.New("buf: a pool without consumers")
	}
	mem, err := unix.Mmap(-1, 0, total, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		return nil, fmt.Errorf("buf: map %d bytes for the buffer pool: %w", total, err)
	}
	p := &Pool{mem: mem}
	for size := range counts {
		p.classes = append(p.classes, &class{pool: p, size: size, count: counts[size]})
	}
	slices.SortFunc(p.classes, func(a, b *class) int { return a.size - b.size })
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

// poisonByte fills released buffers, where a test asked for it.
const poisonByte = 0xDB

// Poison makes Release overwrite freed buffers with 0xDB, and Get panic when one
// was written to while it was free. For tests; call it before the first Get.
func (p *Pool) Poison() { p.poison = true }

func (b *Buf) fillPoison() {
	b.B[0] = poisonByte
	for n := 1; n < len(b.B); n *= 2 {
		copy(b.B[n:], b.B[:n])
	}
	b.poisoned = true
}

func (b *Buf) checkPoison() {
	if !b.poisoned {
		return
	}
	b.poisoned = false
	// All bytes are equal to their neighbour, and the first one is right.
	if b.B[0] != poisonByte || !bytes.Equal(b.B[1:], b.B[:len(b.B)-1]) {
		panic("buf: a buffer was written to after its last release")
	}
}

// Get returns a buffer of at least n bytes with one reference, or nil when all
// classes that could hold it are exhausted. It never allocates. It does not burn
// a huge buffer on a small request: beyond the smallest class that fits, only
// those up to maxUpgrade times its size are tried.
func (p *Pool) Get(n int) *Buf {
	largest := 0
	for _, c := range p.classes {
		if c.size < n {
			continue
		}
		if largest == 0 {
			largest = maxUpgrade * c.size
		}
		if c.size > largest {
			break
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
			b.checkPoison()
			return b
		}
		c.mu.Unlock()
	}
	return nil
}

// MaxSize is the largest class in bytes.
func (p *Pool) MaxSize() int { return p.classes[len(p.classes)-1].size }

// Outstanding is the number of buffers not yet released.
func (p *Pool) Outstanding() int { return int(p.outstanding.Load()) }

// Wait registers fn to be called once, by the goroutine that makes the next
// Release of a last reference. fn must only schedule (loop.Post, Defer). The
// caller must try Get once more after Wait, since the release that it waits for
// may have come between its failed Get and Wait; fn is called nonetheless.
func (p *Pool) Wait(fn func()) {
	p.waitMu.Lock()
	p.waiters = append(p.waiters, fn)
	p.waitMu.Unlock()
	p.waiting.Store(true)
}

// Close unmaps the memory; Get then returns nil. It panics if a buffer is
// outstanding. Closing again is harmless.
func (p *Pool) Close() error {
	if n := p.Outstanding(); n != 0 {
		panic(fmt.Sprintf("buf: pool closed with %d buffers outstanding", n))
	}
	if p.mem == nil {
		return nil
	}
	for _, c := range p.classes {
		c.mu.Lock()
		c.free = nil
		c.mu.Unlock()
	}
	mem := p.mem
	p.mem = nil
	if err := unix.Munmap(mem); err != nil {
		return fmt.Errorf("buf: unmap %d bytes of the buffer pool: %w", len(mem), err)
	}
	return nil
}

// Has reports whether a buffer is one of the pool's.
func (p *Pool) Has(b *Buf) bool { return b.class.pool == p }

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
		b.fillPoison()
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
