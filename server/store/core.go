// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/transport"
)

// Core is the store of one device. See the package comment for its use.
type Core struct {
	cfg  Config
	sb   superblock
	lay  layout
	salt uint64

	slots   slotTable
	al      alTable
	cache   pageCache
	vols    []*volume // in order of first use
	volumes map[cluster.VolumeID]*volume
	hdrSeq  []uint64 // by header page: sequence number of its newest twin
	torn    map[chunkKey]*tornBlocks
	doubts  map[chunkKey]*doubt
	doubted []uint64 // groups whose flush is uncertain, still to be noted in the log

	log      logState
	commit   commitState
	fold     foldState
	loads    loadState
	verify   verifyState
	drops    dropState
	stop     stopState
	discards discardState
	mend     mendState
	rewrite  rewriteState

	// dirty is the queue of changed pages that no record covers yet; dirtyCost the
	// log bytes they take; reserved what admitted changes may still add to it.
	dirty     pageQueue
	dirtyCost int
	reserved  int
	reserve   uint32 // chunks that only copies may take
	writing   int    // admitted changes that are not complete

	flushQ  reqQueue // flush and FUA: wait for a commit that starts after now
	spaceQ  reqQueue // changes that wait for log space, a slot or a page
	cacheQ  reqQueue // reads that wait for a page
	waiting *Request // the request that retryQueues tries again
	retry   bool     // a queue above may be able to move
	active  int      // requests submitted and not replied
	idle    bool     // Idle asked for work
	failed  error
	effects []Effect
	spare   []Effect
	zeroes  []byte
	zeroSum uint64
	stats   Stats
	ioErrs  uint64
}

type reqQueue struct{ head, tail *Request }

func (q *reqQueue) push(r *Request) {
	r.next = nil
	if q.tail == nil {
		q.head = r
	} else {
		q.tail.next = r
	}
	q.tail = r
}

func (q *reqQueue) pushFront(r *Request) {
	r.next = q.head
	q.head = r
	if q.tail == nil {
		q.tail = r
	}
}

func (q *reqQueue) pop() *Request {
	r := q.head
	if r == nil {
		return nil
	}
	q.head = r.next
	if q.head == nil {
		q.tail = nil
	}
	r.next = nil
	return r
}

// join moves all of o to the end of q.
func (q *reqQueue) join(o *reqQueue) {
	if o.head == nil {
		return
	}
	if q.tail == nil {
		*q = *o
	} else {
		q.tail.next = o.head
		q.tail = o.tail
	}
	*o = reqQueue{}
}

// pageQueue is a first-in first-out queue over page.next.
type pageQueue struct {
	head, tail uint32
	count      int
}

// The stages of a request.
const (
	stageStart uint8 = iota
	stageLoad        // a trim that looks whether there is anything to trim
	stageSpace       // waits to be admitted
	stageReady       // admitted: activity log, page and verification may still be missing
	stageIO
	stageFlush
)

// ioOwner says whose IO has ended.
type ioOwner uint8

const (
	ownRequest ioOwner = iota
	ownLog
	ownFlush
	ownFold
	ownLoad
	ownVerify
	ownDiscard
	ownMend
	ownScrub
	ownRewrite
	ownStop
)

// Submit starts a request. Its reply comes as an effect, never during the call.
func (c *Core) Submit(r *Request) {
	r.Status, r.Hole = transport.StatusOK, false
	r.next, r.vol, r.al, r.page, r.cost, r.stage = nil, nil, 0, 0, 0, stageStart
	r.slot, r.seq = 0, 0
	c.active++
	switch {
	case c.failed != nil:
		c.reply(r, transport.StatusIO)
		return
	case c.stop.stage != stopNone:
		c.reply(r, transport.StatusRetry)
		return
	case !r.valid():
		c.reply(r, transport.StatusInvalid)
		return
	}
	switch r.Op {
	case OpFence:
		c.fence(r)
	case OpDrop:
		c.dropVolume(r)
	case OpScrub, OpRepair:
		c.step(r)
	case OpVacate:
		c.drops.queue.push(r)
	case OpStop:
		c.stop.stage, c.stop.req = stopDrain, r
	default:
		if st := c.admitVolume(r); st != transport.StatusOK {
			c.reply(r, st)
			return
		}
		c.step(r)
	}
}

// valid checks what later arithmetic relies on.
func (r *Request) valid() bool {
	const b = cluster.BlockSize
	switch r.Op {
	case OpRead, OpWrite, OpTrim, OpZero, OpRepair:
		if r.Length == 0 || r.Offset%b != 0 || r.Length%b != 0 ||
			uint64(r.Offset)+uint64(r.Length) > cluster.ChunkSize {
			return false
		}
		if r.Op == OpRead || r.Op == OpWrite || r.Op == OpRepair {
			return len(r.Data) == int(r.Length) && len(r.Sums) >= int(r.Length)/b*8
		}
		return true
	case OpBitmap:
		return len(r.Data) >= blocks/8
	case OpVacate:
		return r.Gone != nil
	case OpSums, OpScrub:
		return len(r.Data) >= cluster.ChunkSize && r.Table != nil
	}
	return r.Op <= OpStop
}

func (r *Request) span() bitmap {
	return span(r.Offset>>blockShift, r.Length>>blockShift)
}

func (r *Request) key() chunkKey {
	return chunkKey{volume: uint64(r.Volume), chunk: r.Chunk, layer: r.Layer}
}

// step carries a request on from its stage.
func (c *Core) step(r *Request) {
	switch r.Op {
	case OpRead, OpBitmap, OpSums:
		c.stepRead(r)
	case OpWrite:
		c.stepChange(r)
	case OpTrim:
		c.stepTrim(r)
	case OpZero:
		if r.NoHole {
			c.stepChange(r)
		} else {
			c.stepTrim(r)
		}
	case OpStamp:
		c.stepStamp(r)
	case OpMark:
		c.stepMark(r)
	case OpFlush:
		c.flushQ.push(r)
	case OpALList:
		c.listRegions(r)
	case OpTags:
		c.listTags(r)
	case OpRepair:
		c.stepRepair(r)
	case OpScrub:
		c.stepScrub(r)
	}
}

// reply completes a request.
func (c *Core) reply(r *Request, st transport.Status) {
	r.Status = st
	c.active--
	if v := r.vol; v != nil {
		r.vol = nil
		v.inflight[r.phase]--
		c.fenceDrained(v)
	}
	c.effects = append(c.effects, Effect{Kind: EffectReply, Req: r})
}

func (c *Core) startIO(io *IO) {
	c.effects = append(c.effects, Effect{Kind: EffectIO, IO: io})
}

// Effects returns what to do now, in order; the slice is valid until the next
// call. Call until it is empty. Commits, folding and page reads start here.
func (c *Core) Effects() []Effect {
	c.pump()
	out := c.effects
	c.effects, c.spare = c.spare[:0], out
	return out
}

// IODone reports that an IO has ended; err is nil only if all of it was done.
func (c *Core) IODone(io *IO, err error) {
	switch io.owner {
	case ownRequest:
		c.requestIODone(io.req, err)
	case ownLog, ownFlush:
		c.commitIODone(io, err)
	case ownFold:
		c.foldIODone(err)
	case ownLoad:
		c.loadDone(io, err)
	case ownVerify:
		c.verifyRead(err)
	case ownDiscard:
		c.discardDone(io)
	case ownMend:
		c.mendIODone(err)
	case ownScrub:
		c.scrubIODone(io.req, err)
	case ownRewrite:
		c.rewriteDone(err)
	case ownStop:
		c.stopIODone(err)
	}
}

// pump starts whatever can start. Each part returns whether it made progress
// that may let another part move.
func (c *Core) pump() {
	for moved := true; moved && c.failed == nil; {
		moved = false
		if c.retry {
			c.retry = false
			moved = c.retryQueues()
		}
		moved = c.pumpDrops() || moved
		moved = c.pumpStop() || moved
		moved = c.pumpFold() || moved
		moved = c.pumpCommit() || moved
		c.pumpLoads()
		c.pumpVerify()
		c.pumpRewrite()
	}
}

// retryQueues admits what waited, in order, until one has to wait again.
func (c *Core) retryQueues() (moved bool) {
	for _, q := range [2]*reqQueue{&c.cacheQ, &c.spaceQ} {
		for r := q.pop(); r != nil; r = q.pop() {
			c.waiting = r
			c.step(r)
			c.waiting = nil
			if q.head == r {
				break
			}
			moved = true
		}
	}
	return moved
}

func (c *Core) wakeCache() {
	if c.cacheQ.head != nil || c.spaceQ.head != nil {
		c.retry = true
	}
}

// fail retires the device (rule 19): nothing is submitted any more, everything
// outstanding fails, the incarnation changes.
func (c *Core) fail(err error) {
	if c.failed != nil {
		return
	}
	c.failed = err
	c.ioErrs++
	c.stats.Errors++
	c.effects = append(c.effects, Effect{Kind: EffectFailed})
	var all reqQueue
	all.join(&c.spaceQ)
	all.join(&c.cacheQ)
	all.join(&c.flushQ)
	all.join(&c.commit.flushers)
	for i := range c.al.wait {
		all.join(&c.al.wait[i])
	}
	for i := range c.cache.wait {
		all.join(&c.cache.wait[i])
	}
	for _, v := range c.vols {
		all.join(&v.draining)
		all.join(&v.fencing)
	}
	all.join(&c.log.fences)
	all.join(&c.commit.fences)
	all.join(&c.drops.queue)
	all.join(&c.log.drops)
	all.join(&c.log.unproven)
	all.join(&c.log.unacked)
	all.join(&c.commit.drops)
	all.join(&c.mend.queue)
	all.join(&c.mend.wait)
	if c.stop.req != nil {
		all.push(c.stop.req)
		c.stop.req = nil
	}
	for r := all.pop(); r != nil; r = all.pop() {
		c.reply(r, transport.StatusIO)
	}
}

// Err is why the device was retired, or nil.
func (c *Core) Err() error { return c.failed }

// Incarnation is the device's write verifier (rule 5): it changes with every
// start that was not preceded by a clean stop and with every write or flush
// error.
func (c *Core) Incarnation() cluster.Incarnation {
	var b [40]byte
	copy(b[:], c.sb.device[:])
	binary.LittleEndian.PutUint64(b[16:], c.sb.epoch)
	binary.LittleEndian.PutUint64(b[24:], c.sb.errors+c.ioErrs)
	binary.LittleEndian.PutUint64(b[32:], c.sb.epochID)
	return cluster.Incarnation(xxhash.Sum64(b[:]) | 1) // never 0
}

// Identity of the device.
func (c *Core) Identity() Identity { return c.sb.identity() }

// Pressure of the activity log: 0 (no need to flush) to 1000 (new regions may be
// refused until a drained flush).
func (c *Core) Pressure() int { return c.al.pressure() }

// Stats returns counters and gauges.
func (c *Core) Stats() Stats {
	s := c.stats
	s.Chunks = uint64(c.lay.slots)
	s.ChunksFree = uint64(c.lay.slots - c.slots.used)
	s.AL, s.ALSlots = uint64(c.al.count), uint64(c.al.slots)
	s.RingPages, s.RingUsed = uint64(c.lay.ringPages), c.log.next-c.log.durableTail
	s.CachePages, s.Unfolded = uint64(c.cache.inUse), uint64(c.cache.unfolded)
	s.DirtyChunks = uint64(c.dirty.count)
	return s
}
