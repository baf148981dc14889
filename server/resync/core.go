// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"cmp"
	"slices"
	"time"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// Limits and pauses.
const (
	defaultCopies = 4
	defaultRound  = 64
	pollEvery     = 200e6 // ns between questions to mdm
	retryAfter    = 50e6  // ns until a group is tried again that could not go on
	fullAfter     = 1e9   // the same after want of space
	triesPerPass  = 64    // chunks looked at for one that can be copied now
)

// Source is a device that may be copied from, in the incarnation that mdm found
// unbroken (rule 28).
type Source struct {
	Device      cluster.DeviceID
	Incarnation cluster.Incarnation
}

// Ready is mdm's word that the barrier of an attempt is met (rule 23).
type Ready struct {
	PG      cluster.PGID
	Attempt uint32
	Sources []Source
}

// Join asks mdm to call this device in sync in a group.
type Join struct {
	PG      cluster.PGID
	Attempt uint32
}

// Store is what the core asks its store directly; *store.Core implements it.
type Store interface {
	Generation(cluster.VolumeID) cluster.Generation
	EachRegion(func(id cluster.VolumeID, layer uint32, chunk uint64))
}

// Config sets the bounds of a core.
type Config struct {
	Off    rules.Off
	Copies int   // chunks under way at once; 0: 4
	Round  int   // groups compared at once; 0: 64
	Rate   int64 // bytes compared and copied per second at most; 0: no bound but the pace
	// Aligned returns memory for a disk operation, 4 KiB aligned.
	Aligned func(n int) []byte
}

// EffectKind says what the caller has to do.
type EffectKind uint8

// The kinds.
const (
	EffectLocal      EffectKind = iota // submit Op.Req to the store
	EffectPeer                         // send Op.Header to Device; its reply's payload goes to Op.Dst
	EffectConnect                      // connect to Device, then PeerUp; or PeerDown, and again later
	EffectDisconnect                   // close the connection to Device
	EffectLock                         // ask Lock's client for the chunk
	EffectUnlock                       // give it back
	EffectPoll                         // ask mdm which attempts are ready, then Ready
	EffectJoin                         // tell mdm, then Joined
)

// Effect is one instruction to the caller, in order.
type Effect struct {
	Kind    EffectKind
	Device  cluster.DeviceID
	Op      *Op
	Lock    Lock
	Joins   []Join
	Version uint64 // EffectJoin: the map that this device has adopted
}

// Lock names a chunk that a client has to keep its hands off (rule 12). PG and
// Epoch are as this device knows them: a client that knows better refuses.
type Lock struct {
	ID     uint64
	Writer gate.Writer
	PG     cluster.PGID
	Epoch  uint32
	Chunk  uint64
}

// Op is one operation on the local store or at a peer. The caller may use Ctx of
// Req and the id of Header.
type Op struct {
	Req    store.Request
	Device cluster.DeviceID
	Header transport.Header
	Dst    []byte // room for the reply's payload
	Link   any    // the caller's own

	busy bool
	done func(op *Op, status transport.Status)
	sums []byte // of the reply, kept
	c    *chunkCopy
	n    int // blocks of a copy, from first
	at   int
}

// Stats are counters and gauges. Safe to copy.
type Stats struct {
	Groups, Compared, Joining, Dirty int
	Copied, Repeated                 uint64 // chunks
	BytesRead, BytesCopied           uint64 // from sources; those written here
	Rounds                           uint64
	Rate                             int64  // bytes per second that the pace allows
	Stuck                            string // why some chunk cannot be copied, or empty
}

// Core is the resync of one device.
type Core struct {
	cfg   Config
	gate  *gate.Gate
	store Store

	now      int64
	polled   int64
	refilled int64
	tokens   int64
	pace     pacer

	runs    []*run // by announcement
	turn    int
	peers   []*peer // by number
	round   *round
	copies  []*chunkCopy
	lastID  uint64
	join    *joining
	effects []Effect
	spare   []Effect
	stats   Stats
}

// run is one attempt in one group.
type run struct {
	t       *gate.Target
	sources []Source // nil: mdm has not said yet that the barrier is met
	turn    int      // which source is next
	active  int      // copies
	retryAt int64
	dead    bool
	joined  bool // mdm said yes; the map follows
}

// peer is a device that is compared with or copied from.
type peer struct {
	id     cluster.DeviceID
	inc    cluster.Incarnation
	up     bool
	wanted bool
	asked  bool // EffectConnect was emitted
	ops    []*Op
}

// New returns a core that has nothing to do until Learn.
func New(cfg Config, g *gate.Gate, s Store) *Core {
	if cfg.Copies == 0 {
		cfg.Copies = defaultCopies
	}
	if cfg.Round == 0 {
		cfg.Round = defaultRound
	}
	c := &Core{cfg: cfg, gate: g, store: s, polled: -pollEvery, pace: newPacer(cfg.Rate),
		tokens: int64(cfg.Copies) * cluster.ChunkSize}
	for range cfg.Copies {
		c.copies = append(c.copies, newCopy(c))
	}
	return c
}

// Busy reports whether there is anything to do or to wait for.
func (c *Core) Busy() bool { return len(c.runs) > 0 }

// Stats returns counters and gauges.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Groups, s.Rate = len(c.runs), c.pace.rate
	for _, r := range c.runs {
		s.Dirty += r.t.Left()
		if r.t.Compared() {
			s.Compared++
		}
	}
	if c.join != nil {
		s.Joining = len(c.join.runs)
	}
	return s
}

// Learn follows a map that the gate has learned: attempts begin and end.
func (c *Core) Learn(now int64) {
	c.now = now
	kept := c.runs[:0]
	for _, r := range c.runs {
		if r.dead = !slices.Contains(c.gate.Targets(), r.t); !r.dead {
			kept = append(kept, r)
		}
	}
	clear(c.runs[len(kept):])
	c.runs = kept
	for _, t := range c.gate.Targets() {
		if !slices.ContainsFunc(c.runs, func(r *run) bool { return r.t == t }) {
			c.runs = append(c.runs, &run{t: t})
			c.polled = now - pollEvery
		}
	}
	c.pace.short = c.short()
	c.mutateReady()
	for _, x := range c.copies {
		if x.run != nil && x.run.dead && x.left == 0 {
			x.end() // it waits for a lock that may never be answered now
		}
	}
	if c.round != nil && !c.round.lives() {
		c.round = nil
	}
	c.wantPeers()
}

// short reports whether a group that this device catches up in has fewer copies in
// sync than belong to it: not where one only moves.
func (c *Core) short() bool {
	m := c.gate.Map()
	return slices.ContainsFunc(c.runs, func(r *run) bool {
		pg, set := m.PG(r.t.PG), m.Sets[r.t.PG.Set()]
		return pg != nil && set != nil && len(pg.InSync) < set.Replicas
	})
}

// Load tells the 99th percentile of this device's clients' reads and writes of late,
// in microseconds; 0: there were none.
func (c *Core) Load(now int64, micros uint32) { c.pace.hear(now, 0, micros) }

// Limit bounds the bytes that are compared and copied in a second, besides what the
// configuration says; 0: it need not.
func (c *Core) Limit(rate int64) {
	if c.pace.most = c.cfg.Rate; rate > 0 && (c.pace.most == 0 || rate < c.pace.most) {
		c.pace.most = rate
	}
}

// Limited is the bound that holds; 0: none.
func (c *Core) Limited() int64 { return c.pace.most }

// Aim sets the 99th percentile of clients' reads and writes at which copying slows
// down; 0: what the pacer finds right.
func (c *Core) Aim(p99 time.Duration) { c.pace.aim = p99.Microseconds() }

// Aimed is what was set; 0: nothing.
func (c *Core) Aimed() time.Duration { return time.Duration(c.pace.aim) * time.Microsecond }

// Tick lets time pass.
func (c *Core) Tick(now int64) {
	c.now = now
	c.pace.tick(now)
	// Not more than a twentieth of a second's worth is saved up.
	c.tokens = min(c.tokens+c.pace.rate/1e6*(min(now-c.refilled, 1e9)/1e3),
		max(c.pace.rate/20, int64(c.cfg.Copies)*cluster.ChunkSize))
	c.refilled = now
	for _, p := range c.peers {
		if p.wanted && !p.up && !p.asked {
			p.asked = true
			c.emit(Effect{Kind: EffectConnect, Device: p.id})
		}
	}
	if len(c.runs) > 0 && now-c.polled >= pollEvery {
		c.polled = now
		c.emit(Effect{Kind: EffectPoll})
	}
}

// Ready is mdm's answer to EffectPoll.
func (c *Core) Ready(now int64, list []Ready) {
	c.now = now
	for i := range list {
		x := &list[i]
		for _, r := range c.runs {
			if r.t.PG == x.PG && r.t.Attempt == x.Attempt {
				r.sources = slices.Clone(x.Sources)
				slices.SortFunc(r.sources, func(a, b Source) int { return cmp.Compare(a.Device, b.Device) })
				c.renewPeers(r.sources)
			}
		}
	}
	c.mutateReady()
	c.wantPeers()
}

// renewPeers closes the connections whose device has another incarnation by now
// than when they were opened: a write error changes it under an open connection,
// and where nothing is asked there any more no answer would tell.
func (c *Core) renewPeers(sources []Source) {
	for _, s := range sources {
		if p := c.peer(s.Device); p.up && p.inc != s.Incarnation {
			c.emit(Effect{Kind: EffectDisconnect, Device: s.Device})
		}
	}
}

// mutateReady gives attempts the sources that they have without rules 13, 23 and
// 28: at once, and whatever happened to them.
func (c *Core) mutateReady() {
	early := c.cfg.Off.Has(rules.Adoption) || c.cfg.Off.Has(rules.JoinBarrier)
	if !early && !c.cfg.Off.Has(rules.RecordedSource) {
		return
	}
	m := c.gate.Map()
	for _, r := range c.runs {
		pg := m.PG(r.t.PG)
		if pg == nil || r.sources == nil && !early {
			continue
		}
		r.sources = nil
		for _, id := range pg.InSync {
			if d := m.Devices[id]; d != nil {
				r.sources = append(r.sources, Source{id, d.Incarnation})
			}
		}
	}
}

// Effects returns what to do now, in order; the slice is valid until the next
// call. Call until it is empty.
func (c *Core) Effects() []Effect {
	c.pump()
	out := c.effects
	c.effects, c.spare = c.spare[:0], out
	return out
}

func (c *Core) emit(e Effect) { c.effects = append(c.effects, e) }

func (c *Core) pump() {
	if len(c.runs) == 0 {
		return
	}
	c.startRound()
	c.startCopies()
	c.startJoin()
}

// wantPeers connects to the sources and the other in-sync copies of what runs.
func (c *Core) wantPeers() {
	for _, p := range c.peers {
		p.wanted = false
	}
	for _, r := range c.runs {
		if r.sources == nil {
			continue
		}
		if pg := c.gate.Map().PG(r.t.PG); pg != nil {
			for _, id := range pg.InSync {
				c.peer(id).wanted = true
			}
		}
	}
	for _, p := range c.peers {
		switch {
		case p.wanted && !p.up && !p.asked:
			p.asked = true
			c.emit(Effect{Kind: EffectConnect, Device: p.id})
		case !p.wanted && p.up:
			c.emit(Effect{Kind: EffectDisconnect, Device: p.id})
		}
	}
}

func (c *Core) peer(id cluster.DeviceID) *peer {
	i, found := slices.BinarySearchFunc(c.peers, id, func(p *peer, id cluster.DeviceID) int {
		return cmp.Compare(p.id, id)
	})
	if !found {
		c.peers = slices.Insert(c.peers, i, &peer{id: id})
	}
	return c.peers[i]
}

// PeerUp says that a connection to a device is open, in that incarnation.
func (c *Core) PeerUp(now int64, id cluster.DeviceID, inc cluster.Incarnation) {
	c.now = now
	p := c.peer(id)
	p.up, p.asked, p.inc = true, false, inc
}

// PeerDown says that there is no connection to a device, or that one could not
// be made. What was under way there has failed.
func (c *Core) PeerDown(now int64, id cluster.DeviceID) {
	c.now = now
	p := c.peer(id)
	p.up, p.asked = false, false
	ops := p.ops
	p.ops = nil
	for _, op := range ops {
		op.busy = false
		op.done(op, transport.StatusIO)
	}
}

// PeerDone takes the reply to a peer operation. Its payload is in Op.Dst; sums
// are copied.
func (c *Core) PeerDone(now int64, op *Op, h *transport.Header, sums []byte) {
	c.now = now
	p := c.peer(op.Device)
	i := slices.Index(p.ops, op)
	if i < 0 {
		return // failed already
	}
	p.ops = slices.Delete(p.ops, i, i+1)
	op.busy = false
	status := h.Status
	if cluster.Incarnation(h.Interval) != p.inc && !c.cfg.Off.Has(rules.RecordedSource) {
		// It is not the device any more that mdm has judged (rule 28).
		status = transport.StatusIO
		c.emit(Effect{Kind: EffectDisconnect, Device: op.Device})
	}
	// A source has no sessions for its peers: it tells there what its clients see.
	c.pace.hear(now, op.Device, h.Session)
	op.sums = append(op.sums[:0], sums...)
	op.Header = *h
	op.done(op, status)
}

// LocalDone takes the store's reply to a local operation.
func (c *Core) LocalDone(now int64, op *Op) {
	c.now = now
	op.busy = false
	op.done(op, op.Req.Status)
}

// toPeer sends a request, which the caller has filled in.
func (c *Core) toPeer(op *Op, id cluster.DeviceID, done func(*Op, transport.Status)) {
	if op.busy {
		panic("resync: an operation was started twice")
	}
	op.busy, op.done, op.Device = true, done, id
	p := c.peer(id)
	p.ops = append(p.ops, op)
	c.emit(Effect{Kind: EffectPeer, Device: id, Op: op})
}

// toStore submits a request, which the caller has filled in.
func (c *Core) toStore(op *Op, done func(*Op, transport.Status)) {
	if op.busy {
		panic("resync: an operation was started twice")
	}
	op.busy, op.done = true, done
	c.emit(Effect{Kind: EffectLocal, Op: op})
}

// reset empties a request but for what the caller and the store keep there.
func reset(r *store.Request) {
	r.Op, r.FUA, r.NoHole, r.IsCopy, r.Drained = 0, false, false, false, false
	r.Raw, r.Unlog, r.Hole = false, false, false
	r.Marks, r.Layer, r.Volume, r.Gen, r.Interval = 0, 0, 0, 0, 0
	r.Chunk, r.Offset, r.Length, r.Value, r.Tag = 0, 0, 0, 0, cluster.Tag{}
	r.Data, r.Sums, r.Regions, r.Chunks, r.Table = nil, nil, r.Regions[:0], r.Chunks[:0], nil
}

// source returns a source of the run that can be asked now.
func (c *Core) source(r *run) (Source, bool) {
	pg := c.gate.Map().PG(r.t.PG)
	for k := range r.sources {
		s := r.sources[(r.turn+k)%len(r.sources)]
		// Rule 9: only what mdm calls in sync is ever right.
		if p := c.peer(s.Device); pg != nil && pg.Has(s.Device) && p.up && c.isJudged(p, s) {
			return s, true
		}
	}
	return Source{}, false
}

// isJudged is rule 28: the device still has the cache that mdm judged.
func (c *Core) isJudged(p *peer, s Source) bool {
	return p.inc == s.Incarnation || c.cfg.Off.Has(rules.RecordedSource)
}
