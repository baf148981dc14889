// SPDX-License-Identifier: Apache-2.0

package store

import (
	"math/rand/v2"
	"testing"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/transport"
)

// The model: for each block the values that it may have after a power loss now.
// The first is what the newest acked flush covered; later ones are changes since,
// acked or not. A change that was acked is the block's value without a crash.
type modelBlock struct {
	values []uint64 // xxhash64 of the contents
	acked  int      // index of the newest acked one
	base   int      // how many were dropped from the front
	busy   bool     // a change is in flight (range lock)
}

type modelVolume struct {
	id       cluster.VolumeID
	gen      cluster.Generation
	interval uint64
	out      map[uint64]int // changes in flight by interval
	flushing bool
	fencing  bool
	dropping bool // being deleted: anything may be left of it
}

type modelKey struct {
	volume cluster.VolumeID
	chunk  uint64
	block  uint32
}

type modelOp struct {
	kind  string
	first modelKey
	n     uint32
	hash  []uint64
	marks map[modelKey]int // flush: acked index of each block at its start
	vol   *modelVolume
	want  []uint64
}

// profile is what a run is like.
type profile struct {
	size   int64
	ring   int64 // bytes; 0: as usual
	chunks uint64
	width  uint32 // blocks of a chunk that are in use, about
	every  int    // a crash is drawn at every so many-th completion
	steps  int
	trims  int // of 1000 steps
	syncs  int // of 1000 steps: flushes; and FUA of 1000 writes
	losses int // of 1000 steps: power losses that the run goes on from
}

// profiles make different parts work hard: few blocks that are overwritten and
// synced all the time, a small log ring, a small activity log, more chunks than
// cached pages.
func profiles() []profile {
	return []profile{
		{testSize, 0, 2, 3, 4, 3000, 200, 250, 15},
		{testSize, 256 << 10, 24, 24, 40, 1000, 80, 80, 2},
		{testSize, 0, 24, 24, 40, 1000, 80, 80, 2},
		{192 << 20, 0, 80, 12, 80, 1000, 80, 80, 2},
	}
}

type model struct {
	t       testing.TB
	rig     *rig
	last    *rig // recovered last
	rnd     *rand.Rand
	cfg     Config
	vols    []*modelVolume
	blocks  map[modelKey]*modelBlock
	ops     map[*Request]*modelOp
	version uint64
	zero    uint64
	crashes int
	seen    map[string]int
	ticks   int
	torn    map[modelKey]bool
	marked  map[uint64]Marks // chunks of volume 1: marks that were acked
	leaving map[uint64]bool  // chunks of volume 1 that are being vacated: there, or not
	rotten  map[modelKey]bool
	scratch []byte
	acks    int
	scrub   *Request              // a pass that goes on all the time, if set
	scrubs  int                   // pieces that have ended
	asked   int                   // and that were begun
	used    map[modelKey]uint32   // by chunk: blocks that were ever touched
	tags    map[modelKey]modelTag // by chunk: of its last acked write
	profile
}

func newModel(t testing.TB, seed uint64, p profile, cfg Config) *model {
	m := &model{t: t, cfg: cfg, profile: p, blocks: map[modelKey]*modelBlock{},
		ops: map[*Request]*modelOp{}, used: map[modelKey]uint32{}, torn: map[modelKey]bool{}, seen: map[string]int{},
		tags: map[modelKey]modelTag{}, scratch: alignedBytes(cluster.ChunkSize),
		marked: map[uint64]Marks{}, leaving: map[uint64]bool{}, rotten: map[modelKey]bool{}}
	m.rnd = rand.New(rand.NewPCG(seed, 7))
	l, err := newLayout(p.size)
	if p.ring != 0 {
		l, err = layoutWith(p.size, p.ring)
	}
	if err != nil {
		t.Fatal(err)
	}
	m.rig = newRigWith(t, l, cfg)
	m.rig.rnd = m.rnd
	m.zero = xxhash.Sum64(make([]byte, cluster.BlockSize))
	for i := range 2 {
		v := &modelVolume{id: cluster.VolumeID(i + 1), gen: 1, interval: 1, out: map[uint64]int{}}
		m.vols = append(m.vols, v)
		m.rig.fence(v.id, 1)
	}
	m.rig.each = m.tick
	return m
}

func (m *model) block(k modelKey) *modelBlock {
	b := m.blocks[k]
	if b == nil {
		b = &modelBlock{values: []uint64{m.zero}}
		m.blocks[k] = b
	}
	return b
}

func (k modelKey) plus(i uint32) modelKey { k.block += i; return k }

// pick draws a free range.
func (m *model) pick() (k modelKey, n uint32, ok bool) {
	k.volume = m.vols[m.rnd.IntN(len(m.vols))].id
	k.chunk = m.rnd.Uint64N(m.chunks)
	n = 1 + m.rnd.Uint32N(6)
	if m.rnd.IntN(400) == 0 {
		n = blocks
	}
	k.block = m.rnd.Uint32N(min(m.width, blocks-n+1))
	for i := range n {
		if m.block(k.plus(i)).busy {
			return k, n, false
		}
	}
	return k, n, true
}

func (m *model) change(kind string) {
	k, n, ok := m.pick()
	if !ok {
		return
	}
	r := &Request{FUA: m.rnd.IntN(1000) < m.syncs}
	r.NoHole = kind == "zero" && m.rnd.IntN(2) == 0
	m.submit(r, kind, k, n)
}

// submit starts a change of a range in which none is in flight.
func (m *model) submit(r *Request, kind string, k modelKey, n uint32) {
	v := m.vols[k.volume-1]
	r.Volume, r.Gen, r.Interval, r.Chunk = k.volume, v.gen, v.interval, k.chunk
	r.Offset, r.Length = k.block*cluster.BlockSize, n*cluster.BlockSize
	op := &modelOp{kind: kind, first: k, n: n, vol: v}
	switch kind {
	case "write":
		m.version++
		r.Op, r.Data = OpWrite, alignedBytes(int(r.Length))
		pattern(r.Data, m.version)
		r.Sums = sumsOf(r.Data)
		for i := range n {
			op.hash = append(op.hash, xxhash.Sum64(r.Data[i*cluster.BlockSize:(i+1)*cluster.BlockSize]))
		}
	case "trim":
		r.Op = OpTrim
	case "zero":
		r.Op = OpZero
	}
	for i := range n {
		b := m.block(k.plus(i))
		b.busy = true
		at := modelKey{k.volume, k.chunk, 0}
		m.used[at] = max(m.used[at], k.block+n)
		h := m.zero
		if op.hash != nil {
			h = op.hash[i]
		}
		b.values = append(b.values, h)
	}
	if r.FUA {
		op.marks = m.snapshot(op)
	}
	v.out[r.Interval]++
	m.ops[r] = op
	m.rig.core.Submit(r)
}

// snapshot notes what a flush that begins now has to cover. own are the
// changes of the request itself.
func (m *model) snapshot(own *modelOp) map[modelKey]int {
	marks := map[modelKey]int{}
	if own != nil && own.kind != "flush" {
		for i := range own.n {
			k := own.first.plus(i)
			marks[k] = m.blocks[k].base + len(m.blocks[k].values) - 1
		}
		return marks
	}
	for k, b := range m.blocks {
		marks[k] = b.base + b.acked
	}
	return marks
}

func (m *model) flush() { m.flushVolume(m.vols[m.rnd.IntN(len(m.vols))]) }

func (m *model) flushVolume(v *modelVolume) {
	if v.flushing {
		return
	}
	i := v.interval
	v.interval++
	for j, n := range v.out {
		if j <= i && n > 0 {
			v.interval-- // not drained: rule 1 forbids it now
			return
		}
	}
	v.flushing = true
	op := &modelOp{kind: "flush", vol: v}
	op.marks = m.snapshot(op)
	r := &Request{Op: OpFlush, Volume: v.id, Gen: v.gen, Interval: i, Drained: true}
	m.ops[r] = op
	m.rig.core.Submit(r)
}

func (m *model) read() {
	k, n, ok := m.pick()
	if !ok {
		return
	}
	op := &modelOp{kind: "read", first: k, n: n}
	for i := range n {
		b := m.block(k.plus(i))
		b.busy = true
		op.want = append(op.want, b.values[b.acked])
	}
	r := readReq(k.volume, m.vols[k.volume-1].gen, k.chunk, k.block*cluster.BlockSize, n*cluster.BlockSize)
	m.ops[r] = op
	m.rig.core.Submit(r)
}

// take handles the replies so far.
func (m *model) take() {
	rs := m.rig.replies
	m.rig.replies = nil
	for _, r := range rs {
		op := m.ops[r]
		if r == m.scrub {
			m.scrubbed()
			continue
		}
		if op == nil { // it is rig.do's
			m.rig.replies = append(m.rig.replies, r)
			continue
		}
		delete(m.ops, r)
		m.ended(r, op)
	}
}

func (m *model) ended(r *Request, op *modelOp) {
	m.seen[op.kind]++
	m.acks++
	for i := range op.n {
		m.blocks[op.first.plus(i)].busy = false
	}
	refused := r.Status == transport.StatusLogFull || r.Status == transport.StatusNoSpace
	if r.Status != transport.StatusOK && !(refused && op.kind != "read" && op.kind != "flush") {
		m.t.Fatalf("%s of %+v (%d blocks): status %d, %v", op.kind, op.first, op.n, r.Status, m.rig.core.Err())
	}
	switch op.kind {
	case "flush":
		op.vol.flushing = false
	case "read":
		m.compare(r, op.first, func(i uint32, h uint64) bool { return h == op.want[i] })
		return
	default:
		op.vol.out[r.Interval]--
		if refused {
			m.seen["refused"]++
			for i := range op.n { // nothing was done
				b := m.blocks[op.first.plus(i)]
				b.values = b.values[:len(b.values)-1]
			}
			return
		}
		for i := range op.n {
			b := m.blocks[op.first.plus(i)]
			b.acked = len(b.values) - 1
		}
		m.tagged(r, op)
	}
	for k, at := range op.marks {
		b := m.blocks[k]
		if at -= b.base; at > 0 {
			b.values = b.values[at:]
			b.acked -= at
			b.base += at
		}
	}
}

// compare checks the bytes of a read against its sums and ok.
func (m *model) compare(r *Request, k modelKey, ok func(i uint32, hash uint64) bool) {
	m.t.Helper()
	for i := range r.Length / cluster.BlockSize {
		h := m.zero
		if !r.Hole {
			d := r.Data[i*cluster.BlockSize : (i+1)*cluster.BlockSize]
			h = xxhash.Sum64(d)
			if string(sumsOf(d)) != string(r.Sums[8*i:8*i+8]) {
				m.t.Fatalf("read of %+v: data and checksum differ", k.plus(i))
			}
		}
		if !ok(i, h) {
			m.t.Fatalf("read of %+v: wrong bytes, hole %v (allowed %+v, got %x)%s", k.plus(i), r.Hole,
				m.blocks[k.plus(i)], h, dumpLog(m.last, chunkKey{uint64(k.volume), k.chunk, 0}))
		}
	}
}

// tick runs before each completion: now and then a power loss at this very
// point is drawn on a copy, recovered and examined.
func (m *model) tick() {
	m.ticks++
	if m.ticks%m.every == 0 {
		m.crashCopy()
	}
}

func (m *model) crashCopy() {
	m.take()
	rig := &rig{t: m.t, disk: m.rig.disk.Crash(m.rnd, m.rig.inflight()), rnd: m.rnd}
	rig.open(m.cfg)
	m.crashes++
	found := m.recovered(rig, false, nil)
	if m.rnd.IntN(3) == 0 { // and a second one, on top of what the first recovery began
		rig.disk = rig.disk.Crash(m.rnd, nil)
		rig.open(m.cfg)
		m.recovered(rig, false, found)
	}
}

// recovered checks a rig after a power loss against the model and, if adopt is
// set, makes what it finds the state of the model. Where an earlier recovery
// found something, later ones have to find the same. It returns what it found.
func (m *model) recovered(g *rig, adopt bool, before map[modelKey]uint64) map[modelKey]uint64 {
	m.t.Helper()
	regions := map[chunkKey]bool{}
	m.last = g
	found := map[modelKey]uint64{}
	gens := map[cluster.VolumeID]cluster.Generation{}
	for _, v := range m.vols {
		gen := g.core.Generation(v.id)
		if v.dropping {
			continue
		}
		if gens[v.id] = gen; gen != v.gen && !(v.fencing && gen == v.gen-1) {
			m.t.Fatalf("generation %d of volume %d after a crash, want %d", gen, v.id, v.gen)
		}
		r := g.must(&Request{Op: OpALList, Volume: v.id, Gen: gen})
		for _, x := range r.Regions {
			regions[chunkKey{uint64(x.Volume), x.Chunk, x.Layer}] = true
		}
		m.checkMarks(v.id, r.Regions)
		m.checkTags(g, v.id, gen, regions)
		m.resolve(g, v.id, gen, r.Regions)
	}
	if adopt {
		clear(m.tags) // stamped
	}
	for _, v := range m.vols {
		for chunk := range m.chunks {
			n := m.used[modelKey{v.id, chunk, 0}]
			if n == 0 || v.dropping {
				continue
			}
			key := chunkKey{uint64(v.id), chunk, 0}
			m.readBack(g, modelKey{v.id, chunk, 0}, gens[v.id], n, func(i uint32, h uint64) bool {
				b := m.blocks[modelKey{v.id, chunk, i}]
				if b == nil {
					return h == m.zero
				}
				isGone := v.id == 1 && m.leaving[chunk] && h == m.zero
				if !regions[key] && !isGone {
					m.mustBeCold(g, key, i, b, h)
				}
				ok := isGone || len(b.values) > 1 && m.torn[modelKey{v.id, chunk, i}]
				found[modelKey{v.id, chunk, i}] = h
				if before != nil {
					return before[modelKey{v.id, chunk, i}] == h
				}
				for _, x := range b.values {
					ok = ok || x == h
				}
				if adopt {
					*b = modelBlock{values: []uint64{h}}
				}
				return ok
			})
		}
	}
	return found
}

// mustBeCold: a region that is not in the activity log holds what was flushed, and
// nothing else was written to it.
func (m *model) mustBeCold(g *rig, key chunkKey, i uint32, b *modelBlock, h uint64) {
	m.t.Helper()
	for _, x := range b.values[:b.acked+1] {
		if x != b.values[0] {
			m.t.Fatalf("block %d of %+v: unflushed writes, not in the activity log: %+v%s", i, key, b, dumpLog(g, key))
		}
	}
	if h != b.values[0] {
		m.t.Fatalf("block %d of %+v is not what was flushed, and not in the activity log: %+v%s", i, key, b,
			dumpLog(g, key))
	}
}

// readBack compares the first n blocks of a chunk. Those that have rotted may be
// refused.
func (m *model) readBack(g *rig, k modelKey, gen cluster.Generation, n uint32, ok func(i uint32, h uint64) bool) {
	m.t.Helper()
	if len(m.rotten) == 0 {
		r := g.must(readReq(k.volume, gen, k.chunk, 0, n*cluster.BlockSize))
		m.compare(r, k, ok)
		return
	}
	for i := range n {
		r := readReq(k.volume, gen, k.chunk, i*cluster.BlockSize, cluster.BlockSize)
		if m.rotten[k.plus(i)] {
			if g.do(r) == transport.StatusRot {
				continue
			}
		} else {
			g.must(r)
		}
		m.compare(r, k.plus(i), func(_ uint32, h uint64) bool { return ok(i, h) })
	}
}

// resolve notes which blocks are torn and, where the device does not do so
// itself, adopts them by stamping their chunks.
func (m *model) resolve(g *rig, v cluster.VolumeID, gen cluster.Generation, regions []Region) {
	m.t.Helper()
	for _, x := range regions {
		r := g.must(&Request{Op: OpSums, Volume: v, Gen: gen, Chunk: x.Chunk, Data: m.scratch,
			Table: &transport.SumTable{}})
		if r.Table.Rot != (transport.Bitmap{}) {
			m.t.Fatalf("chunk %d of volume %d: rot after a power loss: %x, verified %d%s", x.Chunk, v, r.Table.Rot,
				g.core.stats.Verified, dumpLog(g, chunkKey{uint64(v), x.Chunk, 0}))
		}
		t := g.core.torn[chunkKey{uint64(v), x.Chunk, 0}]
		for i := range uint32(blocks) {
			torn := r.Table.Torn.Has(int(i)) || m.cfg.LocalResolve && t != nil && t.bits.has(i)
			m.torn[modelKey{v, x.Chunk, i}] = torn
			if torn {
				m.seen["torn"]++
			}
		}
		if !m.cfg.LocalResolve {
			g.must(&Request{Op: OpStamp, Volume: v, Gen: gen, Chunk: x.Chunk, Tag: cluster.Tag{Gen: gen}})
		}
	}
}

// crash loses power for good and goes on from there.
func (m *model) crash() {
	m.take()
	m.crashes++
	m.rig.reopen(m.cfg)
	m.ops = map[*Request]*modelOp{}
	m.scrubs = m.asked
	for _, v := range m.vols {
		v.out, v.flushing = map[uint64]int{}, false
	}
	each := m.rig.each
	m.rig.each = nil
	m.recovered(m.rig, true, nil)
	m.rig.each = each
	m.audit()
}

func (m *model) stop() {
	m.quiesce()
	inc := m.rig.core.Incarnation()
	m.rig.must(&Request{Op: OpStop})
	m.rig.reopen(m.cfg)
	if m.rig.core.Incarnation() != inc {
		m.t.Fatal("the incarnation changed over a clean stop")
	}
	m.flushed()
	m.seen["stop"]++
}

// flushed: everything that was acked is durable now.
func (m *model) flushed() {
	for _, b := range m.blocks {
		*b = modelBlock{values: b.values[b.acked : b.acked+1]}
	}
}

func (m *model) fence() {
	m.quiesce()
	v := m.vols[m.rnd.IntN(len(m.vols))]
	v.gen++
	v.interval, v.fencing = 1, true
	m.rig.fence(v.id, v.gen)
	v.fencing = false
	m.seen["fence"]++
}

func (m *model) run() {
	for range m.steps {
		switch k := m.rnd.IntN(1000); {
		case k < m.trims:
			m.change("trim")
		case k < m.trims+m.syncs:
			m.flush()
		case k < 850:
			if x := m.rnd.IntN(10); x < 7 {
				m.change("write")
			} else if x < 9 {
				m.read()
			} else {
				m.change("zero")
			}
		case k < 900:
			m.rig.core.Idle()
		case k < 902:
			m.stop()
		case k < 906:
			m.fence()
		case k < 915:
			m.quiesce()
		case k < 915+m.losses:
			m.crash()
		}
		if m.scrub != nil && m.rnd.IntN(4) == 0 && m.scrubs == m.asked {
			m.asked++
			m.rig.core.Submit(m.scrub)
		}
		m.rig.collect()
		for n := m.rnd.IntN(5); n > 0 && len(m.rig.pending) > 0; n-- {
			m.rig.complete(m.rnd.IntN(len(m.rig.pending)))
		}
		m.take()
		if len(m.ops) > 24 {
			m.quiesce()
		}
	}
}
