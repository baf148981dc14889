// SPDX-License-Identifier: Apache-2.0

package core

import (
	"slices"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// The resolver makes the in-sync copies of a suspect chunk equal (rules 4, 6, 8,
// 22): what an older session wrote last may have reached some of them only.
//
//			drain --> sums --> read --> write --> stamp --> flush --> open
//			            ^                                    |
//			            +--- the in-sync set, or a device's memory, has changed
//
//		 1. drain: no write to the chunk is under way. At an attach none ever was.
//		 2. sums: each in-sync copy reads its blocks and tells their checksums.
//		 3. read: blocks that differ are read from the source.
//		 4. write: they go to every in-sync copy and the target, the range in one
//		    piece: a flush that comes between has all copies equal, or waits.
//		 5. stamp: a fresh tag everywhere, (generation, interval): the flush that follows
//	    closes that interval, so no later resolve in this generation gives the same
//	    one, and no older copy has it. Only now may a flush let the region leave the
//	    activity logs. A target notes that the chunk is to be copied again (rule 27).
//		 6. flush: a drained one. Requests pass when it has ended: a value that was read
//		    does not vanish.
//
// Jobs have request slots and pieces of their own, so that requests that wait for
// them, however many, do not keep them from getting on.
type resolver struct {
	suspects int      // chunks that are not open yet
	todo     []uint64 // in the background
	urgent   []uint64 // requests wait for these
	jobs     []job    // by request slot, from jobBase on
	ready    []int32
}

func (r *resolver) queued() int { return len(r.todo) + len(r.urgent) }

type jobStage uint8

const (
	jobNone jobStage = iota
	jobDrain
	jobSums
	jobRead
	jobWrite
	jobStamp
	jobFlush
)

// job is a chunk that is being resolved.
type job struct {
	stage   jobStage
	isReady bool
	again   bool // start over as soon as nothing is under way
	chunk   uint64
	group   int32
	n       int
	set     [MaxCopies]int32 // the in-sync devices as they were at the start
	covered uint64           // a flush that closes this interval makes it durable
	tables  [MaxCopies]transport.SumTable
	raw     [MaxCopies][1][]byte
	plan    plan
	donor   int // next one to read from, index in set
	data    []byte
	scratch []byte
	sums    []byte
	views   [MaxCopies][1][]byte
}

// Marks of an activity-log entry, as in the store.
const (
	markSuspect  = 1 << 0
	markTarget   = 1 << 2
	markPoisoned = 1 << 3
)

// startJob begins with the next suspect chunk. It reports whether it did anything.
func (c *Core) startJob() bool {
	r := &c.resolver
	if r.jobs == nil {
		r.jobs = make([]job, maxJobs)
		c.freeJobs = descending(maxJobs)
	}
	if len(c.freeJobs) == 0 {
		return false
	}
	list := &r.todo
	if len(r.urgent) > 0 {
		list = &r.urgent
	}
	chunk := (*list)[0]
	if *list = (*list)[1:]; len(*list) == 0 {
		*list = nil
	}
	st := c.gate.chunks[chunk]
	if st == nil || !st.suspect || st.job != none {
		return true // it was in both lists
	}
	ji := c.freeJobs[len(c.freeJobs)-1]
	c.freeJobs = c.freeJobs[:len(c.freeJobs)-1]
	st.job = ji
	j := &r.jobs[ji]
	j.stage, j.again, j.isReady, j.chunk, j.group = jobDrain, false, false, chunk, c.groupOf(chunk)
	q := &c.reqs[c.jobBase+ji]
	q.open, q.pins, q.issued, q.err = 0, 0, false, nil
	c.gate.drains++
	c.gate.freed = true // looks whether it is drained
	return true
}

// beginJob is the start, also when it has to be made again.
func (c *Core) beginJob(ji int32) {
	j := &c.resolver.jobs[ji]
	g := &c.groups[j.group]
	j.again = false
	j.n = copy(j.set[:], g.inSync())
	if c.gate.inherits && !c.hasSource(g) && !c.cfg.Off.Has(rules.UnbrokenSource) {
		// The last copy that had everything lost its cache since the attach (rule 6).
		// That our own session wrote nothing there does not make it whole.
		c.lose(c.noSource(g))
		return
	}
	if j.n < 2 {
		// Nothing to compare with: what torn blocks hold is adopted by the stamp.
		c.stampJob(ji)
		return
	}
	j.stage = jobSums
	c.reqs[c.jobBase+ji].issued = false
	for k, dev := range j.set[:j.n] {
		if j.raw[k][0] == nil {
			j.raw[k][0] = make([]byte, transport.SumTableSize)
		}
		c.readFrom(ji, dev, transport.OpSums, 0, cluster.ChunkSize, j.raw[k][:])
	}
	c.issued(ji)
}

// issued says that all pieces of a stage have been made.
func (c *Core) issued(ji int32) {
	c.reqs[c.jobBase+ji].issued = true
	c.finishIfIdle(c.jobBase + ji)
}

// jobIdle: nothing of the job is under way, and no transport holds its memory.
func (c *Core) jobIdle(ji int32) {
	j := &c.resolver.jobs[ji]
	if j.stage == jobNone || j.isReady {
		return
	}
	j.isReady = true
	c.reqs[c.jobBase+ji].issued = false
	c.resolver.ready = append(c.resolver.ready, ji)
}

// advanceJob takes one job to its next stage.
func (c *Core) advanceJob() bool {
	r := &c.resolver
	ji := r.ready[0]
	r.ready = slices.Delete(r.ready, 0, 1)
	j := &r.jobs[ji]
	j.isReady = false
	g := &c.groups[j.group]
	if j.again || !slices.Equal(j.set[:j.n], g.inSync()) {
		c.beginJob(ji)
		return true
	}
	switch j.stage {
	case jobSums:
		c.compareJob(ji)
	case jobRead:
		c.haveRead(ji)
	case jobWrite:
		if j.again = j.plan.more; j.again {
			c.beginJob(ji)
		} else {
			c.stampJob(ji)
		}
	case jobStamp:
		c.flushJob(ji)
	case jobFlush:
		c.endJob(ji)
	}
	return true
}

// jobPiece makes a piece of the resolver's.
func (c *Core) jobPiece(ji int32, op transport.Op, off, length uint32) (int32, *piece) {
	j := &c.resolver.jobs[ji]
	pi := c.jobFree[len(c.jobFree)-1]
	c.jobFree = c.jobFree[:len(c.jobFree)-1]
	c.pieceHigh = max(c.pieceHigh, int(pi)+1)
	p := &c.pieces[pi]
	*p = piece{live: true, req: c.jobBase + ji, op: op, chunk: j.chunk, off: off, length: length,
		group: j.group, receiver: none, dev: none}
	c.reqs[p.req].open++
	return pi, p
}

// readFrom asks one device.
func (c *Core) readFrom(ji, dev int32, op transport.Op, off, length uint32, views [][]byte) {
	pi, p := c.jobPiece(ji, op, off, length)
	p.directed, p.dev, p.views = true, dev, views
	c.enqueue(c.addCopy(pi, dev))
}

// directedReply takes the answer to OpSums or OpCopy.
func (c *Core) directedReply(ref int32, h *transport.Header, received bool, sums, text []byte) {
	cp := &c.copies[ref]
	p := c.pieceOf(ref)
	switch {
	case h.Status == transport.StatusStaleEpoch || h.Status == transport.StatusRefused:
		c.emit(Effect{Kind: NeedMap})
		c.retryLater(ref, h.Status)
	case h.Status == transport.StatusRetry:
		c.retryLater(ref, h.Status)
	case h.Status != transport.StatusOK && cp.tries < ioErrorTries:
		c.retryLater(ref, h.Status)
	case h.Status != transport.StatusOK:
		c.enqueue(ref)
		c.breakDevice(cp.dev, "it cannot read what is to be resolved"+reason(text))
	case h.Flags&transport.FlagHole != 0 && p.op == transport.OpCopy:
		clear(p.views[0])
		c.dropPiece(ref / MaxCopies)
	case !received || p.op == transport.OpCopy && !verify(p.views, sums):
		c.stats.BadSums++
		c.retryLater(ref, h.Status)
	default:
		c.dropPiece(ref / MaxCopies)
	}
}

// compareJob has the checksums of all copies.
func (c *Core) compareJob(ji int32) {
	j := &c.resolver.jobs[ji]
	for k := range j.n {
		if err := j.tables[k].Decode(j.raw[k][0]); err != nil {
			c.breakDevice(j.set[k], "its checksum tables make no sense: "+err.Error())
			c.restartJob(ji)
			return
		}
	}
	candidates, ok := c.sources(j)
	if !ok {
		c.lose(c.noSource(&c.groups[j.group]))
		return
	}
	j.plan.make(j.tables[:j.n], candidates)
	if j.plan.runCount == 0 {
		c.stampJob(ji)
		return
	}
	if j.data == nil {
		j.data = make([]byte, cluster.ChunkSize)
		j.scratch = make([]byte, cluster.ChunkSize)
		j.sums = make([]byte, transport.MaxSums*8)
	}
	clear(j.data)
	j.stage, j.donor = jobRead, 0
	c.readDonor(ji)
}

// readDonor reads what the next donor gives, or goes on to the writes.
func (c *Core) readDonor(ji int32) {
	j := &c.resolver.jobs[ji]
	for ; j.donor < j.n; j.donor++ {
		first, end, any := j.plan.given(j.donor)
		if !any {
			continue
		}
		j.views[0][0] = j.scratch[first*cluster.BlockSize : end*cluster.BlockSize]
		c.readFrom(ji, j.set[j.donor], transport.OpCopy, uint32(first*cluster.BlockSize),
			uint32((end-first)*cluster.BlockSize), j.views[0][:])
		c.issued(ji)
		return
	}
	c.writeJob(ji)
}

// haveRead keeps the blocks that the donor was asked for. They must be what it
// told before: nobody writes to the chunk.
func (c *Core) haveRead(ji int32) {
	j := &c.resolver.jobs[ji]
	var sum [8]byte
	first, end, _ := j.plan.given(j.donor)
	for b := first; b < end; b++ {
		if !j.plan.gives(j.donor, b) {
			continue
		}
		at := b * cluster.BlockSize
		block := j.data[at : at+cluster.BlockSize]
		copy(block, j.scratch[at:])
		transport.BlockSums(sum[:], block)
		if !isSum(&j.tables[j.donor], b, sum[:]) {
			c.beginJob(ji)
			return
		}
	}
	j.donor++
	c.readDonor(ji)
}

// writeJob writes the runs of differing blocks to every copy, all at once: they
// are of one interval, so that no flush falls between them (rule 1).
func (c *Core) writeJob(ji int32) {
	j := &c.resolver.jobs[ji]
	j.stage = jobWrite
	transport.BlockSums(j.sums, j.data)
	for k := range j.plan.runCount {
		r := &j.plan.runs[k]
		off, end := r.first*cluster.BlockSize, r.end*cluster.BlockSize
		op := transport.OpWrite
		if r.isHole {
			op = transport.OpTrim
		}
		pi, p := c.jobPiece(ji, op, uint32(off), uint32(end-off))
		if op == transport.OpWrite {
			j.views[k][0] = j.data[off:end]
			p.views, p.sums = j.views[k][:], j.sums[8*r.first:8*r.end]
		}
		c.launch(pi)
	}
	c.issued(ji)
}

// stampJob gives the chunk a tag that no copy ever had (rule 4).
func (c *Core) stampJob(ji int32) {
	j := &c.resolver.jobs[ji]
	j.stage = jobStamp
	if c.cfg.Off.Has(rules.Stamp) {
		c.flushJob(ji)
		return
	}
	pi, _ := c.jobPiece(ji, transport.OpStamp, 0, cluster.ChunkSize)
	c.launch(pi)
	c.issued(ji)
}

// flushJob waits for a drained flush. Jobs that come meanwhile share the next.
func (c *Core) flushJob(ji int32) {
	j := &c.resolver.jobs[ji]
	j.stage, j.covered = jobFlush, c.interval
	if c.flush.step == flushIdle && !c.unflushed() {
		c.jobIdle(ji)
		return
	}
	c.internalFlush()
}

// jobsFlushed is called at the end of a flush that closed the interval.
func (c *Core) jobsFlushed(interval uint64) {
	for i := range c.resolver.jobs {
		switch j := &c.resolver.jobs[i]; {
		case j.stage != jobFlush || j.isReady:
		case j.covered <= interval:
			c.jobIdle(int32(i))
		default:
			c.flush.again = true
		}
	}
}

// endJob opens the chunk.
func (c *Core) endJob(ji int32) {
	r := &c.resolver
	j := &r.jobs[ji]
	chunk := j.chunk
	j.stage = jobNone
	c.freeJobs = append(c.freeJobs, ji)
	st := c.gate.chunks[chunk]
	st.suspect, st.queued, st.job, st.listed = false, false, none, 0
	r.suspects--
	if r.suspects == 0 {
		r.jobs, c.freeJobs = nil, nil // and with them the memory
	}
	c.openChunk(chunk)
	if r.suspects == 0 && c.gate.uncollected == 0 {
		c.resolvedAll()
	}
}

// restartJob gives up what a job is doing, and starts over.
func (c *Core) restartJob(ji int32) {
	j := &c.resolver.jobs[ji]
	if j.stage == jobNone || j.stage == jobDrain {
		return
	}
	j.again = true
	q := &c.reqs[c.jobBase+ji]
	q.issued = false
	for i := range c.pieces[c.jobPieces:max(c.pieceHigh, int(c.jobPieces))] {
		// Writes go on: what they change is compared again.
		if p := &c.pieces[int(c.jobPieces)+i]; p.live && p.req == c.jobBase+ji && p.directed {
			c.dropPiece(c.jobPieces + int32(i))
		}
	}
	c.issued(ji)
}

// adoptJobs has jobs follow a map. Their writes do so as all writes do; who is
// asked, and who may be the source, is found anew.
func (c *Core) adoptJobs() {
	for i := range c.resolver.jobs {
		j := &c.resolver.jobs[i]
		if j.stage == jobNone {
			continue
		}
		j.group = c.groupOf(j.chunk)
		if (j.stage == jobSums || j.stage == jobRead || j.stage == jobFlush) &&
			!slices.Equal(j.set[:j.n], c.groups[j.group].inSync()) {
			c.restartJob(int32(i))
		}
	}
}

// forgetful is for a device that has come back in another incarnation, without
// having lost an acknowledged write. What the resolver did on it may be lost; its
// activity log names what may be torn, or what nobody would ever take out of it.
func (c *Core) forgetful(dev int32) {
	for i := range c.resolver.jobs {
		if j := &c.resolver.jobs[i]; slices.Contains(j.set[:j.n], dev) {
			c.restartJob(int32(i))
		}
	}
	// It may have told its log before, or have come in sync since the attach, by a copy.
	c.devs[dev].relists = true
	c.collect(dev)
}

// hasSource reports whether some in-sync copy still holds everything that was
// acknowledged, or may yet turn out to.
func (c *Core) hasSource(g *group) bool {
	return slices.ContainsFunc(g.inSync(), func(dev int32) bool { return c.isUnbroken(g, dev) })
}

func (c *Core) isUnbroken(g *group, dev int32) bool {
	d := &c.devs[dev]
	return d.incKnown && d.broken == "" && c.cfg.Before.Source != nil &&
		c.cfg.Before.Source(g.id, d.id, d.inc)
}

// sources are the copies that may decide what a chunk holds, as indexes in the
// job's set, the best first (rule 6): those that have kept what they acknowledged
// to the session before. A fresh attach goes on without one: any in-sync copy
// holds what was flushed; one that is marked as the target of a copy, and was
// half-way, is the last resort (rule 20).
func (c *Core) sources(j *job) (list []int, ok bool) {
	g := &c.groups[j.group]
	if c.cfg.Off.Has(rules.UnbrokenSource) {
		return []int{j.n - 1}, true
	}
	for k, dev := range j.set[:j.n] {
		if c.isUnbroken(g, dev) && j.tables[k].Marks&markTarget == 0 {
			list = append(list, k)
		}
	}
	if len(list) > 0 {
		return list, true
	}
	if c.gate.inherits {
		return nil, false
	}
	for k := range j.n {
		if j.tables[k].Marks&markTarget == 0 && c.devs[j.set[k]].broken == "" {
			list = append(list, k)
		}
	}
	if len(list) == 0 {
		for k := range j.n {
			list = append(list, k)
		}
	}
	return list, true
}
