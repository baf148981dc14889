// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"sync"
	"sync/atomic"
	"time"

	"braid/transport/buf"
	"braid/transport/loop"
)

// Arena shares one buffer pool among the connections of many ports, on any
// number of loops, in the order in which they ran out of it. It must hold at
// least Consumers(depth) for a small depth; connections allocate nothing beyond.
type Arena struct {
	pool  *buf.Pool
	spill spill
	// waiting is the length of queue, read without mu on the fast path.
	waiting atomic.Int32
	// mu guards the rest. It is a leaf: nothing is called with it held.
	mu       sync.Mutex
	queue    []*Conn
	ports    []*Port
	watching bool // the pool will call wake
}

// NewArena returns an arena over pool.
func NewArena(pool *buf.Pool) *Arena { return &Arena{pool: pool} }

// Waiting is the number of connections that wait for buffers.
func (a *Arena) Waiting() int { return int(a.waiting.Load()) }

// admit reports whether c may take buffers now. Otherwise c is queued and its
// kick is called when its turn comes.
func (a *Arena) admit(c *Conn) bool {
	if a.waiting.Load() == 0 {
		return true
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if len(a.queue) == 0 || a.queue[0] == c {
		return true
	}
	a.enqueue(c)
	return false
}

// enqueue appends c unless it is in the queue. mu is held.
func (a *Arena) enqueue(c *Conn) {
	if c.queued {
		return
	}
	c.queued = true
	a.queue = append(a.queue, c)
	a.waiting.Store(int32(len(a.queue)))
}

// wait queues c after a failed attempt. The caller must try once more after it:
// the release that it waits for may have come in between.
func (a *Arena) wait(c *Conn) {
	a.mu.Lock()
	a.enqueue(c)
	watch := !a.watching
	a.watching = true
	a.mu.Unlock()
	if watch {
		a.pool.Wait(a.wake)
	}
	a.spill.wait(a.kickFirst)
	c.port.watchStalls()
}

// first reports whether c is at the head of the queue.
func (a *Arena) first(c *Conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.queue) > 0 && a.queue[0] == c
}

// leave takes c out of the queue, because it got its buffers or is closing, and
// lets the next one try.
func (a *Arena) leave(c *Conn) {
	if !c.queued {
		return
	}
	a.mu.Lock()
	c.queued = false
	for i, q := range a.queue {
		if q == c {
			a.queue = append(a.queue[:i], a.queue[i+1:]...)
			break
		}
	}
	a.waiting.Store(int32(len(a.queue)))
	a.mu.Unlock()
	a.kickFirst()
}

// wake runs on whichever goroutine released a buffer.
func (a *Arena) wake() {
	a.mu.Lock()
	a.watching = false
	a.mu.Unlock()
	a.kickFirst()
}

func (a *Arena) kickFirst() {
	a.mu.Lock()
	var first *Conn
	if len(a.queue) > 0 {
		first = a.queue[0]
	}
	a.mu.Unlock()
	if first != nil {
		first.port.loop.Post(first.kick)
	}
}

func (a *Arena) register(p *Port) {
	a.mu.Lock()
	a.ports = append(a.ports, p)
	a.mu.Unlock()
}

func (a *Arena) unregister(p *Port) {
	a.mu.Lock()
	for i, q := range a.ports {
		if q == p {
			a.ports = append(a.ports[:i], a.ports[i+1:]...)
			break
		}
	}
	a.mu.Unlock()
}

// watchStalls arms the timer that looks for clients that sit on buffers while
// others wait for them.
func (p *Port) watchStalls() {
	if !p.stalls.Armed() {
		p.loop.Arm(&p.stalls, stallTime/4)
	}
}

// stallCheck asks every port of the arena to end the connections that made no
// progress for stallTime, as long as anybody waits.
func (p *Port) stallCheck(*loop.Timer) {
	a := p.arena
	if a.waiting.Load() == 0 {
		return
	}
	a.mu.Lock()
	ports := append([]*Port(nil), a.ports...)
	a.mu.Unlock()
	for _, q := range ports {
		q.loop.Post(q.endStalled)
	}
	p.watchStalls()
}

func (p *Port) endStalled() {
	now := p.loop.Now()
	for c := p.conns; c != nil; {
		next := c.next
		if c.held > 0 && c.stalledFor(now) > int64(stallTime) {
			c.fail(errStalled)
		}
		c = next
	}
}

// stalledFor is how long the *client* has kept this connection from going on,
// in nanoseconds: 0 when it is the device, or the arena, that takes its time.
func (c *Conn) stalledFor(now int64) int64 {
	longest := int64(0)
	if c.tx.op.Active() {
		longest = now - c.tx.progress
	}
	if c.rx.op.Active() && c.rx.phase == phasePayload {
		longest = max(longest, now-c.rx.progress)
	}
	return longest
}

// Since is the age of the oldest unanswered request, 0 if there is none.
func (c *Conn) oldest(now int64) time.Duration {
	first := now
	for i := range c.requests {
		if r := &c.requests[i]; r.busy {
			first = min(first, r.start)
		}
	}
	return time.Duration(now - first)
}
