// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"

	"braid/cluster"
	"braid/server/gate"
	"braid/server/resync"
	"braid/server/store"
	"braid/transport"
)

// link is a node's connection to another one, which it resyncs from.
type link struct {
	n      *Node
	id     cluster.DeviceID
	c      *Conn // nil: it is being made
	ops    map[uint64]*resync.Op
	lastID uint64
}

func (n *Node) newResync() *resync.Core {
	return resync.New(resync.Config{Off: n.w.cfg.Off, Copies: 1 + n.w.rng.IntN(3),
		Aligned: func(size int) []byte { return make([]byte, size) }}, n.gate, n.core)
}

// pumpResync carries out what the resync wants.
func (n *Node) pumpResync() {
	for n.rs != nil {
		effects := n.rs.Effects()
		if len(effects) == 0 {
			return
		}
		for _, e := range slices.Clone(effects) {
			n.resyncEffect(&e)
		}
	}
}

func (n *Node) resyncEffect(e *resync.Effect) {
	life := n.life
	switch e.Kind {
	case resync.EffectLocal:
		j := &job{resync: e.Op}
		e.Op.Req.Ctx = j
		n.core.Submit(&e.Op.Req)
		n.again(&e.Op.Req)
		n.schedule()
	case resync.EffectPeer:
		n.askPeer(e.Device, e.Op)
	case resync.EffectConnect:
		n.dialPeer(e.Device)
	case resync.EffectDisconnect:
		if l := n.link(e.Device); l != nil && l.c != nil {
			l.c.close(sideClient)
		}
	case resync.EffectLock:
		n.w.mark("chunk lock asked for")
		n.sendLock(transport.OpLock, &e.Lock)
	case resync.EffectUnlock:
		n.sendLock(transport.OpUnlock, &e.Lock)
	case resync.EffectPoll:
		n.w.mdm.resyncReady(n, func(list []resync.Ready, err error) {
			if n.life == life && err == nil {
				n.rs.Ready(n.w.now, list)
				n.pumpResync()
			}
		})
	case resync.EffectJoin:
		joins := slices.Clone(e.Joins)
		n.w.mdm.join(n, joins, e.Version, func(refused []cluster.PGID, err error) {
			if n.life == life {
				n.rs.Joined(n.w.now, refused, err == nil)
				n.pumpResync()
			}
		})
	}
}

// again plants a mistake: what was copied is written once more, much later.
func (n *Node) again(r *store.Request) {
	if r.Op != store.OpWrite || !n.w.planted(plantCopy) {
		return
	}
	late := store.Request{Op: r.Op, Volume: r.Volume, Layer: r.Layer, Gen: r.Gen, Interval: r.Interval, Chunk: r.Chunk,
		Offset: r.Offset, Length: r.Length, Tag: r.Tag, Data: slices.Clone(r.Data), Sums: slices.Clone(r.Sums)}
	life := n.life
	n.w.after(20*s1, evNode, n.id, func() {
		if n.life == life {
			n.own(late, func(s transport.Status) {
				late.Status = s
				n.copied(&late)
			})
		}
	})
}

// sendLock asks a client for a chunk, or gives it back.
func (n *Node) sendLock(op transport.Op, l *resync.Lock) {
	for _, s := range n.conns {
		if s.id == l.Writer.Conn {
			n.w.logf("%s: op %d of lock %d, chunk %d group %d epoch %d, to %s", n.name, op, l.ID, l.Chunk, l.PG.Index(),
				l.Epoch, s.c.client)
			s.c.send(sideServer, message{h: transport.Header{Op: op, ID: l.ID, Session: l.Writer.Handle,
				PG: uint32(l.PG), Epoch: l.Epoch, Chunk: l.Chunk}})
		}
	}
}

// lockAnswered takes a client's answer to OpLock or OpUnlock.
func (n *Node) lockAnswered(_ *serverConn, h *transport.Header) {
	if h.Op == transport.OpLock {
		n.w.logf("%s: lock %d of chunk %d is answered %d", n.name, h.ID, h.Chunk, h.Status)
		n.rs.LockAnswer(n.w.now, h.ID, h.Status)
		n.pumpResync()
	}
}

// lockLost ends the locks that a connection carried.
func (n *Node) lockLost(s *serverConn) {
	n.rs.ConnClosed(n.w.now, s.id)
	n.pumpResync()
}

func (n *Node) link(id cluster.DeviceID) *link {
	for _, l := range n.links {
		if l.id == id {
			return l
		}
	}
	return nil
}

// dialPeer connects to another node, once.
func (n *Node) dialPeer(id cluster.DeviceID) {
	w, life := n.w, n.life
	w.after(w.between(latMin, 2*latMax), evNet, n.id, func() {
		if n.life != life || n.link(id) != nil {
			return
		}
		o := w.nodeOf(id)
		if o == nil || o.state != nodeUp || o.clean || o.gate.Map() == nil {
			n.rs.PeerDown(w.now, id)
			n.pumpResync()
			return
		}
		l := &link{n: n, id: id, ops: map[uint64]*resync.Op{}}
		s := &serverConn{n: o, peer: true}
		l.c = w.connect(l, s)
		l.c.node = o
		s.c, s.id = l.c, gate.ConnID(l.c.id)
		o.conns = append(o.conns, s)
		n.links = append(n.links, l)
		inc := o.core.Incarnation()
		w.after(w.between(latMin, latMax), evNet, n.id, func() {
			if n.life == life && n.link(id) == l {
				n.rs.PeerUp(w.now, id, inc)
				n.pumpResync()
			}
		})
	})
}

func (n *Node) askPeer(id cluster.DeviceID, op *resync.Op) {
	l := n.link(id)
	if l == nil {
		life := n.life
		n.w.after(0, evNet, n.id, func() {
			if n.life == life && n.link(id) == nil {
				n.rs.PeerDown(n.w.now, id)
				n.pumpResync()
			}
		})
		return
	}
	l.lastID++
	op.Header.ID = l.lastID
	l.ops[l.lastID] = op
	l.c.send(sideClient, message{h: op.Header})
}

func (l *link) received(_ *Conn, m message) {
	op := l.ops[m.h.ID]
	if op == nil || l.n.rs == nil {
		return
	}
	delete(l.ops, m.h.ID)
	copy(op.Dst, m.payload)
	l.n.rs.PeerDone(l.n.w.now, op, &m.h, m.sums)
	l.n.pumpResync()
}

func (l *link) closed(*Conn) {
	n := l.n
	i := slices.Index(n.links, l)
	if i < 0 {
		return
	}
	n.links = slices.Delete(n.links, i, i+1)
	n.rs.PeerDown(n.w.now, l.id)
	n.pumpResync()
}

// dropLinks is the end of the process for the connections that it made.
func (n *Node) dropLinks() {
	for _, l := range n.links {
		l.c.gone[sideClient] = true
		l.c.kill([2]int64{0, n.w.between(0, 2*ms)})
	}
	n.links = nil
}
