// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/stripe/layout"
	"braid/transport"
	"braid/transport/bio"
)

// simConfig is what a run may do to the core.
type simConfig struct {
	seed        uint64
	unit, width uint32
	size        uint64
	devices     int
	replicas    int
	groups      int
	requests    int // slots of the core
	frames      int
	alCap       int
	silent      bool
	drops       int // per mille, per event: connections that break
	restarts    int // devices that come back, some without their cache
	statuses    int // refusals that mean nothing
	badReads    int // replies with wrong bytes, or an error
	powerLoss   bool
	maxLength   int
	longTrims   bool
	fills       int  // devices that have no room for a while
	failFull    bool // then writes fail
	attach      bool // the copies differ at first
	before      Before
	off         rules.Off
	prepare     func(*sim)       // the devices, before the core sees them
	refuse      transport.Op     // of scripts: answered "not now" from the start
	down        cluster.DeviceID // of scripts: not connected from the start
}

// wireFrame is a frame that the core has sent.
type wireFrame struct {
	frame    int32
	h        transport.Header
	sums     []byte
	payload  []byte
	captured bool // the network has taken its bytes
	sent     bool // and the core has been told
	executed bool
}

// fakeLink is a connection: frames one way, replies the other, in any order.
type fakeLink struct {
	dev     *fakeDevice
	state   linkState
	dying   bool // the transport is letting go: what is sent now is dropped
	frames  []*wireFrame
	replies []*pendingReply
}

type pendingReply struct {
	fakeReply
	dst      [][]byte
	incoming bool
	wanted   bool
}

// sim drives a core and fake devices by one random source. The oracle is simple
// because the range lock is first come, first served: what a read returns is
// what all writes submitted before it made, whatever the network does.
type sim struct {
	cfg     simConfig
	rng     *rand.Rand
	core    *Core
	now     int64
	devs    []*fakeDevice
	links   map[int32]*fakeLink
	m       *cluster.Map
	live    map[*bio.Request]*order
	model   []byte
	history [][]uint64 // per block: hashes of its contents, in the order of submission
	stable  []int      // per block: the newest version whose request has completed
	lost    error
	fail    error
	done    int
	marks   map[string]int
	healing bool
	clock   int64
	ended   map[*bio.Request]error // of a script, which checks for itself
}

// order is what the sim knows of a request.
type order struct {
	s        *sim
	r        bio.Request
	want     []byte // of a read
	snap     []int  // of a flush: stable at its call
	versions map[int]int
}

func (j *order) RequestDone(*bio.Request) {}

func newSim(cfg simConfig) *sim {
	s := &sim{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.seed, 1)), links: map[int32]*fakeLink{},
		live: map[*bio.Request]*order{}, model: make([]byte, cfg.size), now: 1, marks: map[string]int{}}
	for range cfg.size / cluster.BlockSize {
		s.history = append(s.history, []uint64{hashBlock(nil)})
	}
	s.stable = make([]int, len(s.history))
	v := &cluster.Volume{ID: 7, Name: "v", Size: cfg.size, Replicas: cfg.replicas, StripeUnit: cfg.unit,
		StripeWidth: cfg.width, BlockSize: 4096, PGSet: 1}
	m := cluster.NewMap()
	m.Version = 1
	m.Volumes[7] = v
	m.Sets[1] = &cluster.PGSet{Number: 1, Replicas: cfg.replicas, Count: uint32(cfg.groups)}
	for i := range cfg.devices {
		d := newFakeDevice(cluster.DeviceID(i + 1))
		d.alCap, d.silent = cfg.alCap, cfg.silent
		s.devs = append(s.devs, d)
		m.Devices[d.id] = &cluster.Device{ID: d.id, Server: fmt.Sprintf("sds%d", d.id), Up: true}
	}
	for g := range cfg.groups {
		pg := &cluster.PG{ID: cluster.MakePGID(1, uint32(g)), Epoch: 1}
		for r := range cfg.replicas {
			pg.InSync = append(pg.InSync, cluster.DeviceID((g+r)%cfg.devices+1))
		}
		m.PGs[1] = append(m.PGs[1], pg)
	}
	s.m = m
	if cfg.attach {
		s.differ()
	}
	if cfg.prepare != nil {
		cfg.prepare(s)
	}
	// s.cfg, not cfg: differ has said there what the older session left.
	c, err := New(Config{Volume: v, Generation: 3, Before: s.cfg.before, Off: cfg.off,
		Requests: cfg.requests, Frames: cfg.frames, HedgeAfter: 50 * time.Millisecond, FailFull: cfg.failFull})
	if err == nil {
		err = c.SetMap(s.now, m, nil)
	}
	s.core, s.fail = c, err
	return s
}

// differ has an older session leave copies that are unlike in some chunks. In
// each group one device is the source, so that what must come out is known.
func (s *sim) differ() {
	sources := map[cluster.PGID]cluster.DeviceID{}
	for _, pg := range s.m.PGs[1] {
		sources[pg.ID] = pg.InSync[s.rng.IntN(len(pg.InSync))]
	}
	s.cfg.before.Source = func(pg cluster.PGID, id cluster.DeviceID, _ cluster.Incarnation) bool {
		return sources[pg] == id
	}
	l, _ := layout.New(s.cfg.unit, s.cfg.width)
	v := s.m.Volumes[7]
	for chunk := range s.cfg.size / cluster.ChunkSize {
		if s.rng.IntN(3) == 0 {
			continue
		}
		pg := s.m.VolumePG(v, chunk)
		for _, id := range pg.InSync {
			if id == pg.InSync[0] || s.rng.IntN(2) == 0 {
				s.devs[id-1].suspects[chunk] = 0
			}
		}
		for range s.rng.IntN(40) {
			b := uint64(s.rng.IntN(cluster.BlocksPerChunk))
			for _, id := range pg.InSync {
				data := bytes.Repeat([]byte{byte(s.rng.Uint32())}, cluster.BlockSize)
				if s.rng.IntN(3) == 0 {
					data = nil
				}
				key := chunk*cluster.BlocksPerChunk + b
				put(s.devs[id-1], key, data)
				if id == sources[pg.ID] {
					off := l.Offset(chunk, uint32(b*cluster.BlockSize))
					clear(s.model[off : off+cluster.BlockSize])
					copy(s.model[off:], data)
					first := hashBlock(s.model[off : off+cluster.BlockSize])
					s.history[off/cluster.BlockSize] = []uint64{first}
				}
			}
		}
		s.marks["resolved"]++
	}
}

var zeroHash = xxhash.Sum64(make([]byte, cluster.BlockSize))

func hashBlock(b []byte) uint64 {
	if b == nil {
		return zeroHash
	}
	return xxhash.Sum64(b)
}

func (s *sim) failf(format string, args ...any) {
	if s.fail == nil {
		s.fail = fmt.Errorf(format, args...)
	}
}

func (s *sim) chance(perMille int) bool { return !s.healing && s.rng.IntN(1000) < perMille }

// effects carries out what the core wants.
func (s *sim) effects() {
	for {
		list := s.core.Effects()
		if len(list) == 0 {
			return
		}
		for _, e := range list {
			s.effect(e)
		}
	}
}

func (s *sim) effect(e Effect) {
	switch e.Kind {
	case Send:
		l := s.links[e.Link]
		if l == nil || l.state != linkOpen && !l.dying {
			s.failf("a frame is sent on link %d, which is not open", e.Link)
			return
		}
		s.marks["frame"]++
		l.frames = append(l.frames, &wireFrame{frame: e.Frame, h: s.core.Frame(e.Frame).Header})
	case Complete:
		if s.ended != nil {
			s.ended[e.Request] = e.Request.Err
			return
		}
		s.completed(e.Request)
	case CloseLink:
		s.links[e.Link].state = linkClosing
		s.marks["close-link"]++
	case DropReplica:
		s.marks["drop-replica"]++
		s.dropReplica(e.Device)
	case Lost:
		s.marks["lost"]++
		s.lost = e.Err
	case Report:
		s.marks["report"]++
	case NeedMap:
		s.marks["need-map"]++
	case Room:
		s.marks["room"]++
	}
}

// step does one thing.
func (s *sim) step() {
	s.clock++
	switch n := s.rng.IntN(100); {
	case n < 12:
		if !s.healing && len(s.live) < 3*s.cfg.requests {
			s.submit()
		}
	case n < 30:
		s.transmit()
	case n < 45:
		s.tellSent()
	case n < 65:
		s.executeOne()
	case n < 88:
		s.answerOne()
	case n < 93:
		s.linkUp()
	case n < 97:
		s.advance()
	default:
		s.disturb()
	}
	s.effects()
	if s.clock%64 == 0 {
		s.checkInvariants()
	}
}

func (s *sim) advance() {
	s.now += s.rng.Int64N(int64(20 * time.Millisecond))
	if d := s.core.Deadline(); d != 0 && d <= s.now {
		s.core.Tick(s.now)
	}
}

// pick returns a random link that satisfies ok.
func (s *sim) pick(ok func(*fakeLink) bool) (int32, *fakeLink) {
	var ids []int32
	for id, l := range s.links {
		if ok(l) {
			ids = append(ids, id)
		}
	}
	if len(ids) == 0 {
		return none, nil
	}
	slices.Sort(ids)
	id := ids[s.rng.IntN(len(ids))]
	return id, s.links[id]
}

func (s *sim) transmit() {
	_, l := s.pick(func(l *fakeLink) bool {
		return slices.ContainsFunc(l.frames, func(f *wireFrame) bool { return !f.captured })
	})
	if l == nil {
		return
	}
	for _, f := range l.frames {
		if !f.captured {
			s.capture(f)
			if s.rng.IntN(3) == 0 {
				return
			}
		}
	}
}

func (s *sim) capture(f *wireFrame) {
	src := s.core.Frame(f.frame)
	f.sums = slices.Clone(src.Sums)
	f.payload = bytes.Join(src.Payload, nil)
	f.captured = true
}

func (s *sim) tellSent() {
	_, l := s.pick(func(l *fakeLink) bool {
		return slices.ContainsFunc(l.frames, func(f *wireFrame) bool { return f.captured && !f.sent })
	})
	if l == nil {
		return
	}
	for _, f := range l.frames {
		if f.captured && !f.sent {
			f.sent = true
			s.core.Sent(s.now, f.frame)
			s.effects()
			if s.rng.IntN(4) == 0 {
				return
			}
		}
	}
}

func (s *sim) executeOne() {
	ready := func(f *wireFrame) bool { return f.captured && !f.executed }
	_, l := s.pick(func(l *fakeLink) bool { return l.dev.up && slices.ContainsFunc(l.frames, ready) })
	if l == nil {
		return
	}
	var list []*wireFrame
	for _, f := range l.frames {
		if ready(f) {
			list = append(list, f)
		}
	}
	s.execute(l, list[s.rng.IntN(len(list))])
}

func (s *sim) execute(l *fakeLink, f *wireFrame) {
	f.executed = true
	if s.chance(s.cfg.statuses) {
		status := []transport.Status{transport.StatusRetry, transport.StatusBadSum, transport.StatusStaleEpoch,
			transport.StatusRefused, transport.StatusNoSession}[s.rng.IntN(5)]
		if f.h.Op != transport.OpFlush || status != transport.StatusBadSum {
			l.replies = append(l.replies, &pendingReply{fakeReply: l.dev.reply(f.h, status)})
			return
		}
	}
	if f.h.Op == transport.OpFlush {
		s.checkDrained(l.dev, f.h.Interval)
	}
	r, err := l.dev.execute(f)
	if err != nil {
		s.fail = errors.Join(s.fail, err)
	}
	if r.h.Status == transport.StatusLogFull {
		s.marks["al-full"]++
	}
	if f.h.Op == transport.OpRead && s.chance(s.cfg.badReads) {
		s.spoil(&r, l.dev)
	}
	l.replies = append(l.replies, &pendingReply{fakeReply: r})
}

// spoil makes a read go wrong.
func (s *sim) spoil(r *fakeReply, d *fakeDevice) {
	s.marks["bad-read"]++
	if s.rng.IntN(2) == 0 || len(r.payload) == 0 {
		h := r.h
		h.Flags &^= transport.FlagHole | transport.FlagReply
		*r = d.reply(h, transport.StatusRot)
		return
	}
	r.payload[s.rng.IntN(len(r.payload))] ^= 1
}

// checkDrained holds a flush, at the moment it is executed, against rule 1.
func (s *sim) checkDrained(d *fakeDevice, interval uint64) {
	for i := range s.core.pieces {
		p := &s.core.pieces[i]
		if p.live && !p.parked && p.isWrite() && (p.interval <= interval || p.reacks > 0) {
			s.failf("flush %d runs while a write of interval %d to chunk %d is outstanding (rule 1)",
				interval, p.interval, p.chunk)
		}
	}
	if d.dirty == 0 {
		s.marks["needless-flush"]++
	}
	s.marks["flush"]++
}

func (s *sim) answerOne() {
	id, l := s.pick(func(l *fakeLink) bool { return len(l.replies) > 0 && l.state == linkOpen })
	if l == nil {
		return
	}
	i := s.rng.IntN(len(l.replies))
	r := l.replies[i]
	if !r.incoming {
		r.incoming = true
		dst, wanted, err := s.core.Incoming(id, &r.h)
		if err != nil {
			s.failf("Incoming refuses %+v: %v", r.h, err)
		}
		r.dst, r.wanted = dst, wanted
		if len(r.payload) > 0 && s.rng.IntN(3) > 0 {
			s.land(r, s.rng.IntN(len(r.payload))) // the rest comes later, or never
			return
		}
	}
	s.land(r, len(r.payload))
	l.replies = slices.Delete(l.replies, i, i+1)
	s.core.Reply(s.now, id, &r.h, r.sums, nil)
}

// land puts the first n bytes of the payload where the core wants them.
func (s *sim) land(r *pendingReply, n int) {
	if !r.wanted {
		return
	}
	rest := r.payload[:n]
	for _, v := range r.dst {
		rest = rest[copy(v, rest):]
	}
}

// closeLink ends a connection: each frame was executed, or not.
func (s *sim) closeLink(id int32) {
	l := s.links[id]
	l.dying = true
	for _, f := range l.frames {
		if f.captured && !f.executed && l.dev.up && s.rng.IntN(2) == 0 {
			s.execute(l, f)
		}
	}
	for _, r := range l.replies { // half of a payload may still land
		if r.incoming && len(r.payload) > 0 {
			s.land(r, s.rng.IntN(len(r.payload)))
		}
	}
	for i := 0; i < len(l.frames); i++ { // telling may make the core send more
		if f := l.frames[i]; !f.sent {
			f.sent = true
			s.core.Sent(s.now, f.frame)
			s.effects()
		}
	}
	delete(s.links, id)
	s.core.LinkClosed(s.now, id)
	s.effects()
}

func (s *sim) linkUp() {
	if id, l := s.pick(func(l *fakeLink) bool { return l.state == linkClosing }); l != nil {
		s.closeLink(id)
		return
	}
	d := s.devs[s.rng.IntN(len(s.devs))]
	if !d.up {
		if s.healing || s.rng.IntN(4) == 0 {
			d.up = true
		}
		return
	}
	for _, l := range s.links {
		if l.dev == d {
			return
		}
	}
	if id := s.core.LinkUp(s.now, d.id, uint32(d.id), cluster.Incarnation(d.inc)); id >= 0 {
		s.links[id] = &fakeLink{dev: d, state: linkOpen}
	}
}

// disturb breaks something.
func (s *sim) disturb() {
	switch {
	case s.chance(s.cfg.drops):
		if id, l := s.pick(func(*fakeLink) bool { return true }); l != nil {
			s.marks["drop"]++
			s.closeLink(id)
		}
	case s.chance(s.cfg.restarts):
		s.restart(s.devs[s.rng.IntN(len(s.devs))])
	case s.chance(s.cfg.fills):
		d := s.devs[s.rng.IntN(len(s.devs))]
		d.chunks = 1 - d.chunks
	}
}

func (s *sim) restart(d *fakeDevice) {
	for _, id := range s.linkIDs() {
		if s.links[id].dev == d {
			s.closeLink(id)
		}
	}
	d.up = false
	s.marks["restart"]++
	switch {
	case d.dirty == 0:
		d.inc += 100 // nothing was lost: any incarnation is acceptable
	case s.cfg.powerLoss && s.rng.IntN(4) == 0:
		s.marks["power-loss"]++
		d.powerLoss(func() bool { return s.rng.IntN(2) == 0 })
	}
}

func (s *sim) linkIDs() (ids []int32) {
	for id := range s.links {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// dropReplica is the metadata manager.
func (s *sim) dropReplica(id cluster.DeviceID) {
	next := *s.m
	next.Version++
	next.PGs = map[uint32][]*cluster.PG{1: slices.Clone(s.m.PGs[1])}
	var last []cluster.PGID
	for i, pg := range next.PGs[1] {
		if !pg.Has(id) {
			continue
		}
		if len(pg.InSync) == 1 {
			last = append(last, pg.ID)
			continue
		}
		n := *pg
		n.Epoch++
		n.InSync = slices.DeleteFunc(slices.Clone(pg.InSync), func(d cluster.DeviceID) bool { return d == id })
		next.PGs[1][i] = &n
	}
	s.m = &next
	s.core.Dropped(s.now, id, last)
	if len(last) > 0 {
		return
	}
	if err := s.core.SetMap(s.now, s.m, nil); err != nil {
		s.failf("SetMap: %v", err)
	}
}
