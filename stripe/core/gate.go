// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"slices"

	"braid/cluster/rules"
	"braid/transport"
)

// gateState says which chunks are not open to requests. The way of a request
// looks at closed alone when nothing is.
type gateState struct {
	closed      int // uncollected groups, chunks below, and 1 while holding
	uncollected int
	chunks      map[uint64]*chunkState
	parked      int  // pieces that wait for their chunk to open
	drains      int  // jobs and locks that wait for writes under way to end
	freed       bool // such a write may have ended
	holding     bool // rules 15, 26: not every device of the old session is fenced
	// inherits: a guest goes on, and what the old session acknowledged to it is not
	// resolved and durable on all copies yet.
	inherits  bool
	holdUntil int64
}

// chunkState is why requests to a chunk wait.
type chunkState struct {
	suspect bool  // rule 8
	queued  bool  // for the resolver
	listed  uint8 // by so many devices
	job     int32 // that resolves it, or none
	locks   int   // of resync targets, granted or asked for (rule 12); they stop writes only
}

// A device has three copies of its own, behind those of the pieces.
const (
	flushCopy = iota
	listCopy
	confirmCopy
	deviceCopies
)

func (c *Core) flushRef(dev int32) int32   { return c.flushBase + dev*deviceCopies + flushCopy }
func (c *Core) listRef(dev int32) int32    { return c.flushBase + dev*deviceCopies + listCopy }
func (c *Core) confirmRef(dev int32) int32 { return c.flushBase + dev*deviceCopies + confirmCopy }

// kindOf tells a device's own copies apart.
func (c *Core) kindOf(ref int32) int32 { return (ref - c.flushBase) % deviceCopies }

// freshCopy makes one of a device's own copies ready to be enqueued.
func (c *Core) freshCopy(ref, dev int32) int32 {
	c.copies[ref] = copyState{kind: copyLoose, dev: dev, frame: none, prev: none, next: none}
	return ref
}

// isGated reports whether a piece has to wait: no request passes to a group whose
// activity logs are not known, nor to a chunk that is not resolved (rule 8), and
// no write to one that a target has locked (rule 12).
func (c *Core) isGated(p *piece) bool {
	if !c.cfg.Off.Has(rules.ResolveFirst) && (c.gate.holding || !c.groups[p.group].collected) {
		return true
	}
	st := c.gate.chunks[p.chunk]
	return st != nil && (st.suspect && !c.cfg.Off.Has(rules.ResolveFirst) || st.locks > 0 && p.isWrite())
}

// park keeps a piece until its chunk opens, and has the chunk resolved before
// others.
func (c *Core) park(p *piece) {
	p.parked = true
	c.gate.parked++
	if st := c.gate.chunks[p.chunk]; st != nil && st.queued && st.job == none {
		c.resolver.urgent = append(c.resolver.urgent, p.chunk)
	}
}

// unpark launches what nothing stops any more.
func (c *Core) unpark() {
	for i := int32(0); i < int32(c.pieceHigh) && c.gate.parked > 0; i++ {
		p := &c.pieces[i]
		if p.live && p.parked && p.room != roomWaits && !(c.gate.closed > 0 && c.isGated(p)) {
			p.parked = false
			c.gate.parked--
			c.launch(i)
		}
	}
}

// chunkGate returns the state of a chunk, which is made where there is none.
func (c *Core) chunkGate(chunk uint64) *chunkState {
	st := c.gate.chunks[chunk]
	if st == nil {
		st = &chunkState{job: none}
		c.gate.chunks[chunk] = st
		c.gate.closed++
	}
	return st
}

// openChunk forgets a chunk that has no reason to be closed any more.
func (c *Core) openChunk(chunk uint64) {
	if st := c.gate.chunks[chunk]; st != nil && !st.suspect && st.locks == 0 {
		delete(c.gate.chunks, chunk)
		c.gate.closed--
	}
	c.unpark()
}

// isWriting reports whether a write to the chunk is under way.
func (c *Core) isWriting(chunk uint64) bool {
	for i := range c.pieces[:min(c.pieceHigh, int(c.jobPieces))] {
		if p := &c.pieces[i]; p.live && !p.parked && p.chunk == chunk && p.isWrite() {
			return true
		}
	}
	return false
}

// lookAgain is for those who wait for writes to end.
func (c *Core) lookAgain() bool {
	c.gate.freed = false
	for i := range c.resolver.jobs {
		if j := &c.resolver.jobs[i]; j.stage == jobDrain && !c.isWriting(j.chunk) {
			c.gate.drains--
			c.beginJob(int32(i))
		}
	}
	c.grantLocks()
	return true
}

// adoptGates looks at what a new map changes for the attach.
func (c *Core) adoptGates(old []group) {
	if old == nil {
		c.beginAttach()
	}
	for i := range c.groups {
		g := &c.groups[i]
		if g.collected {
			continue
		}
		for _, d := range g.inSync() {
			if i < len(old) && !old[i].has(d) {
				c.devs[d].isListed = false // what it has learned as a target counts, too
			}
			c.collect(d)
		}
	}
	c.checkCollected()
	c.checkFenced()
	c.unpark()
	c.tickAway()
}

// beginAttach closes everything.
func (c *Core) beginAttach() {
	c.gate.uncollected = len(c.groups)
	c.gate.closed += len(c.groups)
	c.gate.inherits = c.cfg.Before.GuestAlive
	for i := range c.devs {
		if d := &c.devs[i]; d.member {
			d.mustBeFenced = true
		}
	}
	if c.cfg.Before.Wait <= 0 || c.cfg.Off.Has(rules.AttachFencesAll) {
		return
	}
	for _, id := range c.cfg.Before.Fence {
		c.devs[c.device(id)].mustBeFenced = true
	}
	c.gate.holding = true
	c.gate.closed++
	c.gate.holdUntil = c.now + int64(c.cfg.Before.Wait)
	c.want(c.gate.holdUntil)
}

func (c *Core) mustFence(d *device) bool {
	return c.gate.holding && d.mustBeFenced && !d.isFenced
}

// checkFenced ends the wait for the old session when no device serves it any more
// (rules 15 and 26).
func (c *Core) checkFenced() {
	if c.gate.holding && !slices.ContainsFunc(c.devs, func(d device) bool { return c.mustFence(&d) }) {
		c.endHold()
	}
}

func (c *Core) endHold() {
	c.gate.holding = false
	c.gate.closed--
	c.unpark()
}

func (c *Core) tickHold() {
	switch {
	case !c.gate.holding:
	case c.now >= c.gate.holdUntil:
		c.endHold()
	default:
		c.want(c.gate.holdUntil)
	}
}

// collect asks a device for its activity log, where that is wanted.
func (c *Core) collect(dev int32) {
	d := &c.devs[dev]
	ref := c.listRef(dev)
	if !d.inSync || d.isListed && !d.relists || c.copies[ref].kind != copyNone {
		return
	}
	d.cursor = 0
	c.enqueue(c.freshCopy(ref, dev))
}

func (c *Core) listReply(ref, l int32, h *transport.Header, list []byte) {
	cp := &c.copies[ref]
	d := &c.devs[cp.dev]
	if h.Status != transport.StatusOK {
		d.cursor = 0
		c.retryLater(ref, h.Status)
		return
	}
	next, err := transport.DecodeRegions(list, func(r *transport.Region) { c.listed(cp.dev, r) })
	if err != nil {
		d.cursor = 0
		c.closeLink(l, err.Error())
		c.enqueue(ref)
		return
	}
	if d.cursor = next; next != 0 {
		c.enqueue(ref)
		return
	}
	cp.kind = copyNone
	d.isListed, d.relists = true, false
	c.checkCollected()
}

// listed takes an entry of a device's activity log: the in-sync copies of the
// chunk may differ, so it is suspect (rule 10: in any log of theirs).
func (c *Core) listed(dev int32, r *transport.Region) {
	g := &c.groups[c.groupOf(r.Chunk)]
	switch {
	case !g.has(dev):
		return // a target's: mdm and the target see to it
	case g.collected && !(c.devs[dev].relists && r.Marks&(markSuspect|markPoisoned) != 0):
		return // our own writes
	case c.cfg.Off.Has(rules.UnionOfLogs) && dev != g.members[0]:
		return
	}
	st := c.chunkGate(r.Chunk)
	st.listed++
	if st.suspect {
		return
	}
	st.suspect = true
	c.resolver.suspects++
	if g.collected {
		c.queueSuspects()
	}
}

// checkCollected opens the groups of which every in-sync device has been fenced
// and has told its activity log. Chunks in none of these logs are equal.
func (c *Core) checkCollected() {
	if c.gate.uncollected == 0 {
		return
	}
	before := c.gate.uncollected
	for i := range c.groups {
		if g := &c.groups[i]; !g.collected && g.n > 0 && c.allListed(g) {
			g.collected = true
			c.gate.uncollected--
			c.gate.closed--
		}
	}
	if c.gate.uncollected == before {
		return
	}
	c.queueSuspects()
	c.unpark()
	if c.resolver.suspects == 0 && c.gate.uncollected == 0 {
		c.resolvedAll()
	}
}

func (c *Core) allListed(g *group) bool {
	if c.cfg.Off.Has(rules.AttachFencesAll) {
		return slices.ContainsFunc(g.inSync(), func(d int32) bool { return c.devs[d].isListed })
	}
	return !slices.ContainsFunc(g.inSync(), func(d int32) bool { return !c.devs[d].isListed })
}

// queueSuspects gives the resolver the suspect chunks of collected groups that it
// does not know yet. Those that more devices name come first: resolving one makes
// room in each log that names it.
func (c *Core) queueSuspects() {
	r := &c.resolver
	first := len(r.todo)
	for chunk, st := range c.gate.chunks {
		if g := &c.groups[c.groupOf(chunk)]; st.suspect && !st.queued && g.collected {
			st.queued = true
			r.todo = append(r.todo, chunk)
		}
	}
	slices.SortFunc(r.todo[first:], func(a, b uint64) int {
		x, y := c.gate.chunks[a], c.gate.chunks[b]
		if x.listed != y.listed {
			return int(y.listed) - int(x.listed)
		}
		if a < b {
			return -1
		}
		return 1
	})
	for _, chunk := range r.todo[first:] {
		g := &c.groups[c.groupOf(chunk)]
		if c.gate.inherits && !c.hasSource(g) {
			c.lose(c.noSource(g))
			return
		}
	}
	for i := range c.pieces[:c.pieceHigh] {
		if p := &c.pieces[i]; p.live && p.parked {
			if st := c.gate.chunks[p.chunk]; st != nil && st.queued && st.job == none {
				r.urgent = append(r.urgent, p.chunk)
			}
		}
	}
}

func (c *Core) noSource(g *group) error {
	return fmt.Errorf("volume %s cannot go on under a guest that kept running: placement group %d "+
		"has no copy left that holds all that was acknowledged (every server of it lost its cache "+
		"since); detach, attach afresh and check the file system: %w", c.cfg.Volume.Name, g.id,
		ErrNoSource)
}

// away notes that the last connection to a device has broken.
func (c *Core) away(dev int32) {
	if d := &c.devs[dev]; d.member && len(d.open) == 0 {
		d.reportAt = c.now
		c.tickAway()
	}
}

// tickAway reports the devices that cannot be reached, again and again: the
// metadata manager looks for itself and decides (rule 16).
func (c *Core) tickAway() {
	for i := range c.devs {
		d := &c.devs[i]
		if !d.member || len(d.open) > 0 || d.reportAt == 0 || d.broken != "" {
			continue
		}
		if c.now >= d.reportAt {
			d.reportAt = c.now + reportEvery
			c.emit(Effect{Kind: Report, Device: d.id, Text: "the client has no connection to it",
				FaultSets: c.faultSetsAway(), Attaching: !d.isFenced && !c.gate.holding})
		}
		c.want(d.reportAt)
	}
}

func (c *Core) faultSetsAway() int {
	var away []string
	for i := range c.devs {
		if d := &c.devs[i]; d.member && len(d.open) == 0 && !slices.Contains(away, d.faultSet) {
			away = append(away, d.faultSet)
		}
	}
	return len(away)
}

// Collected reports whether every group is open, and how many chunks are left to
// be resolved.
func (c *Core) Collected() (all bool, suspects int) {
	return c.gate.uncollected == 0 && !c.gate.holding, c.resolver.suspects
}
