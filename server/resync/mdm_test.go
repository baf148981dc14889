// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"slices"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// step carries out one effect, or lets 10 ms pass.
func (w *world) step() {
	for es := w.core.Effects(); len(es) > 0; es = w.core.Effects() {
		w.queue = append(w.queue, es...)
	}
	if len(w.queue) == 0 {
		w.now += 10e6
		w.core.Tick(w.now)
		return
	}
	e := w.queue[0]
	w.queue = w.queue[1:]
	if w.hook != nil {
		w.hook(&e)
	}
	w.do(&e)
}

func (w *world) do(e *Effect) {
	c := w.core
	switch e.Kind {
	case EffectLocal:
		op := e.Op
		w.log("C: op %d chunk %d", op.Req.Op, op.Req.Chunk)
		w.nodes[devC].submit(&op.Req)
		c.LocalDone(w.now, op)
	case EffectPeer:
		w.askPeer(e)
	case EffectConnect:
		if n := w.nodes[e.Device]; n.down {
			c.PeerDown(w.now, e.Device)
		} else {
			c.PeerUp(w.now, e.Device, n.core.Incarnation())
		}
	case EffectDisconnect:
		c.PeerDown(w.now, e.Device)
	case EffectLock:
		w.log("C: lock %d", e.Lock.Chunk)
		if e.Lock.Writer.Conn == w.nodes[devC].conn {
			w.waiting = append(w.waiting, e.Lock)
			w.grant()
		}
	case EffectUnlock:
		w.log("C: unlock %d", e.Lock.Chunk)
		same := func(l Lock) bool { return l.ID == e.Lock.ID }
		w.held, w.waiting = slices.DeleteFunc(w.held, same), slices.DeleteFunc(w.waiting, same)
	case EffectPoll:
		c.Ready(w.now, w.ready())
	case EffectJoin:
		w.joinInSync(e)
	}
}

// ready is mdm's side of rule 23: the barrier is met when no write is in flight
// that was issued without the target.
func (w *world) ready() []Ready {
	if w.pg().Target == 0 || slices.ContainsFunc(w.flight, func(f *write) bool { return !f.withTarget }) {
		return nil
	}
	var s []Source
	for _, id := range []cluster.DeviceID{devA, devB} {
		if n := w.nodes[id]; !n.down {
			s = append(s, Source{id, n.core.Incarnation()})
		}
	}
	return []Ready{{PG: w.pg().ID, Attempt: w.pg().TargetEpoch, Sources: s}}
}

func (w *world) joinInSync(e *Effect) {
	if w.unknown > 0 {
		w.unknown--
		w.core.Joined(w.now, nil, false)
		return
	}
	pg := w.pg()
	if pg.Target != devC || pg.TargetEpoch != e.Joins[0].Attempt || w.genAt > e.Version {
		w.log("join refused")
		w.core.Joined(w.now, []cluster.PGID{pg.ID}, true)
		return
	}
	w.log("joined")
	w.core.Joined(w.now, nil, true)
	w.publish(func(pg *cluster.PG) { pg.InSync, pg.Target = []cluster.DeviceID{devA, devB, devC}, 0 })
}

func (w *world) askPeer(e *Effect) {
	n, op := w.nodes[e.Device], e.Op
	if n.down {
		w.core.PeerDown(w.now, e.Device)
		return
	}
	h := op.Header
	var k = new(ticket)
	reply := transport.Header{Op: h.Op, Flags: transport.FlagReply, Interval: uint64(n.core.Incarnation())}
	reply.Status = n.gate.AdmitPeer(&k.Ticket, &h)
	if reply.Status != transport.StatusOK {
		w.core.PeerDone(w.now, op, &reply, nil)
		return
	}
	r := &store.Request{Volume: k.Volume, Gen: n.core.Generation(k.Volume), Chunk: h.Chunk, Offset: h.Offset,
		Length: h.Length}
	var payload, sums []byte
	switch h.Op {
	case transport.OpTags:
		r.Op, r.Value, r.Chunk, r.Length = store.OpTags, h.Chunk, 0, 3 // several parts
		reply.Status = n.submit(r)
		payload = transport.BeginList(nil, r.Value, len(r.Chunks))
		for _, x := range r.Chunks {
			t := transport.TagEntry{Chunk: x.Chunk, Gen: uint64(x.Tag.Gen), Interval: x.Tag.Interval, Blocks: x.Blocks}
			payload = t.Append(payload)
		}
	case transport.OpALList:
		r.Op, r.Value, r.Chunk, r.Length = store.OpALList, h.Chunk, 0, 2
		reply.Status = n.submit(r)
		payload = transport.BeginList(nil, r.Value, len(r.Regions))
		for _, x := range r.Regions {
			t := transport.Region{Chunk: x.Chunk, Gen: uint64(x.Tag.Gen), Interval: x.Tag.Interval,
				Marks: uint8(x.Marks)}
			payload = t.Append(payload)
		}
	case transport.OpSums:
		r.Op, r.Data, r.Length, r.Table = store.OpSums, aligned(1<<20), 1<<20, new(transport.SumTable)
		reply.Status = n.submit(r)
		payload = r.Table.Encode(make([]byte, transport.SumTableSize))
	case transport.OpCopy:
		r.Op, r.Raw, r.Data, r.Sums = store.OpRead, true, aligned(int(h.Length)), make([]byte, h.Length/4096*8)
		reply.Status = n.submit(r)
		if payload, sums = r.Data, r.Sums; r.Hole {
			reply.Flags |= transport.FlagHole
			payload, sums = nil, nil
		}
	}
	n.gate.Done(&k.Ticket)
	reply.Payload = uint32(copy(op.Dst, payload))
	w.core.PeerDone(w.now, op, &reply, sums)
}

// joined runs until C is in sync, and checks that its copy is that of A.
func (w *world) joined() {
	w.t.Helper()
	for range 20000 {
		if w.counts(devC) {
			w.check()
			return
		}
		w.step()
	}
	w.t.Fatalf("C does not get into sync: %+v\n%s", w.core.Stats(), w.tail())
}

// table reads a chunk's checksums.
func (n *node) table(chunk uint64) *transport.SumTable {
	r := &store.Request{Op: store.OpSums, Volume: volume, Gen: n.core.Generation(volume), Chunk: chunk,
		Data: aligned(1 << 20), Length: 1 << 20, Table: new(transport.SumTable)}
	if s := n.submit(r); s != transport.StatusOK {
		n.w.t.Fatalf("checksums of chunk %d on %d: %d", chunk, n.id, s)
	}
	return r.Table
}

const chunks = 10

// check compares A and C. A write in flight may have reached one of them only; it
// is completed first.
func (w *world) check() {
	w.t.Helper()
	for _, id := range []cluster.DeviceID{devA, devC} {
		if w.nodes[id].conn == 0 {
			w.connect(id)
		}
	}
	for _, f := range slices.Clone(w.flight) {
		for _, id := range slices.Clone(f.need) {
			if !w.deliver(f, id) {
				w.t.Fatalf("the write %+v does not end at %d\n%s", *f, id, w.tail())
			}
		}
	}
	if w.resolve(); len(w.suspects) > 0 {
		w.t.Fatalf("not resolved: %v\n%s", w.suspects, w.tail())
	}
	for chunk := range uint64(chunks) {
		a, c := w.nodes[devA].table(chunk), w.nodes[devC].table(chunk)
		if a.Present != c.Present || a.Sums != c.Sums || c.Rot != (transport.Bitmap{}) {
			w.bad("chunk %d differs: present %x and %x\n%s", chunk, a.Present[:4], c.Present[:4], w.tail())
			return
		}
		if a.Stored && !c.Logged && !a.Logged && (a.Gen != c.Gen || a.Interval != c.Interval) {
			w.bad("chunk %d: tag %d.%d and %d.%d\n%s", chunk, a.Gen, a.Interval, c.Gen, c.Interval, w.tail())
			return
		}
		if c.Marks&uint8(store.MarkTarget) != 0 {
			w.bad("chunk %d still has the target's mark\n%s", chunk, w.tail())
			return
		}
	}
}
