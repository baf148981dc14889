// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"

	"braid/cluster"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// serverConn is the server's side of a connection.
type serverConn struct {
	n    *Node
	c    *Conn
	id   gate.ConnID
	peer bool // another server resyncs from here
	dead bool
}

func (s *serverConn) closed(*Conn) {
	s.dead = true
	n := s.n
	if i := slices.Index(n.conns, s); i >= 0 {
		n.conns = slices.Delete(n.conns, i, i+1)
	}
	if n.gate != nil {
		n.gate.ConnClosed(s.id)
		n.lockLost(s)
	}
}

// serving says whether data requests are admitted.
func (n *Node) serving() transport.Status {
	switch {
	case n.state == nodeFailed:
		return transport.StatusIO
	case n.clean:
		return transport.StatusRetry
	}
	return transport.StatusOK
}

// received starts the request that has arrived.
func (s *serverConn) received(_ *Conn, m message) {
	n := s.n
	if s.dead {
		return
	}
	if m.h.Flags&transport.FlagReply != 0 {
		n.lockAnswered(s, &m.h)
		return
	}
	j := &job{conn: s, head: m.h}
	j.req.Ctx = j
	switch m.h.Op {
	case transport.OpOpen, transport.OpFence, transport.OpClose, transport.OpConfirm:
		n.control(j, m)
		return
	case transport.OpMend:
		n.mend(j)
		return
	}
	s.late(&m.h)
	status := n.prepare(j, m)
	if status != transport.StatusOK || j.ticket.Skip || j.done {
		n.gate.Done(&j.ticket)
		n.gateMoved()
		n.reply(j, status)
		return
	}
	n.applies(j)
	n.core.Submit(&j.req)
	n.schedule()
}

// prepare turns a data frame into a request of the store, or says why not.
func (n *Node) prepare(j *job, m message) transport.Status {
	if status := n.serving(); status != transport.StatusOK {
		return status
	}
	h, r := &j.head, &j.req
	r.Interval, r.Chunk, r.Offset, r.Length = h.Interval, h.Chunk, h.Offset, h.Length
	r.FUA = h.Flags&transport.FlagFUA != 0
	if status := n.fill(j, m); status != transport.StatusOK {
		return status
	}
	if j.conn.peer {
		return n.preparePeer(j)
	}
	status := n.gate.Admit(&j.ticket, j.conn.id, h)
	r.Volume, r.Gen, r.IsCopy = j.ticket.Volume, j.ticket.Gen, j.ticket.Target
	if r.Op == store.OpStamp {
		r.Tag = cluster.Tag{Gen: r.Gen, Interval: r.Interval}
	}
	return status
}

// preparePeer is prepare for a server that resyncs from here.
func (n *Node) preparePeer(j *job) transport.Status {
	status := n.gate.AdmitPeer(&j.ticket, &j.head)
	r := &j.req
	r.Volume, r.Gen = j.ticket.Volume, n.core.Generation(j.ticket.Volume)
	r.Interval = 0
	if status == transport.StatusOK && r.Gen == 0 {
		r.Hole, r.Value, j.done = true, 0, true
		if r.Table != nil {
			*r.Table = transport.SumTable{}
		}
	}
	return status
}

// listed is how many entries a list holds: few, so that there are several parts.
const listed = 3

func (n *Node) fill(j *job, m message) transport.Status {
	h, r := &j.head, &j.req
	sums := int(h.Length) / block * 8
	switch h.Op {
	case transport.OpRead, transport.OpCopy:
		r.Op, r.Data, r.Sums = store.OpRead, make([]byte, h.Length), make([]byte, sums)
		r.Raw = h.Op == transport.OpCopy
	case transport.OpWrite:
		r.Op, r.Data, r.Sums = store.OpWrite, m.payload, m.sums
		if transport.VerifySums(m.payload, m.sums) >= 0 {
			n.w.failf("bytes changed between their checksums and the network (rule 22)")
			return transport.StatusBadSum
		}
	case transport.OpTrim:
		r.Op = store.OpTrim
	case transport.OpZero:
		r.Op, r.NoHole = store.OpZero, h.Flags&transport.FlagNoHole != 0
	case transport.OpStatus:
		r.Op, r.Data, r.Offset, r.Length = store.OpBitmap, make([]byte, 32), 0, cluster.ChunkSize
	case transport.OpFlush:
		r.Op, r.Drained, r.Chunk, r.Offset, r.Length = store.OpFlush, true, 0, 0, 0
	case transport.OpALList:
		r.Op, r.Value, r.Chunk, r.Offset, r.Length = store.OpALList, h.Chunk, 0, 0, listed
	case transport.OpTags:
		r.Op, r.Value, r.Chunk, r.Offset, r.Length = store.OpTags, h.Chunk, 0, 0, listed
	case transport.OpStamp:
		r.Op, r.Offset, r.Length = store.OpStamp, 0, 0
	case transport.OpSums:
		r.Op, r.Data, r.Table = store.OpSums, make([]byte, cluster.ChunkSize), new(transport.SumTable)
		r.Offset, r.Length = 0, cluster.ChunkSize
	default:
		n.w.failf("%s gets a frame of op %d", n.name, h.Op)
		return transport.StatusRefused
	}
	return transport.StatusOK
}

// control starts an open or fence request (rule 14).
func (n *Node) control(j *job, m message) {
	if status := n.serving(); status != transport.StatusOK {
		n.reply(j, status)
		return
	}
	switch j.head.Op {
	case transport.OpClose:
		n.reply(j, n.gate.CloseSession(j.conn.id, j.head.Session))
		return
	case transport.OpConfirm:
		n.reply(j, n.gate.Confirm(j.conn.id, j.head.Session))
		return
	}
	if err := j.open.Decode(m.payload); err != nil {
		n.w.failf("a client's open request does not decode: %v", err)
		return
	}
	volume := cluster.VolumeID(j.open.Volume)
	status := n.gate.OpenBegin(j.opener(), &j.open, n.core.Generation(volume))
	if status != transport.StatusOK {
		n.reply(j, status)
		return
	}
	j.req.Op, j.req.Volume, j.req.Gen = store.OpFence, volume, cluster.Generation(j.open.Generation)
	n.core.Submit(&j.req)
	n.schedule()
}

func (j *job) opener() gate.Opener {
	return gate.Opener{Conn: j.conn.id, Fence: j.head.Op == transport.OpFence}
}

// opened ends an open or fence request when the store has drained and persisted.
func (n *Node) opened(j *job) {
	o := j.opener()
	o.Fence = o.Fence || j.conn.dead // nobody is left to have a session
	handle, status := n.gate.OpenEnd(o, &j.open, n.core.Generation(j.req.Volume), j.req.Status)
	if handle != 0 {
		j.head.Session = handle
	}
	n.gateMoved()
	n.reply(j, status)
}

// learn adopts a map.
func (n *Node) learn(m *cluster.Map) {
	n.gate.Learn(m, n.dev)
	n.gateMoved()
	n.rs.Learn(n.w.now)
	n.pumpResync()
}

// gateMoved does what the gate asks for after it has learned something.
func (n *Node) gateMoved() {
	m := n.gate.Map()
	if m == nil {
		return
	}
	if n.gate.Demoted() {
		n.core.Suspect(func(id cluster.VolumeID, chunk uint64) bool {
			v := m.Volumes[id]
			if v == nil {
				return false
			}
			pg := m.VolumePG(v, chunk)
			if pg == nil {
				return true
			}
			role, _ := n.gate.Role(pg.ID)
			return role != gate.RoleReplica
		})
	}
	if n.gate.Adopted() != n.told && !n.reporting {
		n.reporting = true
		life := n.life
		n.w.after(n.w.between(ms, 50*ms), evRPC, n.id, func() {
			if n.life == life {
				n.reporting = false
				n.report()
			}
		})
	}
	n.vacate()
	for _, volume := range n.gate.Raised() {
		n.core.EachRegion(func(id cluster.VolumeID, layer uint32, chunk uint64) {
			if id != volume || m.Volumes[id] == nil {
				return
			}
			pg := m.VolumePG(m.Volumes[id], chunk)
			for _, t := range n.gate.Targets() {
				if pg != nil && t.PG == pg.ID {
					t.Mark(gate.Key{Volume: id, Layer: layer, Chunk: chunk})
				}
			}
		})
	}
}

func (n *Node) reply(j *job, status transport.Status) {
	h := transport.Header{Op: j.head.Op, Flags: transport.FlagReply, Status: status, ID: j.head.ID,
		Session: j.head.Session, PG: j.head.PG, Epoch: j.head.Epoch, Chunk: j.head.Chunk,
		Length: j.head.Length, Interval: uint64(n.core.Incarnation()), Offset: uint32(n.core.Pressure())}
	m := message{h: h}
	switch status {
	case transport.StatusOK:
		j.answer(&m)
		n.serves(j)
	case transport.StatusLogFull:
		n.w.mark(markLogFull)
	}
	j.conn.c.send(sideServer, m)
}

// answer fills in what a successful reply carries.
func (j *job) answer(m *message) {
	r := &j.req
	payload := r.Data
	switch j.head.Op {
	case transport.OpRead, transport.OpCopy, transport.OpStatus:
		if r.Hole {
			m.h.Flags |= transport.FlagHole
			return
		}
		if j.head.Op != transport.OpStatus {
			m.sums, m.h.Sums = r.Sums, uint16(len(r.Sums)/8)
		}
	case transport.OpALList:
		payload = transport.BeginList(nil, r.Value, len(r.Regions))
		for i := range r.Regions {
			x := &r.Regions[i]
			e := transport.Region{Chunk: x.Chunk, Gen: uint64(x.Tag.Gen), Interval: x.Tag.Interval,
				Layer: x.Layer, Marks: uint8(x.Marks), Torn: x.Torn}
			payload = e.Append(payload)
		}
	case transport.OpTags:
		payload = transport.BeginList(nil, r.Value, len(r.Chunks))
		for i := range r.Chunks {
			x := &r.Chunks[i]
			e := transport.TagEntry{Chunk: x.Chunk, Gen: uint64(x.Tag.Gen), Interval: x.Tag.Interval,
				Layer: x.Layer, Blocks: x.Blocks}
			payload = e.Append(payload)
		}
	case transport.OpSums:
		payload = r.Table.Encode(make([]byte, transport.SumTableSize))
	default:
		if j.ticket.Skip {
			m.h.Flags |= transport.FlagSkipped
		}
		return
	}
	m.payload, m.h.Payload = payload, uint32(len(payload))
}
