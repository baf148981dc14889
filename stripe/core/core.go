// SPDX-License-Identifier: Apache-2.0

package core

import (
	"errors"
	"fmt"
	"time"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/stripe/layout"
	"braid/stripe/rangelock"
	"braid/transport"
	"braid/transport/bio"
)

// Config describes the attached volume.
type Config struct {
	Volume     *cluster.Volume
	Generation cluster.Generation
	ReadOnly   bool
	Requests   int           // slots; 0: 512. More wait in a queue of any length
	Frames     int           // frames in flight or unsent; 0: 4096
	HedgeAfter time.Duration // at most; 0: DefaultHedgeAfter; negative: never
	FlushEvery time.Duration // 0: DefaultFlushEvery; negative: never
	FlushBytes uint64        // 0: DefaultFlushBytes
	Lease      time.Duration // of reads, rule 15; 0: DefaultLease
	FailFull   bool          // writes that find no room on a device fail, instead of waiting
	Before     Before
	Off        rules.Off // rules that do not hold, to show that tests notice
}

// Before is what an older session of the volume left.
type Before struct {
	// GuestAlive: whoever made the old session's requests goes on, and counts on
	// every write that was acknowledged (rule 6). Else it starts anew, and old or
	// new is right for each block that was not flushed.
	GuestAlive bool
	// Source says whether a device, which answers under that incarnation, still has
	// all that it acknowledged to the old session for a group; nil: none is known to.
	Source func(cluster.PGID, cluster.DeviceID, cluster.Incarnation) bool
	// Fence are devices that the old session may read from, besides those in sync
	// and the targets (rule 26).
	Fence []cluster.DeviceID
	// Wait is how long no request passes while any of all these has not been opened
	// (rule 15). 0: no need.
	Wait time.Duration
}

// EffectKind says what the caller has to do.
type EffectKind uint8

// The effects.
const (
	Send        EffectKind = iota + 1 // send Frame on Link
	Complete                          // Request has ended; its Err and Extents are set
	CloseLink                         // close Link, for the reason in Text
	DropReplica                       // report Device to the metadata manager, for the reason in Text
	Report                            // tell the metadata manager that Device cannot be reached
	NeedMap                           // a server has a newer map than ours
	Lost                              // the volume serves no longer, for the reason in Err
	Room                              // some write waits for room now, or none does any more: see Stats
)

// Effect is one thing to do.
type Effect struct {
	Kind    EffectKind
	Frame   int32
	Link    int32
	Device  cluster.DeviceID
	Request *bio.Request
	Text    string
	Err     error
	// Of a Report: how many fault sets cannot be reached, and whether the attach
	// waits for it.
	FaultSets int
	Attaching bool
}

// Stats are counters since New.
type Stats struct {
	Requests   [8]uint64  // by bio.Op
	Frames     [32]uint64 // sent, by transport.Op
	ReadBytes  uint64
	WriteBytes uint64
	Errors     uint64
	Retries    uint64
	Hedges     uint64
	BadSums    uint64
	Inflight   uint64 // requests
	Flushes    uint64 // drained flushes that were sent
	Roomless   uint64 // requests that wait for room on a device
}

// none is the null of every index.
const none = int32(-1)

// Core is the state of one attached volume.
type Core struct {
	cfg    Config
	layout layout.Layout
	size   uint64
	now    int64

	reqs     []request
	freeReqs []int32
	pending  reqQueue // *bio.Request that found no slot
	locks    *rangelock.Table
	granted  []int32 // slots whose lock was granted and that have not run yet
	starving []int32 // slots that wait for free pieces
	held     []int32 // writes that wait for the running flush (pressure)

	pieces     []piece
	freePieces []int32
	pieceHigh  int
	copies     []copyState // MaxCopies per piece, then three per device: see flushRef
	flushBase  int32
	jobBase    int32 // first request slot, and
	jobPieces  int32 // first piece that is kept for resolving
	freeJobs   []int32
	jobFree    []int32 // pieces

	frames     []Frame
	freeFrames []int32
	frameHigh  int
	hungry     bool // a copy waits for a free frame

	set      cluster.PGSet
	pressure uint32 // highest since the last flush, thousandths
	devs     []device
	devIndex map[cluster.DeviceID]int32 // cold path only
	links    []link
	groups   []group
	gate     gateState
	resolver resolver
	locking  locking
	reads    readLease
	version  uint64 // of the map
	space    spaceState
	delayed  copyList
	orphans  copyList

	interval uint64 // rule 1: of writes that are issued now; starts at 1
	flush    flushState

	effects  []Effect
	spare    []Effect // the other half of a pair, see Effects
	deadline int64    // 0: none
	readsOut int      // read frames in flight
	readMean int64    // how long they take, see readTook
	readDev  int64
	active   int // slots in use
	lost     error
	stats    Stats
}

// New makes the core of a freshly attached volume. SetMap comes next.
func New(cfg Config) (*Core, error) {
	l, err := layout.New(cfg.Volume.StripeUnit, cfg.Volume.StripeWidth)
	if err != nil {
		return nil, fmt.Errorf("volume %s: %w", cfg.Volume.Name, err)
	}
	if cfg.Requests == 0 {
		cfg.Requests = defaultRequests
	}
	if cfg.Frames == 0 {
		cfg.Frames = defaultFrames
	}
	if cfg.HedgeAfter == 0 {
		cfg.HedgeAfter = DefaultHedgeAfter
	}
	if cfg.FlushEvery == 0 {
		cfg.FlushEvery = DefaultFlushEvery
	}
	if cfg.FlushBytes == 0 {
		cfg.FlushBytes = DefaultFlushBytes
	}
	if cfg.Lease == 0 {
		cfg.Lease = DefaultLease
	}
	c := &Core{
		cfg: cfg, layout: l, size: cfg.Volume.Size,
		locks:    rangelock.New(cfg.Requests),
		granted:  make([]int32, 0, cfg.Requests),
		starving: make([]int32, 0, cfg.Requests),
		held:     make([]int32, 0, cfg.Requests),
		devIndex: map[cluster.DeviceID]int32{},
		delayed:  emptyList, orphans: emptyList,
		interval: 1,
		effects:  make([]Effect, 0, 4*cfg.Requests),
		spare:    make([]Effect, 0, 4*cfg.Requests),
	}
	c.makeTables()
	c.gate.chunks = map[uint64]*chunkState{}
	c.reads.held = emptyList
	return c, nil
}

func (c *Core) makeTables() {
	n := c.cfg.Requests
	viewCap := c.layout.MaxViews(MaxRequest+2*cluster.BlockSize) + 2
	bounce := make([]byte, n*bounceSize)
	sums := make([]byte, n*sumsSize)
	views := make([][]byte, n*viewCap)
	c.reqs = make([]request, n+maxJobs)
	c.jobBase = int32(n)
	for i := range n {
		q := &c.reqs[i]
		q.bounce = bounce[i*bounceSize:][:bounceSize:bounceSize]
		q.sumStore = sums[i*sumsSize:][:0:sumsSize]
		q.views = views[i*viewCap:][:0:viewCap]
	}
	pieceCount := max(n*piecesPerSlot, 2*c.layout.MaxPieces(MaxRequest+2*cluster.BlockSize))
	c.jobPieces = int32(pieceCount)
	c.jobFree = descending(maxJobs * MaxCopies)
	for i := range c.jobFree {
		c.jobFree[i] += c.jobPieces
	}
	c.pieces = make([]piece, pieceCount+maxJobs*MaxCopies)
	c.flushBase = int32(len(c.pieces) * MaxCopies)
	c.copies = make([]copyState, c.flushBase, c.flushBase+64)
	c.frames = make([]Frame, c.cfg.Frames)
	c.freeReqs = descending(n)
	c.freePieces = descending(pieceCount)
	c.freeFrames = descending(len(c.frames))
}

// descending makes a stack of free indexes with 0 on top, so that low ones, and
// the same ones, are used first.
func descending(n int) []int32 {
	s := make([]int32, n)
	for i := range s {
		s[i] = int32(n - 1 - i)
	}
	return s
}

// Effects returns what is to be done, in order, and forgets it. The slice is
// valid until the next call of Effects: input that comes while it is carried out
// (a completed request's owner submits the next one) adds to the other one.
func (c *Core) Effects() []Effect {
	e := c.effects
	c.effects, c.spare = c.spare[:0], e
	return e
}

func (c *Core) emit(e Effect) { c.effects = append(c.effects, e) }

// Deadline is when Tick should be called, or 0.
func (c *Core) Deadline() int64 { return c.deadline }

// want makes sure that Tick is called at or before at.
func (c *Core) want(at int64) {
	if c.deadline == 0 || at < c.deadline {
		c.deadline = at
	}
}

// Size is the volume's size in bytes, as of the newest map.
func (c *Core) Size() uint64 { return c.size }

// Stats returns a copy of the counters.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Inflight = uint64(c.requests())
	s.Roomless = uint64(c.space.requests + c.space.held.n)
	return s
}

// Err is why the volume serves no longer, or nil.
func (c *Core) Err() error { return c.lost }

// Submit starts a request. It ends by a Complete effect, possibly at once.
func (c *Core) Submit(now int64, r *bio.Request) {
	c.now = now
	r.Err = nil
	r.Dev.Next = nil
	r.Dev.Stamp = now
	c.stats.Requests[r.Op&7]++
	if err := c.admit(r); err != nil || c.trivial(r) {
		c.completeNow(r, err)
		return
	}
	switch {
	case r.Op == bio.Flush:
		c.submitFlush(r)
	case len(c.freeReqs) == 0 || c.pending.n > 0:
		c.pending.push(r)
	case c.space.requests > 0 || c.space.held.n > 0:
		c.enter(r)
	default:
		c.start(r)
	}
	c.run()
}

// admit checks what the front end should have checked too.
func (c *Core) admit(r *bio.Request) error {
	if c.lost != nil {
		return c.lost
	}
	switch r.Op {
	case bio.Flush, bio.Cache:
		return nil
	case bio.Read, bio.BlockStatus:
	case bio.Write, bio.Trim, bio.WriteZeroes:
		if c.cfg.ReadOnly {
			return bio.ErrReadOnly
		}
	default:
		return bio.ErrNotSupported
	}
	if r.Off > c.size || r.Len > c.size-r.Off {
		if r.Op == bio.Write || r.Op == bio.WriteZeroes {
			return bio.ErrNoSpace
		}
		return bio.ErrInvalid
	}
	moves := r.Op == bio.Read || r.Op == bio.Write
	if moves && (r.Len > MaxRequest || uint64(len(r.Data)) != r.Len) {
		return bio.ErrInvalid
	}
	return nil
}

// trivial reports requests that have nothing to do. A cache hint is one: the
// devices are read with O_DIRECT, there is nothing to warm.
func (c *Core) trivial(r *bio.Request) bool {
	switch r.Op {
	case bio.Cache:
		return true
	case bio.Flush:
		return c.cfg.ReadOnly
	}
	return r.Len == 0
}

func (c *Core) completeNow(r *bio.Request, err error) {
	r.Err = err
	if err != nil {
		c.stats.Errors++
	}
	c.emit(Effect{Kind: Complete, Request: r})
}

// Refuse completes a request with err, by an effect as always.
func (c *Core) Refuse(r *bio.Request, err error) {
	r.Err = nil
	c.completeNow(r, err)
}

// run carries on with whatever an input has set free, until nothing is left. A
// loop, not recursion: one release may set a long chain going.
func (c *Core) run() {
	for c.lost == nil {
		switch {
		case len(c.granted) > 0:
			slot := c.granted[0]
			c.granted = c.granted[:copy(c.granted, c.granted[1:])]
			c.proceed(slot)
		case len(c.starving) > 0 && len(c.freePieces) > 0:
			slot := c.starving[0]
			c.starving = c.starving[:copy(c.starving, c.starving[1:])]
			c.issue(slot)
		case c.hungry && len(c.freeFrames) > 0:
			c.hungry = false
			for d := range c.devs {
				c.pump(int32(d))
			}
		case c.pending.n > 0 && len(c.freeReqs) > 0:
			c.enter(c.pending.pop())
		case c.space.held.n > 0 && len(c.freeReqs) > 0 && !c.crowded():
			c.start(c.space.held.pop())
		case c.coldWork():
		default:
			return
		}
	}
}

// lose ends the service of the volume: all requests fail with err as soon as no
// byte of theirs is in use by the transport, and so do all later ones.
func (c *Core) lose(err error) {
	if c.lost != nil {
		return
	}
	c.lost = err
	c.emit(Effect{Kind: Lost, Err: err})
	for i := range c.links {
		c.closeLink(int32(i), "the volume is closed")
	}
	c.granted, c.starving, c.held = c.granted[:0], c.starving[:0], c.held[:0]
	for i := range c.reqs {
		if c.reqs[i].r != nil {
			c.reqs[i].fail(err)
		}
	}
	for i := range c.pieces[:c.pieceHigh] {
		if c.pieces[i].live {
			c.dropPiece(int32(i))
		}
	}
	c.failFlushes(err)
	for i := range c.reqs {
		q := &c.reqs[i]
		if q.r == nil {
			continue
		}
		q.issued = true
		c.finishIfIdle(int32(i))
	}
	for c.pending.n > 0 {
		c.completeNow(c.pending.pop(), err)
	}
	for c.space.held.n > 0 {
		c.completeNow(c.space.held.pop(), err)
	}
	c.locking = locking{}
	c.deadline = 0
}

// coldWork does one thing for the resolver or for a resync target's locks, if
// there is one.
func (c *Core) coldWork() bool {
	return len(c.resolver.ready) > 0 && c.advanceJob() || c.resolver.queued() > 0 && c.startJob() ||
		c.gate.freed && c.lookAgain() || len(c.locking.answers) > 0 && c.sendAnswer()
}

// Abort ends the volume from the caller's side.
func (c *Core) Abort(now int64, err error) {
	c.now = now
	c.lose(err)
}

// Fenced says that a server refused our generation: another client has the
// volume.
func (c *Core) Fenced(now int64, by string) {
	c.now = now
	c.lose(c.fencedError(by))
}

func (c *Core) fencedError(by string) error {
	return fmt.Errorf("volume %s is attached elsewhere (%s): generation %d was fenced; "+
		"attach again to take it back: %w", c.cfg.Volume.Name, by, c.cfg.Generation, ErrFenced)
}

// Idle reports whether no request is in the core.
func (c *Core) Idle() bool { return c.requests() == 0 }

func (c *Core) requests() int {
	return c.active + c.pending.n + c.space.held.n + c.flush.active.n + c.flush.next.n + c.flush.late.n
}

// Reasons for which a volume is lost. ErrFenced is a bio.ErrShutdown for the
// front end, ErrBroken a bio.ErrIO.
var (
	ErrFenced = fmt.Errorf("fenced by a newer client: %w", bio.ErrShutdown)
	ErrBroken = fmt.Errorf("acknowledged writes were lost: %w", bio.ErrIO)
	// ErrNoSource: what the guest counts on is on no copy that can be reached.
	ErrNoSource = fmt.Errorf("no copy holds all acknowledged writes: %w", bio.ErrIO)

	errReply = errors.New("a reply does not fit its request")
)

// reqQueue is a FIFO of requests, linked through the requests themselves.
type reqQueue struct {
	head, tail *bio.Request
	n          int
}

func (q *reqQueue) push(r *bio.Request) {
	r.Dev.Next = nil
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.Dev.Next = r
	}
	q.tail = r
	q.n++
}

func (q *reqQueue) pop() *bio.Request {
	r := q.head
	q.head = r.Dev.Next
	if q.head == nil {
		q.tail = nil
	}
	r.Dev.Next = nil
	q.n--
	return r
}

// sumsOf counts the bytes of the checksums of length bytes of whole blocks.
func sumsOf(length uint32) int { return int(length / cluster.BlockSize * 8) }

// Every op that a client sends must fit the counters of Stats.
var _ = [31 - transport.OpMend]struct{}{}
