// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"sync"
	"sync/atomic"

	"braid/transport/buf"
)

// spill is memory for a device some of whose writes wait for what may be long in
// coming: space. They keep their buffers meanwhile, and a connection from which the next
// payload cannot be received hides what stands behind it. So that reads, trims and other
// writes go on, and other devices too, there is more memory then, as much again as the
// kernel's page cache keeps under way for one device. It is mapped when it is first
// needed, and the system gives it pages as they are touched.
type spill struct {
	pool atomic.Pointer[buf.Pool] // nil: it was never needed
	// making guards the making of it, once.
	making   sync.Once
	watching atomic.Bool // the pool will call wake
}

// spillConsumers sizes it: 136 MiB.
func spillConsumers() []buf.Consumer {
	return []buf.Consumer{
		{Name: "spilled small payload", Size: 4 << 10, Count: 1024},
		{Name: "spilled medium payload", Size: 16 << 10, Count: 256},
		{Name: "spilled large payload", Size: 128 << 10, Count: 256},
		{Name: "spilled pieces", Size: dataPiece, Count: 96},
	}
}

// Roomless is a device that knows whether writes of it wait for space.
type Roomless interface {
	Roomless() bool // on its loop
}

// get returns a buffer for a connection of a port, or nil. A port none of whose writes
// wait gets one while those of another hold some.
func (s *spill) get(p *Port, n int) *buf.Buf {
	dev, ok := p.dev.(Roomless)
	waits := ok && dev.Roomless()
	if waits {
		s.making.Do(func() {
			if made, err := buf.NewPool(spillConsumers()...); err == nil { // else it goes without
				s.pool.Store(made)
			}
		})
	}
	pool := s.pool.Load()
	if pool == nil || !waits && pool.Outstanding() == 0 {
		return nil
	}
	return pool.Get(n)
}

// release takes a buffer back, if it is one of these.
func (s *spill) release(b *buf.Buf) bool {
	pool := s.pool.Load()
	if pool == nil || !pool.Has(b) {
		return false
	}
	pool.Release(b)
	return true
}

// wait has wake called when a buffer comes back.
func (s *spill) wait(wake func()) {
	if pool := s.pool.Load(); pool != nil && s.watching.CompareAndSwap(false, true) {
		pool.Wait(func() {
			s.watching.Store(false)
			wake()
		})
	}
}
