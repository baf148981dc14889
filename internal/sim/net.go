// SPDX-License-Identifier: Apache-2.0

package sim

import "braid/transport"

// message is a frame on its way.
type message struct {
	h       transport.Header
	sums    []byte
	payload []byte
}

// end is one side of a connection.
type end interface {
	received(c *Conn, m message)
	closed(c *Conn)
}

// The sides of a connection, and the direction that a message of it takes.
const (
	sideClient = 0
	sideServer = 1
)

// Conn is a connection. See the package comment for what may happen to it.
type Conn struct {
	w      *World
	id     uint32
	ends   [2]end // by side
	queue  [2][]message
	last   [2]int64 // when the newest message arrives
	dying  bool     // no side may send any more
	gone   [2]bool  // the side has been told
	clog   [2]int64 // until when nothing arrives
	node   *Node
	client *Client
	link   uint8
	uuid   uint32
}

const (
	silence = 2 * s1 // after which a hung peer is noticed
	latMin  = 30 * us
	latMax  = 700 * us
)

func (w *World) connect(client, server end) *Conn {
	w.plan.conns++
	return &Conn{w: w, id: uint32(w.plan.conns), ends: [2]end{client, server}}
}

// send queues a message from a side.
func (c *Conn) send(from int, m message) {
	if c.dying {
		return
	}
	w := c.w
	at := w.now + w.between(latMin, latMax)
	if w.chance(1, 60) {
		at += w.between(0, 40*ms)
	}
	at = max(at, c.last[from], c.clog[from])
	c.last[from] = at
	c.queue[from] = append(c.queue[from], m)
	w.after(at-w.now, evNet, c.id, func() { c.deliver(from) })
}

// deliver hands over the oldest message of a direction.
func (c *Conn) deliver(from int) {
	if len(c.queue[from]) == 0 || c.gone[1-from] {
		return
	}
	if c.clog[from] > c.w.now && !c.dying {
		c.w.after(c.clog[from]-c.w.now, evNet, c.id, func() { c.deliver(from) })
		return
	}
	m := c.queue[from][0]
	if c.w.hold != nil && c.w.hold(c, from, &m) {
		c.w.held = append(c.w.held, heldMessage{c, from})
		return
	}
	c.queue[from] = c.queue[from][1:]
	c.w.mix(uint64(m.h.Op), m.h.ID, uint64(m.h.Status)<<8|uint64(m.h.Flags))
	c.ends[1-from].received(c, m)
}

// heldMessage is a delivery that a directed schedule has put off.
type heldMessage struct {
	c    *Conn
	from int
}

// filter picks messages.
type filter func(c *Conn, from int, m *message) bool

// keep sets what is not delivered from now on; what was kept before and is not
// any more goes on.
func (w *World) keep(which filter) {
	held := w.held
	w.hold, w.held = which, nil
	for _, h := range held {
		w.after(0, evNet, h.c.id, func() { h.c.deliver(h.from) })
	}
}

// kill ends the connection: of each direction an unknown part still arrives.
// half tells how long each side takes to notice.
func (c *Conn) kill(half [2]int64) {
	if c.dying {
		return
	}
	c.dying = true
	w := c.w
	for from := range 2 {
		if n := len(c.queue[from]); w.cfg.Calm {
			c.queue[from] = nil
		} else if n > 0 {
			c.queue[from] = c.queue[from][:w.rng.IntN(n+1)]
		}
	}
	for side := range 2 {
		// What is delivered is delivered before the side is told.
		at := w.now + half[side]
		if len(c.queue[1-side]) > 0 {
			at = max(at, c.last[1-side], c.clog[1-side])
		}
		w.after(at-w.now, evClosed, c.id, func() { c.tell(side) })
	}
}

// tell says to a side that the connection has ended.
func (c *Conn) tell(side int) {
	if c.gone[side] {
		return
	}
	c.gone[side] = true
	c.queue[1-side] = nil
	c.ends[side].closed(c)
}

// close is what a side does that wants no more of it.
func (c *Conn) close(side int) {
	if c.dying && c.gone[side] {
		return
	}
	if !c.dying {
		var half [2]int64
		half[side] = c.w.between(10*us, 200*us)
		half[1-side] = c.w.between(latMin, 2*latMax)
		if c.w.chance(1, 20) {
			half[1-side] = silence // the end of the stream gets lost
		}
		c.kill(half)
	}
	// Nothing arrives any more at a side that has closed.
	c.queue[1-side] = nil
}

// cut is a death of the network between the sides: each notices when it does.
func (c *Conn) cut() {
	w := c.w
	var half [2]int64
	for side := range half {
		half[side] = w.between(0, 2*ms)
		if !w.cfg.Calm && w.rng.IntN(3) == 0 {
			half[side] = w.between(0, silence)
		}
	}
	if half[0] > s1/2 || half[1] > s1/2 {
		w.mark("half-open connection")
	}
	c.kill(half)
}
