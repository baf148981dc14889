// SPDX-License-Identifier: Apache-2.0

package core

import (
	"braid/cluster/rules"
	"braid/transport"
	"braid/transport/bio"
)

// flushStep is how far the running flush is.
type flushStep uint8

const (
	flushIdle     flushStep = iota
	flushDraining           // waits for writes of its interval and older ones
	flushSending            // waits for devices
)

// flushState is the drained flush (rule 1). One runs at a time; those that come
// meanwhile share the next one. A flush closes the current interval: writes that
// are issued from then on belong to the next and flow on.
type flushState struct {
	step     flushStep
	interval uint64 // that the running flush closes
	old      int    // outstanding writes' pieces of intervals that are closed
	fresh    int    // and of the current one
	open     int    // devices that have not answered
	active   reqQueue
	next     reqQueue
	late     reqQueue // of a guest that went on: wait until all is resolved
	through  uint64   // every write up to this interval is flushed
	version  uint64   // of the map under which the running flush was sent
	again    bool     // pressure or the timer wants one more
	bytes    uint64   // written since the last flush began
	since    int64    // when the first of them completed; 0: none
	ended    int64    // when the last flush ended
}

// submitFlush starts a flush or joins the next one. Where nothing completed is
// unflushed there is nothing to do: writes under way need not be covered.
func (c *Core) submitFlush(r *bio.Request) {
	switch {
	case c.gate.inherits && c.gate.uncollected+c.resolver.suspects > 0:
		// It covers what the old session acknowledged, too, and that is durable
		// everywhere only when it is resolved.
		c.flush.late.push(r)
	case c.flush.step != flushIdle:
		c.flush.next.push(r)
	case !c.unflushed():
		c.completeNow(r, nil)
	default:
		c.flush.active.push(r)
		c.startFlush()
	}
}

func (c *Core) unflushed() bool {
	for i := range c.devs {
		if c.devs[i].needsFlush(^uint64(0)) {
			return true
		}
	}
	return false
}

func (c *Core) startFlush() {
	f := &c.flush
	f.step = flushDraining
	f.interval = c.interval
	c.interval++
	f.old, f.fresh = f.fresh, 0
	f.bytes, f.since, f.again = 0, 0, false
	c.checkDrained()
}

// drained counts a write's piece of an interval as complete everywhere.
func (c *Core) drained(interval uint64) {
	if interval == c.interval {
		c.flush.fresh--
		return
	}
	c.flush.old--
	c.checkDrained()
}

// caughtUp moves a piece that was issued again from the closed interval to the
// current one.
func (c *Core) caughtUp() {
	c.flush.old--
	c.flush.fresh++
	c.checkDrained()
}

// checkDrained sends the flush when no write of its interval or an older one is
// outstanding on any in-sync replica (rule 1).
func (c *Core) checkDrained() {
	f := &c.flush
	if f.step != flushDraining || f.old > 0 && !c.cfg.Off.Has(rules.DrainedFlush) {
		return
	}
	f.step, f.version = flushSending, c.version
	c.stats.Flushes++
	f.open = 1 // held until all are sent
	for i := range c.devs {
		if c.devs[i].needsFlush(f.interval) {
			f.open++
			c.enqueue(c.freshCopy(c.flushRef(int32(i)), int32(i)))
		}
	}
	c.flushAnswered()
}

func (c *Core) flushAnswered() {
	f := &c.flush
	if f.open--; f.open > 0 {
		return
	}
	f.step, f.ended, f.through = flushIdle, c.now, max(f.through, f.interval)
	c.pressure = 0
	c.granted = append(c.granted, c.held...)
	c.held = c.held[:0]
	c.jobsFlushed(f.interval)
	for f.active.n > 0 {
		c.completeNow(f.active.pop(), nil)
	}
	if f.next.n == 0 && !f.again {
		return
	}
	f.active, f.next = f.next, reqQueue{}
	if !c.unflushed() {
		f.again = false
		c.jobsFlushed(c.interval)
		for f.active.n > 0 {
			c.completeNow(f.active.pop(), nil)
		}
		return
	}
	c.startFlush()
}

// resolvedAll lets the flushes go on that waited for the old session's writes. From
// here on a resumed session is like any other: what a copy may lose is its own.
func (c *Core) resolvedAll() {
	c.gate.inherits = false
	for n := c.flush.late.n; n > 0; n-- {
		c.submitFlush(c.flush.late.pop())
	}
}

// dropFlush stops waiting for a device that left.
func (c *Core) dropFlush(dev int32) {
	ref := c.flushRef(dev)
	if c.copies[ref].kind != copyNone {
		c.removeCopy(ref)
		c.flushAnswered()
	}
}

func (c *Core) flushReply(ref int32, h *transport.Header, text []byte) {
	cp := &c.copies[ref]
	switch h.Status {
	case transport.StatusOK:
		c.devs[cp.dev].flushed(c.flush.interval)
		cp.kind = copyNone
		c.flushAnswered()
	case transport.StatusRetry, transport.StatusStaleEpoch, transport.StatusRefused:
		c.retryLater(ref, h.Status)
	default:
		// Rule 19: a failed flush is never retried; what the device acked is gone.
		dev := cp.dev
		c.breakDevice(dev, "it failed a flush"+reason(text))
		c.enqueue(ref)
	}
}

// failFlushes ends all flush requests when the volume is lost.
func (c *Core) failFlushes(err error) {
	f := &c.flush
	for i := range c.devs {
		if ref := c.flushRef(int32(i)); c.copies[ref].kind != copyNone {
			c.removeCopy(ref)
		}
	}
	f.step = flushIdle
	for f.active.n > 0 {
		c.completeNow(f.active.pop(), err)
	}
	for f.next.n > 0 {
		c.completeNow(f.next.pop(), err)
	}
	for f.late.n > 0 {
		c.completeNow(f.late.pop(), err)
	}
}

// mustHold reports whether new writes wait for the running flush: activity logs
// are nearly full, and only that flush can make room (rule 18).
func (c *Core) mustHold() bool {
	return c.flush.step != flushIdle && c.pressure >= pressureHold
}

// pressed takes note of a device's activity-log pressure.
func (c *Core) pressed(pressure uint32) {
	// While no flush runs, a full log asks for one with every answer: at the first
	// one nothing may have completed yet that a flush could cover.
	if pressure <= c.pressure && (pressure < pressureHold || c.flush.step != flushIdle) {
		return
	}
	c.pressure = pressure
	if pressure < pressureFlush {
		return
	}
	// Servers retire lazily; right after a flush the pressure says little.
	if pressure >= pressureHold || c.now-c.flush.ended > checkEvery {
		c.internalFlush()
	}
}

// internalFlush flushes without a request (rule 18).
func (c *Core) internalFlush() {
	switch {
	case c.flush.step != flushIdle:
		c.flush.again = true
	case c.unflushed():
		c.startFlush()
	}
}

// wantFlushTimer makes sure that what completed is flushed before long.
func (c *Core) wantFlushTimer() {
	f := &c.flush
	if f.since == 0 {
		f.since = max(c.now, 1)
		if c.cfg.FlushEvery > 0 {
			c.want(f.since + int64(c.cfg.FlushEvery))
		}
	}
	if f.bytes >= c.cfg.FlushBytes && f.step == flushIdle {
		c.internalFlush()
	}
}
