// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"unsafe"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/server/disk"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

const (
	diskSize = 96 << 20
	volume   = cluster.VolumeID(7)
	devA     = cluster.DeviceID(1) // in sync
	devB     = cluster.DeviceID(2) // in sync, too; gets whatever A gets, at once
	devC     = cluster.DeviceID(3) // comes and goes
)

func aligned(n int) []byte {
	b := make([]byte, n+4096)
	o := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & 4095
	return b[o : o+n : o+n]
}

// node is a device: disk, store, gate. Its I/O ends at once.
type node struct {
	w     *world
	id    cluster.DeviceID
	disk  *disk.Mem
	core  *store.Core
	gate  *gate.Gate
	done  map[*store.Request]bool
	down  bool
	conn  gate.ConnID // of the client, 0: none
	sess  uint32
	conns gate.ConnID
}

func (n *node) start() {
	core, err := store.Open(n.disk, store.Config{})
	if err != nil {
		n.w.t.Fatal(err)
	}
	n.core, n.gate, n.done, n.conn = core, gate.New(n.w.off), map[*store.Request]bool{}, 0
	n.settle()
}

// settle runs the store until it has nothing to do.
func (n *node) settle() {
	for es := n.core.Effects(); len(es) > 0; es = n.core.Effects() {
		for _, e := range slices.Clone(es) {
			switch e.Kind {
			case store.EffectReply:
				n.done[e.Req] = true
			case store.EffectIO:
				var err error
				switch e.IO.Kind {
				case store.IORead:
					_, err = n.disk.ReadAt(e.IO.Data, e.IO.Off)
				case store.IOWrite:
					_, err = n.disk.WriteAt(e.IO.Data, e.IO.Off)
				case store.IOFlush:
					err = n.disk.Flush()
				}
				n.core.IODone(e.IO, err)
			}
		}
	}
}

func (n *node) submit(r *store.Request) transport.Status {
	n.core.Submit(r)
	n.settle()
	if !n.done[r] {
		n.w.t.Fatalf("device %d does not answer op %d", n.id, r.Op)
	}
	delete(n.done, r)
	return r.Status
}

// moved does what the gate's caller owes it.
func (n *node) moved() {
	m := n.gate.Map()
	if m == nil {
		return
	}
	role := func(id cluster.VolumeID, chunk uint64) (*cluster.PG, gate.Role) {
		pg := m.VolumePG(m.Volumes[id], chunk)
		r, _ := n.gate.Role(pg.ID)
		return pg, r
	}
	if n.gate.Demoted() {
		n.core.Suspect(func(id cluster.VolumeID, chunk uint64) bool {
			_, r := role(id, chunk)
			return r != gate.RoleReplica
		})
	}
	for _, v := range n.gate.Raised() {
		n.core.EachRegion(func(id cluster.VolumeID, layer uint32, chunk uint64) {
			pg, _ := role(id, chunk)
			for _, t := range n.gate.Targets() {
				if id == v && t.PG == pg.ID {
					t.Mark(gate.Key{Volume: id, Layer: layer, Chunk: chunk})
				}
			}
		})
	}
}

func (n *node) learn() {
	n.gate.Learn(n.w.m, n.id)
	n.moved()
}

// open gives the client of that generation a session.
func (n *node) open(gen cluster.Generation) transport.Status {
	n.conns++
	o := gate.Opener{Conn: n.conns}
	r := transport.OpenRequest{Volume: uint64(volume), Generation: uint64(gen)}
	if s := n.gate.OpenBegin(o, &r, n.core.Generation(volume)); s != transport.StatusOK {
		return s
	}
	s := n.submit(&store.Request{Op: store.OpFence, Volume: volume, Gen: gen})
	handle, s := n.gate.OpenEnd(o, &r, n.core.Generation(volume), s)
	n.moved()
	if s == transport.StatusOK {
		n.conn, n.sess = n.conns, handle
	}
	return s
}

// request is one of the client. It returns the reply's status and whether it was
// skipped.
func (n *node) request(h transport.Header, r *store.Request) (transport.Status, bool) {
	h.Session = n.sess
	var k gate.Ticket
	s := n.gate.Admit(&k, n.conn, &h)
	if s != transport.StatusOK {
		return s, false
	}
	skip := k.Skip
	if !skip {
		r.Volume, r.Gen, r.Interval = k.Volume, k.Gen, h.Interval
		s = n.submit(r)
	}
	n.gate.Done(&k)
	n.moved()
	return s, skip
}

// world is a group of A, B and C, a client, and mdm.
type world struct {
	t     testing.TB
	rnd   *rand.Rand
	off   rules.Off
	m     *cluster.Map
	nodes map[cluster.DeviceID]*node
	core  *Core // of C
	queue []Effect
	now   int64
	hook  func(*Effect)

	gen      cluster.Generation
	genAt    uint64 // version of the map that made it so
	interval uint64
	flight   []*write
	suspects []uint64 // chunks that the client has yet to resolve
	waiting  []Lock
	held     []Lock
	version  uint64 // of contents
	trace    []string
	detached bool
	differs  bool // the copies were found to differ
	unknown  int  // answers of mdm to be lost
}

// write is one that not every copy has yet.
type write struct {
	chunk, version uint64
	block          uint32
	trim           bool
	interval       uint64
	need           []cluster.DeviceID
	withTarget     bool
}

func (w *world) log(format string, args ...any) {
	w.trace = append(w.trace, fmt.Sprintf(format, args...))
}

// newWorld has all three in sync, and a client.
func newWorld(t testing.TB, seed uint64, off rules.Off) *world {
	w := &world{t: t, rnd: rand.New(rand.NewPCG(seed, 1)), off: off, nodes: map[cluster.DeviceID]*node{}}
	w.m = cluster.NewMap()
	w.m.Sets[1] = &cluster.PGSet{Number: 1, Replicas: 3, Count: 1}
	w.m.Volumes[volume] = &cluster.Volume{ID: volume, PGSet: 1, StripeWidth: 1}
	all := []cluster.DeviceID{devA, devB, devC}
	for _, id := range all {
		n := &node{w: w, id: id, disk: disk.NewMem(diskSize)}
		if _, err := store.Format(n.disk, cluster.UUID{byte(id)}, cluster.UUID{9}, nil); err != nil {
			t.Fatal(err)
		}
		n.start()
		w.nodes[id] = n
	}
	w.core = w.newCore()
	w.publish(func(pg *cluster.PG) { pg.Replicas, pg.InSync = all, all })
	w.attach()
	return w
}

func (w *world) newCore() *Core {
	n := w.nodes[devC]
	return New(Config{Off: w.off, Copies: 2, Aligned: aligned}, n.gate, n.core)
}

// publish makes the next map and lets everybody learn it.
func (w *world) publish(edit func(*cluster.PG)) {
	next := *w.m
	next.Version++
	pg := cluster.PG{ID: cluster.MakePGID(1, 0)}
	if len(w.m.PGs[1]) > 0 {
		pg = *w.m.PGs[1][0]
	}
	if edit != nil {
		edit(&pg)
		pg.Epoch++
		if pg.Target != 0 && pg.TargetEpoch == 0 {
			pg.TargetEpoch = pg.Epoch
		}
		if pg.Target == 0 {
			pg.TargetEpoch = 0
		}
	}
	next.PGs = map[uint32][]*cluster.PG{1: {&pg}}
	next.Devices = map[cluster.DeviceID]*cluster.Device{}
	for id, n := range w.nodes {
		next.Devices[id] = &cluster.Device{ID: id, Incarnation: n.core.Incarnation(), Up: !n.down}
	}
	v := *w.m.Volumes[volume]
	v.Generation, v.Attached = w.gen, !w.detached
	next.Volumes = map[cluster.VolumeID]*cluster.Volume{volume: &v}
	w.m = &next
	w.log("map %d: epoch %d in sync %v target %d generation %d", next.Version, pg.Epoch, pg.InSync, pg.Target, w.gen)
	for _, id := range []cluster.DeviceID{devA, devB, devC} {
		if n := w.nodes[id]; !n.down {
			n.learn()
		}
	}
	w.core.Learn(w.now)
}

func (w *world) pg() *cluster.PG { return w.m.PGs[1][0] }

func (w *world) evict() {
	w.publish(func(pg *cluster.PG) { pg.InSync, pg.Target = []cluster.DeviceID{devA, devB}, 0 })
	for _, f := range w.flight {
		f.need = slices.DeleteFunc(f.need, func(id cluster.DeviceID) bool { return id == devC })
		f.withTarget = false
	}
	w.flight = slices.DeleteFunc(w.flight, func(f *write) bool { return len(f.need) == 0 })
}

func (w *world) announce() { w.publish(func(pg *cluster.PG) { pg.Target = devC }) }

// attach replaces the client: what the old one had in flight stays where it is.
func (w *world) attach() {
	w.gen++
	w.interval = 1
	w.flight, w.waiting, w.held = nil, nil, nil
	w.publish(nil)
	w.genAt = w.m.Version
	for _, id := range []cluster.DeviceID{devA, devB, devC} {
		if w.counts(id) || w.pg().Target == id {
			w.connect(id)
		}
	}
	w.suspects = w.suspects[:0]
	for _, id := range []cluster.DeviceID{devA, devC} {
		if id == devC && !w.counts(devC) {
			continue
		}
		w.nodes[id].core.EachRegion(func(_ cluster.VolumeID, _ uint32, chunk uint64) {
			if !slices.Contains(w.suspects, chunk) {
				w.suspects = append(w.suspects, chunk)
			}
		})
	}
	w.resolve()
}

// resolve makes the copies of the suspect chunks equal, as A has them, and stamps
// them, on the target too (rule 4). A chunk stays suspect until all have answered.
func (w *world) resolve() {
	var left []uint64
	for _, chunk := range w.suspects {
		if !w.resolveChunk(chunk) {
			left = append(left, chunk)
		}
	}
	w.suspects = left
}

func (w *world) resolveChunk(chunk uint64) bool {
	h := transport.Header{Op: transport.OpStamp, PG: uint32(w.pg().ID), Epoch: w.pg().Epoch, Chunk: chunk}
	for _, id := range []cluster.DeviceID{devA, devB, devC} {
		n := w.nodes[id]
		if n.down || !w.counts(id) && w.pg().Target != id {
			continue
		}
		if n.conn == 0 {
			return false
		}
		if id == devC && w.counts(id) {
			w.repair(chunk)
		}
		s, skipped := n.request(h, &store.Request{Op: store.OpStamp, Chunk: chunk, Tag: cluster.Tag{Gen: w.gen}})
		w.log("stamp of %d at %d: %d, skipped %v", chunk, id, s, skipped)
		if s != transport.StatusOK {
			return false
		}
	}
	return true
}

// repair copies what C, in sync, has unlike A.
func (w *world) repair(chunk uint64) {
	a, n := w.nodes[devA], w.nodes[devC]
	from, to := a.table(chunk), n.table(chunk)
	for i := range 256 {
		off := uint32(i * 4096)
		switch {
		case from.Present.Has(i) && from.Sums[i] != to.Sums[i]:
			r := &store.Request{Op: store.OpRead, Raw: true, Volume: volume, Gen: w.gen, Chunk: chunk, Offset: off,
				Length: 4096, Data: aligned(4096), Sums: make([]byte, 8)}
			a.submit(r)
			r.Op, r.Raw = store.OpWrite, false
			n.submit(r)
		case !from.Present.Has(i) && to.Present.Has(i):
			n.submit(&store.Request{Op: store.OpTrim, Volume: volume, Gen: w.gen, Chunk: chunk, Offset: off,
				Length: 4096})
		}
	}
}

func (w *world) counts(id cluster.DeviceID) bool { return w.pg().Has(id) }

func (w *world) connect(id cluster.DeviceID) {
	n := w.nodes[id]
	if n.down {
		return
	}
	w.disconnect(id)
	if s := n.open(w.gen); s != transport.StatusOK {
		w.t.Fatalf("open on %d: %d", id, s)
	}
}

func (w *world) disconnect(id cluster.DeviceID) {
	n := w.nodes[id]
	if n.conn == 0 {
		return
	}
	n.gate.ConnClosed(n.conn)
	if id == devC {
		w.core.ConnClosed(w.now, n.conn)
		w.held, w.waiting = nil, nil
	}
	n.conn = 0
}

// issue begins a write to every copy that the client's map names.
func (w *world) issue(chunk uint64, block uint32, trim bool) *write {
	w.resolve()
	locked := func(l Lock) bool { return l.Chunk == chunk }
	if slices.Contains(w.suspects, chunk) || slices.ContainsFunc(w.held, locked) {
		return nil
	}
	for _, f := range w.flight {
		if f.chunk == chunk && f.block == block {
			return nil
		}
	}
	w.version++
	f := &write{chunk: chunk, block: block, version: w.version, trim: trim, interval: w.interval,
		withTarget: w.pg().Target != 0 || w.counts(devC)}
	f.need = append(f.need, devA)
	if f.withTarget {
		f.need = append(f.need, devC)
	}
	w.flight = append(w.flight, f)
	w.log("write %d: chunk %d block %d trim %v to %v", f.version, chunk, block, trim, f.need)
	return f
}

// deliver has one device do the write, with A also B. It reports whether that
// happened.
func (w *world) deliver(f *write, id cluster.DeviceID) bool {
	ids := []cluster.DeviceID{id}
	if id == devA {
		ids = append(ids, devB)
	}
	if w.nodes[id].conn == 0 {
		return false
	}
	for _, id := range ids {
		n := w.nodes[id]
		if n.down || n.conn == 0 {
			continue
		}
		h := transport.Header{Op: transport.OpWrite, PG: uint32(w.pg().ID), Epoch: w.pg().Epoch, Chunk: f.chunk,
			Offset: f.block * 4096, Length: 4096, Interval: f.interval}
		r := &store.Request{Op: store.OpWrite, Chunk: f.chunk, Offset: h.Offset, Length: 4096}
		if f.trim {
			h.Op, r.Op = transport.OpTrim, store.OpTrim
		} else {
			r.Data = aligned(4096)
			for i := 0; i < 4096; i += 8 {
				binary.LittleEndian.PutUint64(r.Data[i:], f.version*1000003+uint64(i))
			}
			r.Sums = transport.BlockSums(make([]byte, 8), r.Data)
		}
		s, skipped := n.request(h, r)
		w.log("write %d at %d: status %d skipped %v", f.version, id, s, skipped)
		if s != transport.StatusOK {
			return false
		}
	}
	f.need = slices.DeleteFunc(f.need, func(x cluster.DeviceID) bool { return x == id })
	if len(f.need) == 0 {
		w.flight = slices.DeleteFunc(w.flight, func(x *write) bool { return x == f })
	}
	w.grant()
	return true
}

// put is a write that reaches everybody at once.
func (w *world) put(chunk uint64, block uint32) {
	w.t.Helper()
	f := w.issue(chunk, block, false)
	if f == nil {
		return
	}
	for _, id := range slices.Clone(f.need) {
		if !w.deliver(f, id) {
			w.t.Fatalf("write to chunk %d failed at %d\n%s", chunk, id, w.tail())
		}
	}
}

// flush is a drained one, to all that the client writes to.
func (w *world) flush() {
	if len(w.flight) > 0 {
		return
	}
	i := w.interval
	w.interval++
	for _, id := range []cluster.DeviceID{devA, devB, devC} {
		if n := w.nodes[id]; n.conn != 0 && !n.down && (w.counts(id) || w.pg().Target == id) {
			h := transport.Header{Op: transport.OpFlush, Interval: i, Chunk: w.m.Version}
			s, _ := n.request(h, &store.Request{Op: store.OpFlush, Drained: true})
			w.log("flush %d at %d: %d", i, id, s)
		}
	}
	for _, n := range w.nodes {
		n.core.Idle()
		n.settle()
	}
}

// grant answers the locks whose chunks are quiet.
func (w *world) grant() {
	for i := 0; i < len(w.waiting); i++ {
		l := w.waiting[i]
		if slices.ContainsFunc(w.flight, func(f *write) bool { return f.chunk == l.Chunk }) {
			continue
		}
		w.waiting = slices.Delete(w.waiting, i, i+1)
		i--
		status := transport.StatusOK
		if l.Epoch != w.pg().Epoch {
			status = transport.StatusStaleEpoch
		} else {
			w.held = append(w.held, l)
		}
		w.core.LockAnswer(w.now, l.ID, status)
	}
}

func (w *world) tail() string {
	s := ""
	for _, l := range w.trace[max(0, len(w.trace)-120):] {
		s += l + "\n"
	}
	return s
}
