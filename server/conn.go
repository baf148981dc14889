// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"

	"braid/cluster"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// errProtocol closes a connection whose peer sends what no client sends.
var errProtocol = errors.New("server: the peer sent a frame that makes no sense here")

// conn is the server's side of one connection. It is a transport.Handler and
// lives on its device's loop.
type conn struct {
	dev      *device
	id       gate.ConnID
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

// isPeer reports whether another server resyncs from here.
func (c *conn) isPeer() bool { return c.tc.Remote.Role == transport.Peer }

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
		if h.Payload == 0 && (h.Op == transport.OpLock || h.Op == transport.OpUnlock) {
			return nil, true
		}
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
	s.arrived = s.since
	payload := int(h.Payload)
	need := payload
	if payload == 0 {
		need = replyRoom(h)
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

// replyRoom is how many bytes the answer to a request without payload may need.
func replyRoom(h *transport.Header) int {
	switch h.Op {
	case transport.OpRead, transport.OpCopy:
		if h.Length <= cluster.ChunkSize {
			return int(h.Length)
		}
	case transport.OpALList, transport.OpTags:
		return listBytes
	case transport.OpStats:
		return statsBytes
	case transport.OpSums:
		return cluster.ChunkSize // the store reads the chunk there
	}
	return 0
}

// Frame starts the request that has arrived.
func (c *conn) Frame(_ *transport.Conn, h *transport.Header, sums []byte) {
	d, s := c.dev, c.incoming
	if h.Flags&transport.FlagReply != 0 {
		d.target.lockAnswered(c, h)
		return
	}
	c.incoming = nil
	s.head = *h
	d.stats.frames.Add(1)
	switch h.Op {
	case transport.OpOpen, transport.OpFence, transport.OpClose, transport.OpConfirm:
		d.control(s)
	case transport.OpRead, transport.OpWrite, transport.OpFlush, transport.OpTrim, transport.OpZero,
		transport.OpStatus, transport.OpALList, transport.OpTags, transport.OpStamp, transport.OpCopy,
		transport.OpSums:
		status := d.prepare(s, sums)
		if status != transport.StatusOK || s.ticket.Skip || s.done {
			d.gate.Done(&s.ticket)
			d.reply(s, status)
			return
		}
		d.submit(s)
	case transport.OpStats:
		d.tellStats(s)
	case transport.OpMend:
		d.reply(s, d.mendFor(s))
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

// prepare turns a data frame into a request of the store, or says why not. With
// StatusOK the gate counts it, until gate.Done.
func (d *device) prepare(s *slot, sums []byte) transport.Status {
	if status := d.serving(); status != transport.StatusOK {
		return status
	}
	h, r := &s.head, &s.req
	clearRequest(r)
	s.done = false
	r.Interval = h.Interval
	r.Chunk, r.Offset, r.Length = h.Chunk, h.Offset, h.Length
	r.FUA = h.Flags&transport.FlagFUA != 0
	if status := fillRequest(s, sums); status != transport.StatusOK {
		return status
	}
	if s.conn.isPeer() {
		return d.preparePeer(s)
	}
	status := d.gate.Admit(&s.ticket, s.conn.id, h)
	r.Volume, r.Gen, r.IsCopy = s.ticket.Volume, s.ticket.Gen, s.ticket.Target
	if r.Op == store.OpStamp {
		r.Tag = cluster.Tag{Gen: r.Gen, Interval: r.Interval}
	}
	return status
}

// preparePeer is prepare for a server that resyncs from here. It reads under
// whatever generation is the newest: what the client does meanwhile, its lock of
// the chunk keeps away (rule 12).
func (d *device) preparePeer(s *slot) transport.Status {
	status := d.gate.AdmitPeer(&s.ticket, &s.head)
	r := &s.req
	r.Volume, r.Gen = s.ticket.Volume, d.core.Generation(s.ticket.Volume)
	r.Interval = 0
	if status == transport.StatusOK && r.Gen == 0 {
		// Nobody has ever opened the volume here: nothing of it is stored.
		r.Hole, r.Value, s.done = true, 0, true
		if r.Table != nil {
			*r.Table = transport.SumTable{}
		}
	}
	return status
}

// clearRequest resets what the caller of the store owns. The rest of a request
// is the store's, and there the disk operation of its last use is kept for the
// next.
func clearRequest(r *store.Request) {
	r.Op, r.FUA, r.NoHole, r.IsCopy, r.Drained, r.Hole, r.Layer = 0, false, false, false, false, false, 0
	r.Fresh = false
	r.Volume, r.Gen, r.Interval, r.Value = 0, 0, 0, 0
	r.Chunk, r.Offset, r.Length = 0, 0, 0
	r.Data, r.Sums, r.Status = nil, nil, transport.StatusOK
	r.Raw, r.Unlog, r.Marks, r.Tag = false, false, 0, cluster.Tag{}
	r.Regions, r.Chunks, r.Table = nil, nil, nil
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
	case transport.OpALList:
		r.Op, r.Value, r.Chunk = store.OpALList, h.Chunk, 0
		r.Offset, r.Length = 0, min(transport.MaxRegions, (listBytes-transport.ListHeadSize)/transport.RegionSize)
	case transport.OpTags:
		r.Op, r.Value, r.Chunk = store.OpTags, h.Chunk, 0
		r.Offset, r.Length = 0, min(transport.MaxTags, (listBytes-transport.ListHeadSize)/transport.TagEntrySize)
	case transport.OpStamp:
		r.Op, r.Offset, r.Length = store.OpStamp, 0, 0
	case transport.OpSums:
		if h.Payload != 0 {
			return transport.StatusInvalid
		}
		r.Op, r.Data, r.Table = store.OpSums, s.payload, new(transport.SumTable)
		r.Offset, r.Length = 0, cluster.ChunkSize
	case transport.OpRead, transport.OpWrite, transport.OpTrim, transport.OpZero, transport.OpCopy:
		if !validRange(h.Offset, h.Length) {
			return transport.StatusInvalid
		}
	}
	sumsSize := int(h.Length) / cluster.BlockSize * 8
	switch h.Op {
	case transport.OpRead, transport.OpCopy:
		r.Op, r.Data, r.Sums = store.OpRead, s.payload, s.sums[:sumsSize]
		r.Raw = h.Op == transport.OpCopy
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
