// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// errProtocol closes a connection whose peer sends what no client sends.
var errProtocol = errors.New("server: the peer sent a frame that makes no sense here")

// conn is the server's side of one connection. It is a transport.Handler and
// lives on its device's loop.
type conn struct {
	dev      *device
	tc       *transport.Conn
	client   [16]byte
	incoming *slot // being received
	held     int   // slots that this connection has
	closed   bool
	paused   bool  // in the device's queue for slots and buffers
	next     *conn // in that queue
}

// link numbers a client's parallel connections to this device, so that a new
// one replaces its predecessor and no other.
func (c *conn) link() uint8 { return c.tc.Remote.Flags & linkMask }

// Opened is the first call for a connection.
func (c *conn) Opened(tc *transport.Conn) {
	c.tc = tc
	c.dev.opened(c)
}

// Incoming finds a slot and a buffer for the request that begins here. A read
// gets the buffer for its reply now, because this is the point where a
// connection can be made to wait.
func (c *conn) Incoming(tc *transport.Conn, h *transport.Header) ([][]byte, bool) {
	d := c.dev
	if h.Flags&transport.FlagReply != 0 {
		tc.Close(errProtocol)
		return nil, false
	}
	if c.held >= maxRequestsPerConn {
		d.pause(c)
		return nil, false
	}
	s := d.slots.get()
	if s == nil {
		d.pause(c)
		return nil, false
	}
	s.conn, s.state, s.since = c, slotReceiving, d.loop.Now()
	payload := int(h.Payload)
	need := payload
	if h.Op == transport.OpRead && payload == 0 && h.Length <= cluster.ChunkSize {
		need = int(h.Length)
	}
	switch {
	case need == 0:
	case need <= maxControlSize:
		s.payload = s.control[:need]
	default:
		if s.buf = d.pool.Get(need); s.buf == nil {
			d.slots.put(s)
			d.pause(c)
			return nil, false
		}
		s.payload = s.buf.B[:need]
	}
	c.held++
	c.incoming = s
	if payload == 0 {
		return nil, true
	}
	s.views[0] = s.payload
	return s.views[:], true
}

// Frame starts the request that has arrived.
func (c *conn) Frame(_ *transport.Conn, h *transport.Header, sums []byte) {
	d, s := c.dev, c.incoming
	c.incoming = nil
	s.head = *h
	d.stats.frames.Add(1)
	switch h.Op {
	case transport.OpOpen, transport.OpFence, transport.OpClose:
		d.control(s)
	case transport.OpRead, transport.OpWrite, transport.OpFlush, transport.OpTrim,
		transport.OpZero, transport.OpStatus:
		if status := d.prepare(s, sums); status != transport.StatusOK {
			d.reply(s, status)
			return
		}
		d.submit(s)
	default:
		d.reply(s, transport.StatusRefused)
	}
}

// Closed forgets the connection. Requests that the store has go on: their slots
// come back when it is done with them.
func (c *conn) Closed(tc *transport.Conn, err error) {
	c.tc, c.closed = tc, true // it may have ended before it was opened
	if s := c.incoming; s != nil {
		c.incoming = nil
		c.dev.release(s)
	}
	c.dev.closed(c, err)
}

// MsgSent frees the slot of a reply that has left, or will never leave.
func (s *slot) MsgSent(*transport.Msg, error) {
	d := s.conn.dev
	d.sending--
	d.release(s)
	if d.sending == 0 && d.whenSent != nil {
		d.whenSent()
		d.whenSent = nil
	}
}

// prepare turns a data frame into a request of the store, or says why not.
func (d *device) prepare(s *slot, sums []byte) transport.Status {
	if status := d.serving(); status != transport.StatusOK {
		return status
	}
	h := &s.head
	sess, status := d.sessions.find(s.conn, h.Session)
	if status != transport.StatusOK {
		return status
	}
	r := &s.req
	clearRequest(r)
	r.Volume, r.Gen, r.Interval = sess.volume, sess.gen, h.Interval
	r.Chunk, r.Offset, r.Length = h.Chunk, h.Offset, h.Length
	r.FUA = h.Flags&transport.FlagFUA != 0
	if status := fillRequest(s, sums); status != transport.StatusOK {
		return status
	}
	if r.Op == store.OpFlush {
		return transport.StatusOK
	}
	reads := r.Op == store.OpRead || r.Op == store.OpBitmap
	if !reads && sess.readOnly {
		return transport.StatusRefused
	}
	status, _ = d.view.check(cluster.PGID(h.PG), h.Epoch, reads)
	if status != transport.StatusOK {
		return status
	}
	// A chunk in a group that is not its own would be missed by every later
	// comparison of that group's copies.
	pg := d.view.current.VolumePG(sess.layout, h.Chunk)
	if pg == nil || pg.ID != cluster.PGID(h.PG) {
		return transport.StatusInvalid
	}
	d.view.admit(pg.ID)
	s.counted = true
	return transport.StatusOK
}

// clearRequest resets what the caller of the store owns. The rest of a request
// is the store's, and there the disk operation of its last use is kept for the
// next.
func clearRequest(r *store.Request) {
	r.Op, r.FUA, r.NoHole, r.Drained, r.Hole, r.Layer = 0, false, false, false, false, 0
	r.Volume, r.Gen, r.Interval, r.Value = 0, 0, 0, 0
	r.Chunk, r.Offset, r.Length = 0, 0, 0
	r.Data, r.Sums, r.Status = nil, nil, transport.StatusOK
	r.Regions, r.Chunks = nil, nil
}

// fillRequest checks the frame's shape and sets what differs between the ops.
func fillRequest(s *slot, sums []byte) transport.Status {
	h, r := &s.head, &s.req
	wantPayload := uint32(0)
	switch h.Op {
	case transport.OpFlush:
		// The client sends it when every write up to the interval is complete on
		// every replica (rule 1).
		r.Op, r.Drained, r.Chunk = store.OpFlush, true, 0
		r.Offset, r.Length = 0, 0
	case transport.OpStatus:
		r.Op, r.Data = store.OpBitmap, s.control[:bitmapSize]
		r.Offset, r.Length = 0, cluster.ChunkSize
	case transport.OpRead, transport.OpWrite, transport.OpTrim, transport.OpZero:
		if !validRange(h.Offset, h.Length) {
			return transport.StatusInvalid
		}
	}
	sumsSize := int(h.Length) / cluster.BlockSize * 8
	switch h.Op {
	case transport.OpRead:
		r.Op, r.Data, r.Sums = store.OpRead, s.payload, s.sums[:sumsSize]
	case transport.OpTrim:
		r.Op = store.OpTrim
	case transport.OpZero:
		r.Op, r.NoHole = store.OpZero, h.Flags&transport.FlagNoHole != 0
	case transport.OpWrite:
		r.Op, r.Data, wantPayload = store.OpWrite, s.payload, h.Length
	}
	if h.Payload != wantPayload {
		return transport.StatusInvalid
	}
	if h.Op != transport.OpWrite {
		return transport.StatusOK
	}
	if len(sums) != sumsSize {
		return transport.StatusInvalid
	}
	if transport.VerifySums(r.Data, sums) >= 0 {
		return transport.StatusBadSum
	}
	// sums is the connection's; the store needs them until its reply.
	r.Sums = s.sums[:copy(s.sums[:], sums)]
	return transport.StatusOK
}

// validRange reports whether a range is made of whole blocks of one chunk.
func validRange(offset, length uint32) bool {
	return length > 0 && offset%cluster.BlockSize == 0 && length%cluster.BlockSize == 0 &&
		uint64(offset)+uint64(length) <= cluster.ChunkSize
}
