// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/server/store"
	"braid/transport"
	"braid/transport/bio"
)

// The situations that a campaign must have been in, or it proves nothing.
const (
	markLogData   = "coverage: crash between log and data"
	markOneOnly   = "coverage: a write on one copy only, then the client dies"
	markFlushRace = "coverage: a flush races a write"
	markAllLost   = "coverage: all copies lose their caches"
	markLogFull   = "coverage: an activity log is full"
	markSource    = "coverage: a resync is interrupted and its source dies"
	markLargerTag = "coverage: a stale copy has the larger tag"
	markLateWrite = "coverage: a zombie writes after a fence"
	markLateRead  = "coverage: a zombie reads after a fence"
	markUnknown   = "unknown CAS outcome"
	markMended    = "coverage: what a misdirected write spoilt is mended"
	markGrace     = "coverage: a device is gone for longer than the grace"
	markFresh     = "coverage: a fresh device takes copies"
	markUnreached = "coverage: an attach cannot reach an in-sync copy"
	markRoom      = "coverage: a write finds no room and waits"
)

var wanted = []string{markLogData, markOneOnly, markFlushRace, markAllLost, markLogFull, markSource, markLargerTag,
	markLateWrite, markLateRead, markUnknown, markUnreached, markMended,
	markGrace, markFresh, markRoom}

// crashes marks what the end of a process falls into.
func (n *Node) crashes(power bool) {
	w := n.w
	for _, f := range n.ios {
		if power && f.io.Kind == store.IOWrite && !f.io.Meta {
			w.mark(markLogData)
			break
		}
	}
	for _, o := range w.nodes {
		for _, l := range o.links {
			if l.id == n.dev && len(l.ops) > 0 {
				w.mark(markSource)
			}
		}
	}
}

// leavesBehind marks what a client leaves behind.
func (w *World) leavesBehind(v *Volume) {
	for _, q := range v.guest.live {
		if q.r.Op != bio.Write {
			continue
		}
		chunk, in := v.locate(q.first)
		want, have, all := v.oracle.blocks[q.first].at(q.index[0]).id, 0, 0
		for _, id := range w.pgOf(v, chunk).InSync {
			n := w.nodeOf(id)
			if n == nil || n.state != nodeUp {
				continue
			}
			all++
			p := n.core.Peek(v.id, 0, chunk)
			if s := n.content(&p, in); s != nil {
				if id, _ := idOf(s[:]); id == want {
					have++
				}
			}
		}
		if have == 1 && all > 1 {
			w.mark(markOneOnly)
		}
	}
}

// races marks a flush and a write that are under way together.
func (g *Guest) races(q *request) {
	for _, o := range g.live {
		if o != q && (o.r.Op == bio.Flush) != (q.r.Op == bio.Flush) && (o.r.Op == bio.Write || q.r.Op == bio.Write) {
			g.v.w.mark(markFlushRace)
			return
		}
	}
}

// late marks what an overtaken client asks for.
func (s *serverConn) late(h *transport.Header) {
	c, w := s.c.client, s.n.w
	if c == nil {
		return
	}
	if v := w.mdm.m.Volumes[c.vol.id]; v == nil || v.Generation <= c.gen || s.n.core.Generation(c.vol.id) <= c.gen {
		return
	}
	switch h.Op {
	case transport.OpWrite:
		w.mark(markLateWrite)
	case transport.OpRead:
		w.mark(markLateRead)
	}
}

// unreached marks an attach that lacks a copy.
func (c *Client) unreached() {
	w := c.w
	for chunk := range c.vol.size / cluster.ChunkSize {
		for _, id := range w.pgOf(c.vol, chunk).InSync {
			if n := w.nodeOf(id); n == nil || n.state != nodeUp || w.isCut(c, n) {
				w.mark(markUnreached)
				return
			}
		}
	}
}

// targeted marks a target whose tag is larger than its source's.
func (w *World) targeted(pg *cluster.PG) {
	t := w.nodeOf(pg.Target)
	if t == nil || t.state != nodeUp {
		return
	}
	for _, v := range w.volumes {
		if w.mdm.m.Volumes[v.id] == nil {
			continue
		}
		for chunk := range v.size / cluster.ChunkSize {
			if at := w.pgOf(v, chunk); at == nil || at.ID != pg.ID {
				continue
			}
			for _, id := range pg.InSync {
				if n := w.nodeOf(id); n != nil && n.state == nodeUp && older(n.core.Peek(v.id, 0, chunk).Tag,
					t.core.Peek(v.id, 0, chunk).Tag) {
					w.mark(markLargerTag)
				}
			}
		}
	}
}
