// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"errors"
	"fmt"
	"runtime"
	"sync"

	"braid/cmd/internal/memlock"
	"braid/nbd"
	"braid/transport/buf"
	"braid/transport/loop"
)

// maxLoops is the default limit on event loops: beyond it the volumes of one
// host gain nothing, and each loop is a thread.
const maxLoops = 4

// HostOptions describe the resources of a process.
type HostOptions struct {
	Loops  int         // 0: one per CPU, at most 4
	Engine loop.Engine // of each loop
	Depth  int         // requests in flight for which there are buffers; 0: 128
	Locked bool        // touch the pool's memory once, because it is locked
}

// Host holds what all volumes of a process share: event loops and buffers.
type Host struct {
	Pool  *buf.Pool
	Arena *nbd.Arena
	loops []*loop.Loop
	// mu guards volumes, the number of volumes on each loop.
	mu      sync.Mutex
	volumes map[*loop.Loop]int
}

// NewHost starts the loops.
func NewHost(o HostOptions) (*Host, error) {
	if o.Loops <= 0 {
		o.Loops = min(runtime.NumCPU(), maxLoops)
	}
	if o.Depth <= 0 {
		o.Depth = 128
	}
	pool, err := buf.NewPool(nbd.Consumers(o.Depth)...)
	if err != nil {
		return nil, fmt.Errorf("buffers of the data client: %w", err)
	}
	if o.Locked {
		touch(pool, nbd.Consumers(o.Depth))
	}
	h := &Host{Pool: pool, Arena: nbd.NewArena(pool), volumes: map[*loop.Loop]int{}}
	for i := range o.Loops {
		l, err := loop.New(loop.Options{Name: fmt.Sprintf("sdc%d", i), Engine: o.Engine})
		if err != nil {
			return nil, errors.Join(fmt.Errorf("event loop of the data client: %w", err), h.Close())
		}
		l.Start()
		h.loops = append(h.loops, l)
	}
	return h, nil
}

// touch makes all of the pool's memory resident, so that no request needs memory
// from the kernel at the moment in which the kernel needs it to get some.
func touch(pool *buf.Pool, consumers []buf.Consumer) {
	var taken []*buf.Buf
	for _, c := range consumers {
		for range c.Count {
			if b := pool.Get(c.Size); b != nil {
				memlock.Prefault(b.B)
				taken = append(taken, b)
			}
		}
	}
	for _, b := range taken {
		pool.Release(b)
	}
}

// Engine is what the loops really use.
func (h *Host) Engine() loop.Engine { return h.loops[0].Engine() }

// Take returns the loop with the fewest volumes, for one more.
func (h *Host) Take() *loop.Loop {
	h.mu.Lock()
	defer h.mu.Unlock()
	best := h.loops[0]
	for _, l := range h.loops[1:] {
		if h.volumes[l] < h.volumes[best] {
			best = l
		}
	}
	h.volumes[best]++
	return best
}

// Give tells that a volume has left l.
func (h *Host) Give(l *loop.Loop) {
	h.mu.Lock()
	h.volumes[l]--
	h.mu.Unlock()
}

// Close ends the loops. All volumes must have been detached. The pool is left to
// the end of the process: a volume that was given up may still name buffers.
func (h *Host) Close() error {
	var errs []error
	for _, l := range h.loops {
		errs = append(errs, l.Close())
	}
	h.loops = nil
	return errors.Join(errs...)
}
