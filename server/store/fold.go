// SPDX-License-Identifier: Apache-2.0

package store

import "fmt"

type foldStage uint8

const (
	foldIdle    foldStage = iota
	foldWaits             // for the commit that makes its images' records durable
	foldWriting           // pages are being written
	foldWritten           // waits for a device flush
)

// foldState is the one fold that may be under way.
//
// A fold writes the metadata of the chunks whose records lie furthest back in
// the log to its home, so that the tail can pass them:
//
//  1. images of pages and header pages are made from a state that is in durable
//     records, or in those of the commit being built, for which it then waits.
//     Never from acked but unlogged changes: after a crash those blocks may hold
//     anything, and the page must not call it data.
//  2. each image goes to the older twin; a torn write leaves the other one, and
//     the log still has everything.
//  3. the device flush of some later commit covers the writes;
//  4. only then may a commit carry a tail beyond the records.
type foldState struct {
	stage       foldStage
	wantsCommit bool   // the oldest chunk is dirty: log it first
	minSeq      uint64 // the tail stays at or before it until the fold is durable
	batch       [maxFold]uint32
	n           int
	hdr         [maxFold]uint32 // header pages
	hdrs        int
	pages       []byte // images
	headers     []byte
	ios         []IO
	left        int
	err         error
}

const maxFold = 128 // chunks in a batch

// init sizes the buffers by what a batch can be: a small device needs little.
func (f *foldState) init(slots, headerPages uint32) {
	f.pages = alignedBytes(min(maxFold, int(slots)) * pageSize)
	f.headers = alignedBytes(min(maxFold, int(headerPages)) * pageSize)
	f.ios = make([]IO, 2*maxFold)
	for i := range f.ios {
		f.ios[i] = IO{Kind: IOWrite, Meta: true, owner: ownFold, Len: pageSize}
	}
}

// foldNeeded reports pressure: the ring is half full, pages that cannot be
// evicted fill most of the cache, or the device is idle.
func (c *Core) foldNeeded() bool {
	if c.cache.unfolded == 0 || c.rewrite.isBusy {
		return false
	}
	return c.idle || c.log.durableTail < c.log.passTo || c.log.used() > int(c.lay.ringPages)/2 ||
		c.unfoldable() > c.unfoldedLimit()*3/4 || c.spaceQ.head != nil && !c.roomFor(0)
}

// pumpFold starts a fold between two commits.
func (c *Core) pumpFold() bool {
	if c.fold.stage != foldIdle || c.commit.stage != commitIdle || c.fold.wantsCommit ||
		!c.foldNeeded() {
		return false
	}
	if c.cache.at(c.cache.at(c.cache.log).chain.next).isDirty {
		c.fold.wantsCommit = true
		return true
	}
	return c.selectFold(false)
}

// selectFold takes the oldest unfolded chunks that can be folded now and makes
// their images.
func (c *Core) selectFold(inCommit bool) bool {
	f := &c.fold
	f.n, f.hdrs, f.left, f.err = 0, 0, 0, nil
	f.minSeq = c.tailBound()
	looked := 0
	for i := c.cache.at(c.cache.log).chain.next; i != c.cache.log && f.n < maxFold && looked < 2*maxFold; looked++ {
		p := c.cache.at(i)
		next := p.chain.next
		switch {
		case p.isDirty || p.folding:
		case p.doubted:
			c.wantVerify(c.slots.info[p.slot].al)
		case p.state == pageReady && !p.needsSeq:
			c.cache.unlink(i)
			c.cache.unfolded--
			p.firstSeq = 0
			p.folding = true
			f.batch[f.n] = i
			f.n++
		default:
			c.wantLoad(i)
		}
		i = next
	}
	if f.n == 0 {
		return false
	}
	c.foldImages()
	f.stage = foldWaits
	if !inCommit || c.commit.w.pages == 0 {
		c.writeFold()
	}
	return true
}

func (c *Core) foldImages() {
	f := &c.fold
	for k := range f.n {
		p := c.cache.at(f.batch[k])
		in := &c.slots.info[p.slot]
		in.pageSeq++
		cp := chunkPage{head: c.headerOf(p.slot), slot: p.slot, bits: p.bits}
		p.folded, p.isFolded = cp.head, true
		cp.encode(f.pages[k*pageSize:(k+1)*pageSize], c.salt, &p.sums)
		h := p.slot / headersPerPage
		known := false
		for j := f.hdrs - 1; j >= 0 && !known; j-- {
			known = f.hdr[j] == h
		}
		if !known {
			f.hdr[f.hdrs] = h
			f.hdrs++
		}
	}
	for k := range f.hdrs {
		c.headerImage(f.headers[k*pageSize:(k+1)*pageSize], f.hdr[k])
	}
}

// headerImage makes a header page as it has to be on the disk: chunks with
// changes that are not folded appear as they were before.
func (c *Core) headerImage(b []byte, index uint32) {
	clear(b)
	first := index * headersPerPage
	for k := range min(headersPerPage, c.lay.slots-first) {
		h := c.headerOf(first + k)
		if i := c.slots.info[first+k].page; i != 0 {
			if p := c.cache.at(i); p.isFolded {
				h = p.folded
			}
		}
		h.encode(b[headerSize*(1+k) : headerSize*(2+k)])
	}
	c.hdrSeq[index]++
	sealHeaderPage(b, c.salt, c.hdrSeq[index], index)
}

func (c *Core) writeFold() {
	f := &c.fold
	f.stage = foldWriting
	f.left = f.n + f.hdrs
	for k := range f.n {
		p := c.cache.at(f.batch[k])
		io := &f.ios[k]
		io.Off = c.lay.pageAt(p.slot, p.folded.pageSeq&1)
		io.Data = f.pages[k*pageSize : (k+1)*pageSize]
		c.startIO(io)
	}
	for k := range f.hdrs {
		io := &f.ios[maxFold+k]
		io.Off = c.lay.headerAt(f.hdr[k], uint32(c.hdrSeq[f.hdr[k]]&1))
		io.Data = f.headers[k*pageSize : (k+1)*pageSize]
		c.startIO(io)
	}
	c.stats.FoldPages += uint64(f.n)
	c.stats.HeaderPages += uint64(f.hdrs)
}

func (c *Core) foldIODone(err error) {
	if c.failed != nil {
		return
	}
	f := &c.fold
	if err != nil {
		f.err = err
	}
	f.left--
	if f.left > 0 {
		return
	}
	if f.err != nil {
		c.fail(fmt.Errorf("write of chunk metadata failed: %w", f.err))
		return
	}
	f.stage = foldWritten
}

// foldDone: a device flush covers the fold.
func (c *Core) foldDone() {
	f := &c.fold
	f.stage = foldIdle
	for k := range f.n {
		i := f.batch[k]
		c.cache.at(i).folding = false
		c.settle(i)
	}
	f.n = 0
}
