// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// Where the invariants of docs/replication.md are held against what happens:
//
//	 1 ack coverage        ackedWrite, at each ack
//	 2 flush durability    durable, at acks of flushes and of writes with FUA
//	 3 local ambiguity     touched (data reaches a device in a logged region only), and retired
//	 4 containment         contained, after each event that changed a chunk
//	 5 stale is detectable rejoined (whoever comes in is equal), and identical at the end
//	 6 retirement          retired
//	 7 drain               applies
//	 8 single order        applies
//	 9 fence               applied
//	10 authority           mapChanged, serves
//	11 re-entry            rejoined
//	12 no split completion Guest.ended
//	13 resync and writes   copied
//	14 one incarnation     answered, and covered at acks of flushes
//	15 bytes               fill (checksums at the server), the guest's poison, idOf; left and equalCopies in the end
//	16 bounds              retired (tags); the store's own tests bound its log

// seen is what a node was last known to have of a chunk.
type seen struct {
	life    int
	logged  bool
	tag     cluster.Tag
	replica bool
	at      int64 // a chunk that was freed and made again begins anew
}

// applies looks at a change that is about to go to the store.
func (n *Node) applies(j *job) {
	h, w := &j.head, n.w
	if j.conn.peer {
		return
	}
	switch h.Op {
	case transport.OpWrite, transport.OpTrim, transport.OpZero:
	default:
		return
	}
	if f := n.flushed[j.ticket.Volume]; f.gen == j.ticket.Gen && h.Interval <= f.interval {
		w.failf("%s gets a write of interval %d of volume %d, which was flushed up to %d (invariant 7)", n.name,
			h.Interval, j.ticket.Volume, f.interval)
	}
	for _, o := range n.flight {
		if o.conn == j.conn && o.ticket.Volume == j.ticket.Volume && o.head.Chunk == h.Chunk &&
			h.Offset < o.head.Offset+o.head.Length && o.head.Offset < h.Offset+h.Length {
			w.failf("%s gets overlapping writes of %s together: %d bytes at %d and %d bytes at %d of chunk %d "+
				"(invariant 8)", n.name, j.conn.c.client, h.Length, h.Offset, o.head.Length, o.head.Offset, h.Chunk)
		}
	}
	n.flight = append(n.flight, j)
}

// applied looks at a request that the store has answered.
func (n *Node) applied(j *job) {
	for i, o := range n.flight {
		if o == j {
			n.flight = append(n.flight[:i], n.flight[i+1:]...)
			break
		}
	}
	if j.req.Status != transport.StatusOK || j.conn.peer {
		return
	}
	switch j.req.Op {
	case store.OpWrite, store.OpTrim, store.OpZero, store.OpStamp:
		n.wrote(j)
		if now := n.core.Generation(j.ticket.Volume); j.ticket.Gen < now {
			n.w.failf("%s applied a write of generation %d after the fence of %d (invariant 9)", n.name,
				j.ticket.Gen, now)
		}
	case store.OpFlush:
		if n.flushed == nil {
			n.flushed = map[cluster.VolumeID]flushedTo{}
		}
		n.flushed[j.ticket.Volume] = flushedTo{j.ticket.Gen, j.head.Interval}
	}
}

// flushedTo is what a node has told a session to be durable.
type flushedTo struct {
	gen      cluster.Generation
	interval uint64
}

// serves is invariant 10 for what a node answers.
func (n *Node) serves(j *job) {
	if j.head.Op != transport.OpRead || n.w.cfg.Off != 0 {
		return
	}
	if role, _ := n.gate.Role(cluster.PGID(j.head.PG)); role != gate.RoleReplica && j.head.PG != 0 {
		if _, epoch := n.gate.Role(cluster.PGID(j.head.PG)); epoch == j.head.Epoch {
			n.w.failf("%s answers a read of group %d as a %v (invariant 10)", n.name,
				cluster.PGID(j.head.PG).Index(), role)
		}
	}
}

// looks holds a node's chunks against what they were after its last turn.
func (n *Node) looks() {
	w := n.w
	if n.core == nil || n.state != nodeUp {
		return
	}
	if n.seen == nil {
		n.seen = make([][]seen, len(w.volumes))
		for i, v := range w.volumes {
			n.seen[i] = make([]seen, v.size/cluster.ChunkSize)
		}
	}
	for i, v := range w.volumes {
		for chunk := range v.size / cluster.ChunkSize {
			n.retired(v, chunk, &n.seen[i][chunk])
		}
	}
}

// retired is invariant 6: a region leaves the log when nothing is in flight there
// and what its blocks hold is durable.
func (n *Node) retired(v *Volume, chunk uint64, last *seen) {
	p := n.core.Peek(v.id, 0, chunk)
	replica := false
	if pg := n.w.pgOf(v, chunk); pg != nil {
		replica = pg.Has(n.dev)
	}
	now := seen{life: n.life, logged: p.Logged, tag: p.Tag, replica: replica, at: p.At}
	was := *last
	*last = now
	if was.life != n.life || !p.Known || !p.Stored {
		return
	}
	if was.replica && replica && was.at == p.At && p.Tag.Gen != 0 && older(p.Tag, was.tag) {
		n.w.failf("the tag of %s chunk %d on %s goes back from %v to %v (invariant 16)", v.name, chunk, n.name, was.tag,
			p.Tag)
	}
	if !was.logged || p.Logged || n.core.Logs(v.id, 0, chunk) {
		return
	}
	for _, f := range n.ios {
		x := f.io
		if n.isMending(v.id, chunk) && x.Off == p.At+int64(n.mending.Offset) {
			continue // the bytes that belong there
		}
		if x.Kind == store.IOWrite && !x.Meta && x.Off >= p.At && x.Off < p.At+cluster.ChunkSize {
			n.w.failf("%s chunk %d leaves the activity log of %s with a write in flight (invariant 6)", v.name,
				chunk, n.name)
		}
	}
	for b := range uint64(cluster.BlocksPerChunk) {
		if p.Present[b/8]&(1<<(b%8)) == 0 {
			continue
		}
		at := p.At/sectorSize + int64(b)
		if !same(n.disk.view[at], n.disk.durable[at]) && n.disk.lied == 0 && !n.isWrong(&p, b) {
			n.w.failf("%s chunk %d block %d leaves the activity log of %s and is not durable (invariants 3, 6)", v.name,
				chunk, b, n.name)
			return
		}
	}
}

func older(a, b cluster.Tag) bool {
	return a.Gen < b.Gen || a.Gen == b.Gen && a.Interval < b.Interval
}

// rejoined is invariants 5 and 11: whoever comes into a set is equal where no log
// speaks of a difference.
func (w *World) rejoined(id cluster.PGID) {
	for _, v := range w.volumes {
		if w.mdm.m.Volumes[v.id] == nil {
			continue
		}
		for chunk := range v.size / cluster.ChunkSize {
			if pg := w.pgOf(v, chunk); pg != nil && pg.ID == id {
				w.contained(v, chunk)
			}
		}
	}
}
