// SPDX-License-Identifier: Apache-2.0

package store

// rewriteState writes superblocks and header pages again that a scrub found
// damaged, one at a time.
type rewriteState struct {
	isBusy bool
	super  [2]bool  // copies to write
	header []uint32 // 2 * page + twin
	buf    []byte
	io     IO
}

// judgeSuper compares both superblocks with memory.
func (c *Core) judgeSuper(b []byte) {
	for i, off := range [2]int64{superA, superB} {
		var x superblock
		if x.decode(b[off:off+pageSize]) != nil || x.seq != c.sb.seq {
			c.stats.MetaRot++
			c.rewrite.super[i] = true
		}
	}
}

// judgeLog looks at the pages that recovery would need: r.seq up to r.io.seq were
// durable when the read began. Those before the tail do not matter any more.
func (c *Core) judgeLog(r *Request) {
	first := r.slot * ringPiece
	lo, hi := max(r.seq, c.log.durableTail), r.io.seq
	n := uint64(c.lay.ringPages)
	for k := range uint32(r.io.Len / pageSize) {
		// the one sequence number in [lo, lo+n) that lies here
		seq := lo + (uint64(first+k)+n-lo%n)%n
		if seq >= hi {
			continue
		}
		var p logPage
		if !p.open(r.Data[k*pageSize:(k+1)*pageSize], c.salt, first+k, c.lay.ringPages) || p.seq != seq {
			c.stats.MetaRot++
			c.log.passing++
			c.log.passTo = max(c.log.passTo, seq+1)
		}
	}
}

// judgeHeaders looks at both twins of header pages. Those of a fold that is under
// way are left for the next pass.
func (c *Core) judgeHeaders(r *Request) {
	first := r.slot * headersPiece
	for k := range uint32(r.io.Len / (2 * pageSize)) {
		for t := range uint32(2) {
			seq, ok := openHeaderPage(r.Data[(2*k+t)*pageSize:][:pageSize], c.salt, first+k)
			if ok && seq&1 == uint64(t) || c.fold.stage != foldIdle {
				continue
			}
			c.stats.MetaRot++
			c.rewrite.header = append(c.rewrite.header, 2*(first+k)+t)
		}
	}
}

// pumpRewrite starts the next write. Header pages are written only while no fold
// is: a fold's own images must not be durable before its pages.
func (c *Core) pumpRewrite() {
	w := &c.rewrite
	if w.isBusy || c.stop.stage != stopNone {
		return
	}
	off := int64(-1)
	switch {
	case w.super[0]:
		off, w.super[0] = superA, false
	case w.super[1]:
		off, w.super[1] = superB, false
	case len(w.header) > 0 && c.fold.stage == foldIdle:
	default:
		return
	}
	if w.buf == nil {
		w.buf = alignedBytes(pageSize)
	}
	if off >= 0 {
		c.sb.encode(w.buf)
	} else {
		x := w.header[0]
		w.header = w.header[:copy(w.header, w.header[1:])]
		index, twin := x/2, uint64(x%2)
		if (c.hdrSeq[index]+1)&1 != twin {
			c.hdrSeq[index]++ // the number has to suit the twin
		}
		c.headerImage(w.buf, index)
		off = c.lay.headerAt(index, uint32(twin))
		c.stats.HeaderPages++
	}
	w.isBusy = true
	w.io = IO{Kind: IOWrite, Meta: true, owner: ownRewrite, Off: off, Len: pageSize, Data: w.buf, Shell: w.io.Shell}
	c.startIO(&w.io)
}

// rewriteDone goes on. What could not be written is still damaged, and found
// again by the next pass; its twin serves meanwhile.
func (c *Core) rewriteDone(err error) {
	c.rewrite.isBusy = false
	if err != nil {
		c.stats.Errors++
		return
	}
	c.stats.MetaMended++
}
