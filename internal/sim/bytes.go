// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// place is a block on a copy.
type place struct {
	volume cluster.VolumeID
	pg     cluster.PGID
	block  uint64
}

// ack is what a device said when it took a write of a guest.
type ack struct {
	place
	dev      cluster.DeviceID
	interval uint64
	inc      cluster.Incarnation
	broken   cluster.Incarnation // it answered the flush that should cover it in this one; 0: no
}

// asked is a request of a client that has no answer yet.
type asked struct {
	op    transport.Op
	head  transport.Header
	first uint64 // id of the bytes that it carries, of a write
}

// asks notes a frame that goes out.
func (p *peer) asks(m *message) {
	switch m.h.Op {
	case transport.OpWrite:
		id, _ := idOf(m.payload[:block])
		p.asked[m.h.ID] = asked{op: m.h.Op, head: m.h, first: id}
	case transport.OpFlush:
		p.asked[m.h.ID] = asked{op: m.h.Op, head: m.h}
	}
}

// answered is invariant 14: the acks of an interval and the one of the flush that
// covers them have the same incarnation. Where they have not, that copy must be out
// of its set before the guest hears of the flush.
func (p *peer) answered(h *transport.Header) {
	c := p.c
	q, ok := p.asked[h.ID]
	delete(p.asked, h.ID)
	if !ok || h.Status != transport.StatusOK || h.Flags&transport.FlagSkipped != 0 {
		return
	}
	inc := cluster.Incarnation(h.Interval)
	if q.op == transport.OpFlush {
		kept := c.acks[:0]
		for _, a := range c.acks {
			if a.dev == p.dev && a.interval <= q.head.Interval {
				if a.inc == inc {
					continue
				}
				a.broken = inc
			}
			kept = append(kept, a)
		}
		c.acks = kept
		return
	}
	v := c.vol
	b := v.block(q.head.Chunk, uint64(q.head.Offset)/block)
	if !v.oracle.isPending(b, q.first) {
		return // the resolver's: nobody was told of it
	}
	for i := range uint64(q.head.Length) / block {
		c.acked(ack{place: place{v.id, cluster.PGID(q.head.PG), v.block(q.head.Chunk, uint64(q.head.Offset)/block+i)},
			dev: p.dev, interval: q.head.Interval, inc: inc})
	}
}

// acked notes an ack, which replaces that of an older write of the same block.
func (c *Client) acked(a ack) {
	for i := range c.acks {
		if o := &c.acks[i]; o.place == a.place && o.dev == a.dev {
			*o = a
			return
		}
	}
	c.acks = append(c.acks, a)
}

// isPending reports whether a guest waits for the end of the write of that version.
func (o *oracle) isPending(b, id uint64) bool {
	h := &o.blocks[b]
	i, ok := h.find(id, h.low)
	return ok && h.at(i).state == pending
}

// covered is the other half of invariant 14, at the end of a guest's flush.
func (c *Client) covered() {
	w := c.w
	for _, a := range c.acks {
		pg := w.mdm.m.PG(a.pg)
		if a.broken == 0 || pg == nil || !pg.Has(a.dev) {
			continue
		}
		w.failf("a flush of %s is acked: device %d, in sync, took a write of %s block %d in incarnation %x, and "+
			"answered the flush in %x (invariant 14)", c, a.dev, c.vol.name, a.block, a.inc, a.broken)
		return
	}
}

// regrouped forgets the acks of copies that leave a group or come into it: what
// they lack or hold is then the resync's.
func (w *World) regrouped(old, next *cluster.PG) {
	for _, c := range w.clients {
		kept := c.acks[:0]
		for _, a := range c.acks {
			if a.pg != next.ID || old.Has(a.dev) && next.Has(a.dev) ||
				old.Target == a.dev && next.Target == a.dev && old.Target != 0 {
				kept = append(kept, a)
			}
		}
		c.acks = kept
	}
}

// wrote notes what a guest's write left on a node, for invariant 13.
func (n *Node) wrote(j *job) {
	c := j.conn.c.client
	if c == nil || j.req.Op == store.OpStamp {
		return
	}
	if n.written == nil {
		n.written = map[place]uint64{}
	}
	for i := range uint64(j.req.Length) / block {
		at := place{volume: c.vol.id, block: c.vol.block(j.req.Chunk, uint64(j.req.Offset)/block+i)}
		if j.req.Op != store.OpWrite {
			delete(n.written, at) // zeroes are alike
		} else if id, whole := idOf(j.req.Data[i*block:][:block]); whole {
			n.written[at] = id
		}
	}
}

// copied is invariant 13: a resync never replaces a newer write. What it puts on a
// copy is at least as new as a write that this copy took from a guest and that is
// acknowledged.
func (n *Node) copied(r *store.Request) {
	if r.Op != store.OpWrite && r.Op != store.OpTrim || r.Status != transport.StatusOK {
		return
	}
	for _, v := range n.w.volumes {
		if v.id != r.Volume {
			continue
		}
		for i := range uint64(r.Length) / block {
			b := v.block(r.Chunk, uint64(r.Offset)/block+i)
			was, ok := n.written[place{volume: v.id, block: b}]
			if !ok {
				continue
			}
			id := uint64(0)
			if r.Op == store.OpWrite {
				id, _ = idOf(r.Data[i*block:][:block])
			}
			n.newer(v, b, was, id)
		}
	}
}

func (n *Node) newer(v *Volume, b, was, id uint64) {
	h := &v.oracle.blocks[b]
	last, ok := h.find(was, h.low)
	if !ok || h.at(last).state != acked {
		return
	}
	if _, ok := h.find(id, last); !ok {
		n.w.failf("a resync puts %x on %s, block %d of %s, over %x, which is newer and acked (invariant 13): %s",
			id, n.name, b, v.name, was, h)
	}
}
