// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"errors"
	"time"

	"braid/transport/bio"
	"braid/transport/loop"
)

// Device is what a port serves. All methods run on the loop of the port.
type Device interface {
	// Submit starts a request that lies within the device. Reads and writes never
	// cross a multiple of 1 MiB, other ranges never one of 32 MiB.
	Submit(*bio.Request)
	Size() uint64
	BlockSize() int
	ReadOnly() bool
}

// Errors that end a connection.
var (
	ErrDisconnected = errors.New("nbd: the client disconnected")
	ErrClosed       = errors.New("nbd: closed by the server")
	errMagic        = errors.New("nbd: the client sent a request with a wrong magic number")
	errPayload      = errors.New("nbd: the client announced an absurdly long payload")
	errStalled      = errors.New("nbd: the client left its replies unread while others waited")
)

// Counters counts the work of a port.
type Counters struct {
	Reads, Writes, Flushes, Others uint64
	ReadBytes, WriteBytes          uint64
	Errors                         uint64 // requests answered with an error
	Dropped                        uint64 // replies whose connection was gone
	Connects, Broken               uint64 // connections made, and ended by an error
	Sends, Receives                uint64 // completed socket operations
}

// Port serves one device on one loop, to any number of connections. Its methods
// run on that loop.
type Port struct {
	loop  *loop.Loop
	arena *Arena
	dev   Device
	conns *Conn // doubly linked, until the last request of each has ended
	count int
	// orphans is the number of unanswered requests whose socket is closed.
	orphans int
	stalls  loop.Timer
	hangups loop.Timer
	stats   Counters
	meter   portMeter
	// drained is called when the last connection has ended.
	drained func()
}

// NewPort returns a port without connections. It may be called from anywhere.
func NewPort(l *loop.Loop, a *Arena, dev Device) *Port {
	p := &Port{loop: l, arena: a, dev: dev}
	p.stalls.Fire = p.stallCheck
	p.hangups.Fire = p.hangupCheck
	a.register(p)
	return p
}

// Loop is the loop that the port lives on.
func (p *Port) Loop() *loop.Loop { return p.loop }

// Device is what the port serves.
func (p *Port) Device() Device { return p.dev }

// Counters returns the counters.
func (p *Port) Counters() Counters { return p.stats }

// Conns is the number of connections whose socket is still open.
func (p *Port) Conns() int {
	n := 0
	for c := p.conns; c != nil; c = c.next {
		if !c.closed {
			n++
		}
	}
	return n
}

// InFlight is the number of requests that are not answered, with the age of the
// oldest.
func (p *Port) InFlight() (requests int, oldest time.Duration) {
	now := p.loop.Now()
	for c := p.conns; c != nil; c = c.next {
		requests += c.busy
		oldest = max(oldest, c.oldest(now))
	}
	return requests, oldest
}

// orphaned counts requests that lost, or outlived, their socket. When there are few
// again, connections that waited for it go on.
func (p *Port) orphaned(n int) {
	before := p.orphans
	p.orphans += n
	if before >= orphanLimit && p.orphans < orphanLimit {
		for c := p.conns; c != nil; c = c.next {
			c.kick()
		}
	}
}

// hangupCheck ends the paused connections whose client is gone.
func (p *Port) hangupCheck(*loop.Timer) {
	again := false
	for c := p.conns; c != nil; {
		next := c.next
		if c.paused && !c.closing {
			if c.hungUp() {
				c.fail(ErrDisconnected)
			} else {
				again = true
			}
		}
		c = next
	}
	if again {
		p.loop.Arm(&p.hangups, hangupInterval)
	}
}

// Drain answers what was received, refuses what still comes with ESHUTDOWN, ends
// each connection when it has no request left, and then calls done.
func (p *Port) Drain(done func()) {
	p.drained = done
	for c := p.conns; c != nil; {
		next := c.next
		c.drain()
		c = next
	}
	p.checkDrained()
}

// Abort ends all connections at once. Requests that are at the device run on;
// their replies are dropped.
func (p *Port) Abort() {
	for c := p.conns; c != nil; {
		next := c.next
		c.fail(ErrClosed)
		c = next
	}
}

// Close forgets the port. All its connections must have ended.
func (p *Port) Close() {
	p.loop.Disarm(&p.stalls)
	p.loop.Disarm(&p.hangups)
	p.arena.unregister(p)
}

func (p *Port) link(c *Conn) {
	c.next = p.conns
	if c.next != nil {
		c.next.prev = c
	}
	p.conns = c
	p.count++
}

func (p *Port) unlink(c *Conn) {
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		p.conns = c.next
	}
	if c.next != nil {
		c.next.prev = c.prev
	}
	c.next, c.prev = nil, nil
	p.count--
	p.checkDrained()
}

func (p *Port) checkDrained() {
	if p.drained != nil && p.count == 0 {
		done := p.drained
		p.drained = nil
		done()
	}
}
