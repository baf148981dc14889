// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"

	"braid/server/gate"
	"braid/server/resync"
	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

// diskOp carries out one store.IO. The store keeps its IOs for ever and each
// keeps its diskOp, so that a steady load allocates none.
type diskOp struct {
	op         loop.Op
	io         *store.IO
	dev        *device
	rest       []byte // what is still to be transferred
	since      int64  // loop time of the start
	prev, next *diskOp
}

// submit hands a prepared request to the store. Its effects are carried out at
// the end of this turn, together with those of everything else that arrived.
func (d *device) submit(s *slot) {
	s.state, s.since = slotStored, d.loop.Now()
	d.core.Submit(&s.req)
	d.schedule()
}

// schedule has RunDeferred called at the end of this turn.
func (d *device) schedule() {
	if !d.queued {
		d.queued = true
		d.loop.Defer(d)
	}
}

// RunDeferred carries out what the store wants done, and lets waiting
// connections go on when slots or buffers have come back. The store is not
// called while its effects are walked through: the replies of fences and of the
// device's own requests are kept for after.
func (d *device) RunDeferred() {
	d.queued = false
	for {
		effects := d.core.Effects()
		if len(effects) == 0 && d.ends == nil && !d.target.run() {
			break
		}
		for i := range effects {
			switch e := &effects[i]; e.Kind {
			case store.EffectIO:
				d.startIO(e.IO)
			case store.EffectReply:
				d.ended(e.Req)
			case store.EffectFailed:
				d.failing = true
			}
		}
		d.runEnds()
	}
	if d.failing {
		d.failing = false
		d.fail(d.core.Err())
	}
	if inc := uint64(d.core.Incarnation()); inc != d.incarnation.Load() {
		d.incarnation.Store(inc)
	}
	d.gateMoved()
	if v := d.gate.Adopted(); v != d.adopted {
		d.adopted = v
		d.refreshReport()
		d.tell() // barriers wait for it (rule 24)
	}
	d.resume()
}

// ended takes a request back from the store.
func (d *device) ended(r *store.Request) {
	switch owner := r.Ctx.(type) {
	case *slot:
		d.gate.Done(&owner.ticket)
		if r.Op == store.OpFence {
			owner.next, d.ends = d.ends, owner
			return
		}
		if !d.pace.takes(owner) && !d.limit.takes(owner) {
			d.reply(owner, r.Status)
		}
	case *resync.Op:
		d.target.ended = append(d.target.ended, owner)
	case *ownRequest:
		owner.ended = true
		owner.next, d.ownEnds = d.ownEnds, owner
	}
}

// runEnds does what follows fences and the device's own requests.
func (d *device) runEnds() {
	for d.ends != nil {
		s := d.ends
		d.ends, s.next = s.next, nil
		d.fenced(s)
	}
	for d.ownEnds != nil {
		r := d.ownEnds
		d.ownEnds, r.next = r.next, nil
		r.then(r.req.Status)
	}
}

// ownRequest is a request that the device makes of its own store: dropping a
// deleted volume, stopping. Not on the hot path.
type ownRequest struct {
	req   store.Request
	then  func(transport.Status)
	ended bool
	next  *ownRequest
}

func (d *device) own(r store.Request, then func(transport.Status)) *ownRequest {
	o := &ownRequest{req: r, then: then}
	o.req.Ctx = o
	d.core.Submit(&o.req)
	d.schedule()
	return o
}

// reply answers a request. A read's buffer stays until the reply has left, any
// other goes back now.
func (d *device) reply(s *slot, status transport.Status) {
	if s.conn.closed {
		d.release(s)
		return
	}
	h := &s.msg.Header
	*h = transport.Header{Op: s.head.Op, Flags: transport.FlagReply, Status: status, ID: s.head.ID,
		Session: s.head.Session, Interval: d.incarnation.Load(),
		Chunk: s.head.Chunk, Length: s.head.Length}
	h.PG, h.Epoch = d.measure(s)
	if s.conn.isPeer() {
		h.Session = d.frontLoad() // it has none: a target slows down for clients here
	}
	if d.core != nil {
		h.Interval, h.Offset = uint64(d.core.Incarnation()), uint32(d.core.Pressure())
	}
	s.msg.Sums, s.msg.Payload = nil, nil
	if status == transport.StatusOK {
		s.answer(h)
	}
	if s.msg.Payload == nil {
		d.releaseBuf(s)
	}
	if status != transport.StatusOK {
		d.stats.refusals[status%statusCount].Add(1)
		if status == transport.StatusRot && s.head.Op == transport.OpRead {
			d.mend.add(mendJob{key: gate.Key{Volume: s.req.Volume, Chunk: s.head.Chunk}, off: s.head.Offset,
				length: s.head.Length})
		}
	}
	s.state, s.since = slotSending, d.loop.Now()
	s.msg.Sent = s
	d.sending++
	s.conn.tc.Send(&s.msg)
}

// answer fills in what a successful reply carries.
func (s *slot) answer(h *transport.Header) {
	r := &s.req
	payload := r.Data
	switch s.head.Op {
	case transport.OpRead, transport.OpCopy:
		if !r.Hole {
			s.msg.Sums, h.Sums = r.Sums, uint16(len(r.Sums)/8)
		}
	case transport.OpStatus, transport.OpStats:
	case transport.OpALList:
		payload = listRegions(s.payload, r)
	case transport.OpTags:
		payload = listTags(s.payload, r)
	case transport.OpSums:
		s.conn.dev.mendRot(s)
		payload = r.Table.Encode(s.payload)
		r.Hole = false
	default:
		if s.ticket.Skip {
			s.ticket.Skip = false
			h.Flags |= transport.FlagSkipped
			if s.head.Op == transport.OpWrite {
				st := &s.conn.dev.stats.skipped
				st.Store(st.Load() + uint64(s.head.Length))
			}
		}
		return
	}
	if r.Hole && (s.head.Op == transport.OpRead || s.head.Op == transport.OpCopy || s.head.Op == transport.OpStatus) {
		h.Flags |= transport.FlagHole
		return
	}
	s.views[0] = payload
	s.msg.Payload, h.Payload = s.views[:], uint32(len(payload))
}

// listRegions encodes the store's answer to OpALList in room.
func listRegions(room []byte, r *store.Request) []byte {
	b := transport.BeginList(room[:0], r.Value, len(r.Regions))
	for i := range r.Regions {
		x := &r.Regions[i]
		e := transport.Region{Chunk: x.Chunk, Gen: uint64(x.Tag.Gen), Interval: x.Tag.Interval, Layer: x.Layer,
			Marks: uint8(x.Marks), Torn: x.Torn}
		b = e.Append(b)
	}
	return b
}

// listTags encodes the store's answer to OpTags in room.
func listTags(room []byte, r *store.Request) []byte {
	b := transport.BeginList(room[:0], r.Value, len(r.Chunks))
	for i := range r.Chunks {
		x := &r.Chunks[i]
		e := transport.TagEntry{Chunk: x.Chunk, Gen: uint64(x.Tag.Gen), Interval: x.Tag.Interval, Layer: x.Layer,
			Blocks: x.Blocks}
		b = e.Append(b)
	}
	return b
}

// release gives a slot and its buffer back.
func (d *device) release(s *slot) {
	d.releaseBuf(s)
	s.conn.held--
	d.slots.put(s)
	if d.paused != nil {
		d.schedule()
	}
}

func (d *device) releaseBuf(s *slot) {
	if s.buf != nil {
		d.pool.Release(s.buf)
		s.buf = nil
	}
}

// startIO hands one of the store's operations to the loop.
func (d *device) startIO(x *store.IO) {
	o, _ := x.Shell.(*diskOp)
	if o == nil {
		o = &diskOp{io: x, dev: d}
		o.op.Done = o
		x.Shell = o
	}
	o.rest, o.since = x.Data, d.loop.Now()
	o.next, o.prev = nil, d.newest
	if d.newest != nil {
		d.newest.next = o
	} else {
		d.oldest = o
	}
	d.newest = o
	d.stats.diskOps.Add(1)
	if d.blocking != nil {
		d.blocking.enqueue(o)
		return
	}
	o.op.FD, o.op.Off, o.op.Len = d.backing.FD(), x.Off, x.Len
	switch x.Kind {
	case store.IORead:
		o.op.Kind = loop.Read
	case store.IOWrite:
		o.op.Kind = loop.Write
	case store.IOFlush:
		o.op.Kind = loop.Fsync
	case store.IODiscard:
		o.op.Kind = loop.Discard
	}
	o.op.Buf = o.rest
	d.loop.Submit(&o.op)
}

// OpDone goes on after a short transfer and tells the store of the end.
func (o *diskOp) OpDone(op *loop.Op, res int) {
	moves := o.io.Kind == store.IORead || o.io.Kind == store.IOWrite
	switch {
	case res == -int(unix.EINTR) || res == -int(unix.EAGAIN):
		o.dev.loop.Submit(op)
		return
	case res < 0:
		o.end(unix.Errno(-res))
		return
	case moves && res == 0 && len(o.rest) > 0:
		o.end(io.ErrUnexpectedEOF)
		return
	case moves && res < len(o.rest):
		o.rest = o.rest[res:]
		op.Buf, op.Off = o.rest, op.Off+int64(res)
		o.dev.loop.Submit(op)
		return
	}
	o.end(nil)
}

// end reports the outcome to the store.
func (o *diskOp) end(err error) {
	d := o.dev
	if o.prev != nil {
		o.prev.next = o.next
	} else {
		d.oldest = o.next
	}
	if o.next != nil {
		o.next.prev = o.prev
	} else {
		d.newest = o.prev
	}
	o.prev, o.next, o.rest = nil, nil, nil
	d.meter.disk[o.io.Kind].Record(d.loop.Now() - o.since)
	if err != nil {
		d.stats.diskErrors.Add(1)
		err = fmt.Errorf("%s at %d: %w", ioName(o.io.Kind), o.io.Off, err)
		d.log.Error("disk operation failed", "error", err)
		if errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) {
			d.log.Error("the disk has gone")
		}
	}
	d.core.IODone(o.io, err)
	d.schedule()
}

func ioName(k store.IOKind) string {
	return [...]string{"read", "write", "flush", "discard"}[k]
}
