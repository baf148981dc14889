// SPDX-License-Identifier: Apache-2.0

package core

import "braid/transport"

// hedgesPerTick bounds how much load slow devices shift to others at once.
const hedgesPerTick = 16

// Tick does what is due. Call it at Deadline, or whenever.
func (c *Core) Tick(now int64) {
	c.now = now
	c.deadline = 0
	if c.lost != nil {
		return
	}
	c.tickDelayed()
	c.tickRoom()
	c.tickAway()
	c.tickHold()
	c.tickReads()
	if c.readsOut > 0 && c.cfg.HedgeAfter > 0 {
		c.hedge()
		if c.readsOut > 0 {
			c.want(now + checkEvery)
		}
	}
	if f := &c.flush; f.since != 0 && c.cfg.FlushEvery > 0 {
		due := f.since + int64(c.cfg.FlushEvery)
		switch {
		case now < due:
			c.want(due)
		case f.step == flushIdle:
			f.since = 0
			c.internalFlush()
		default:
			c.want(now + int64(c.cfg.FlushEvery))
		}
	}
	c.run()
}

// tickDelayed sends what is due again. It starts over after each copy, since
// one may take others out of the list with it.
func (c *Core) tickDelayed() {
	for again := true; again; {
		again = false
		for ref := c.delayed.head; ref != none; ref = c.copies[ref].next {
			if c.copies[ref].at <= c.now {
				c.leaveList(ref)
				c.again(ref)
				again = true
				break
			}
		}
	}
	for ref := c.delayed.head; ref != none; ref = c.copies[ref].next {
		c.want(c.copies[ref].at)
	}
}

// wantCheck makes sure that a read in flight is looked at before long.
func (c *Core) wantCheck() {
	if c.cfg.HedgeAfter > 0 {
		c.want(c.now + checkEvery)
	}
}

// readTook counts how long a device took to answer a read, as TCP counts round
// trips (RFC 6298): a mean, and a mean deviation from it.
func (c *Core) readTook(d int64) {
	if c.readMean == 0 {
		c.readMean, c.readDev = d, d/2
		return
	}
	off := d - c.readMean
	c.readMean += off / 8
	c.readDev += (max(off, -off) - c.readDev) / 4
}

// hedgeAfter is how long a read may take before another replica is asked as well:
// longer than nearly all have taken lately, within bounds.
func (c *Core) hedgeAfter() int64 {
	most := int64(c.cfg.HedgeAfter)
	if c.readMean == 0 {
		return most
	}
	return min(max(c.readMean+8*c.readDev, hedgeLeast), most)
}

// hedge asks a second replica where the first is slow. Whichever answers first
// with good bytes wins.
func (c *Core) hedge() {
	budget, after := hedgesPerTick, c.hedgeAfter()
	for i := range c.frames[:c.frameHigh] {
		f := &c.frames[i]
		if !f.used || f.ended || f.receiving || f.copy == none ||
			f.Header.Op != transport.OpRead || c.now-f.at < after {
			continue
		}
		pi := f.copy / MaxCopies
		if c.pieces[pi].open > 1 {
			continue
		}
		ref := c.addCopy(pi, none)
		dev, _ := c.chooseReplica(pi, ref)
		if dev == none {
			c.removeCopy(ref)
			continue
		}
		c.copies[ref].dev = dev
		c.stats.Hedges++
		c.enqueue(ref)
		if budget--; budget == 0 {
			return
		}
	}
}
