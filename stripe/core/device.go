// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"

	"braid/cluster"
	"braid/cluster/rules"
)

// device is what the client knows of one device of the cluster. The incarnation
// that counts is bound to the links that are open: replies under another one
// close them (rule 5).
type device struct {
	id        cluster.DeviceID
	server    string
	addr      string
	local     bool
	faultSet  string
	inSync    bool // some group of the volume's set counts on it
	wasInSync bool
	member    bool // or is bringing it into sync
	open      []int32
	turn      uint32 // which link is next
	inFlight  int32  // frames
	queue     copyList
	awaySince int64 // 0: reachable

	inc      cluster.Incarnation
	incKnown bool
	mapInc   cluster.Incarnation
	renew    bool   // the newest map has brought an incarnation that no connection told of
	broken   string // why its copies are not to be trusted; empty: they are

	unflushed span // intervals of the writes that it acked and has not flushed
	resolved  span // and of the resolver's, which nobody else has seen

	isFenced     bool   // it has been opened under our generation
	mustBeFenced bool   // before the first request, or the old session's lease runs out
	isListed     bool   // it has told all of its activity log
	relists      bool   // and does so again, after it lost its memory
	cursor       uint64 // of its list
	meter        *deviceMeter
	confirmed    int64 // rule 15: when the newest request that it answered well was sent
	reportAt     int64 // when it is to be reported; 0: never

	roomless  int   // pieces that wait for room on it
	roomAt    int64 // when the next of them asks again
	roomPause int64
	fullSince int64 // writes wait for room on it, with gaps of less than roomLinger
	fullUntil int64 // when one did so last
}

// span is a range of intervals; first is 0 when it is empty.
type span struct{ first, last uint64 }

func (s *span) add(interval uint64) {
	if s.first == 0 || interval < s.first {
		s.first = interval
	}
	s.last = max(s.last, interval)
}

func (s *span) flushed(interval uint64) {
	if s.last <= interval {
		*s = span{}
	} else if s.first <= interval {
		s.first = interval + 1
	}
}

// touches reports whether some interval up to this one is in the span.
func (s *span) touches(interval uint64) bool { return s.first != 0 && s.first <= interval }

func (d *device) reachable() bool { return len(d.open) > 0 && d.broken == "" }

func (d *device) flushed(interval uint64) {
	d.unflushed.flushed(interval)
	d.resolved.flushed(interval)
}

// needsFlush reports whether a flush of the interval has to go to the device:
// only where something was written since its last one.
func (d *device) needsFlush(interval uint64) bool {
	return d.member && (d.unflushed.touches(interval) || d.resolved.touches(interval))
}

// link is one connection on which the volume's session is open.
type link struct {
	state   linkState
	dev     int32
	session uint32
	inc     cluster.Incarnation
}

type linkState uint8

const (
	linkFree    linkState = iota
	linkOpen              // frames may be sent
	linkClosing           // CloseLink was emitted; LinkClosed comes
)

// LinkUp says that the session is open on a new connection to a device, under
// an incarnation. It returns the link's number, or -1 when the device is not
// wanted (unknown, a member of no group, or its copies are broken): the caller
// closes the connection and may try again while Wanted names it. A device that
// only had to be fenced is done with by then.
func (c *Core) LinkUp(now int64, id cluster.DeviceID, session uint32, inc cluster.Incarnation) int32 {
	c.now = now
	dev, known := c.devIndex[id]
	if !known || c.lost != nil {
		return none
	}
	d := &c.devs[dev]
	d.isFenced = true
	c.checkFenced()
	if !d.member {
		c.run()
		return none
	}
	if d.broken == "" && d.incKnown && d.inc != inc {
		c.newIncarnation(dev, inc)
	}
	if d.broken != "" {
		c.run()
		return none
	}
	d.inc, d.incKnown = inc, true
	l := c.freeLink()
	c.links[l] = link{state: linkOpen, dev: dev, session: session, inc: inc}
	d.open = append(d.open, l)
	d.awaySince, d.reportAt = 0, 0
	d.cursor = 0
	c.pump(dev)
	c.routeOrphans()
	c.run()
	return l
}

func (c *Core) freeLink() int32 {
	for i := range c.links {
		if c.links[i].state == linkFree {
			return int32(i)
		}
	}
	c.links = append(c.links, link{})
	return int32(len(c.links) - 1)
}

// closeLink stops using a link. Its frames end when the transport has let go of
// it (LinkClosed): until then replies may still be on their way into buffers.
func (c *Core) closeLink(l int32, why string) {
	k := &c.links[l]
	if k.state != linkOpen {
		return
	}
	k.state = linkClosing
	c.forgetLink(l)
	c.voidLocks(l)
	c.emit(Effect{Kind: CloseLink, Link: l, Text: why})
}

func (c *Core) closeLinks(dev int32, why string) {
	for len(c.devs[dev].open) > 0 {
		c.closeLink(c.devs[dev].open[0], why)
	}
}

func (c *Core) forgetLink(l int32) {
	d := &c.devs[c.links[l].dev]
	for i, o := range d.open {
		if o == l {
			d.open = append(d.open[:i], d.open[i+1:]...)
			break
		}
	}
	if len(d.open) == 0 && d.awaySince == 0 {
		d.awaySince = max(c.now, 1)
	}
}

// LinkClosed says that a connection has ended and touches no memory any more.
// What was in flight on it is sent again: whether it was applied is unknown.
func (c *Core) LinkClosed(now int64, l int32) {
	c.now = now
	dev := c.links[l].dev
	if c.links[l].state == linkOpen {
		c.forgetLink(l)
		c.voidLocks(l)
		c.away(dev)
	}
	c.links[l].state = linkFree
	for i := range c.frames[:c.frameHigh] {
		f := &c.frames[i]
		if f.used && !f.ended && f.link == l {
			c.loseFrame(int32(i))
		}
	}
	if len(c.devs[dev].open) == 0 {
		c.rerouteReads(dev)
	}
	c.run()
}

func (c *Core) loseFrame(fi int32) {
	f := &c.frames[fi]
	c.endReceive(f, fi)
	ref := f.copy
	f.copy = none
	c.endFrame(fi)
	if ref == none {
		return
	}
	cp := &c.copies[ref]
	cp.frame = none
	c.waits(cp)
	p := c.pieceOf(ref)
	switch {
	case p == nil && c.kindOf(ref) == confirmCopy:
		cp.kind = copyNone
		return
	case p == nil || p.isWrite():
		cp.lost = true
		c.enqueue(ref)
		return
	}
	c.reroute(ref)
}

// reroute finds another replica for a read's copy that is in no list.
func (c *Core) reroute(ref int32) {
	cp := &c.copies[ref]
	cp.kind, cp.dev, cp.unwanted = copyLoose, none, false
	c.route(ref)
}

// rerouteReads moves the reads that wait for a device that went away.
func (c *Core) rerouteReads(dev int32) {
	for ref := c.devs[dev].queue.head; ref != none; {
		next := c.copies[ref].next
		if p := c.pieceOf(ref); p != nil && !p.isWrite() && !p.directed {
			c.leaveList(ref)
			c.reroute(ref)
		}
		ref = next
	}
}

// routeOrphans looks again for replicas of reads that found none.
func (c *Core) routeOrphans() {
	for n := c.orphans.n; n > 0 && c.orphans.head != none; n-- {
		ref := c.orphans.head
		c.unlink(&c.orphans, ref)
		c.reroute(ref)
	}
}

// newIncarnation handles a device that came back with another write verifier
// (rule 5). Where it holds acked writes that no flush covered, these may be
// gone: its copies are broken. Otherwise it is accepted, and what it acked of
// writes that are not complete is sent again, since we still have the bytes.
func (c *Core) newIncarnation(dev int32, inc cluster.Incarnation) {
	d := &c.devs[dev]
	// What a mere target acked is mdm's business: it ends the attempt.
	if d.unflushed.first != 0 && d.inSync && !c.cfg.Off.Has(rules.Verifier) {
		c.breakDevice(dev, fmt.Sprintf("it came back without its cache (incarnation %d, was %d) "+
			"while acknowledged writes were not flushed", inc, d.inc))
		return
	}
	c.closeLinks(dev, "the device has a new incarnation")
	d.inc, d.confirmed = inc, 0
	d.unflushed, d.resolved = span{}, span{}
	c.forgetful(dev)
	for pi := range c.pieces[:c.pieceHigh] {
		p := &c.pieces[pi]
		if !p.live || !p.isWrite() {
			continue
		}
		first := int32(pi) * MaxCopies
		for ref := first; ref < first+MaxCopies; ref++ {
			if cp := &c.copies[ref]; cp.kind == copyDone && cp.dev == dev {
				p.open++
				c.enqueue(ref)
			}
		}
	}
}

// breakDevice stops trusting a device's copies. Nothing completes without it
// until the metadata manager has taken it out of the in-sync sets (rule 16).
func (c *Core) breakDevice(dev int32, why string) {
	d := &c.devs[dev]
	if d.broken != "" {
		return
	}
	d.broken = why
	c.closeLinks(dev, why)
	c.rerouteReads(dev)
	c.emit(Effect{Kind: DropReplica, Device: d.id, Text: why})
	if c.cfg.Off.Has(rules.StaleFirst) {
		c.goOnWithout(dev)
	}
}

// goOnWithout is what rule 16 forbids.
func (c *Core) goOnWithout(dev int32) {
	for i := range c.pieces[:c.pieceHigh] {
		for ref := int32(i) * MaxCopies; ref < int32(i+1)*MaxCopies && c.pieces[i].live; ref++ {
			cp := &c.copies[ref]
			if !c.pieces[i].isWrite() || cp.dev != dev || cp.kind == copyNone || cp.kind == copyDone {
				continue
			}
			if c.removeCopy(ref); c.pieces[i].open == 0 {
				c.writeDone(int32(i))
			}
		}
	}
	c.dropFlush(dev)
}

// Dropped is the metadata manager's answer to DropReplica. last names the groups
// of the volume in which the device is the only in-sync copy: then acked writes
// are lost, and the volume must fail rather than carry on.
func (c *Core) Dropped(now int64, id cluster.DeviceID, last []cluster.PGID) {
	c.now = now
	dev, known := c.devIndex[id]
	if !known || len(last) == 0 {
		return
	}
	d := &c.devs[dev]
	c.lose(fmt.Errorf("volume %s: device %d of server %s (%s) held the last in-sync copy of %d "+
		"placement groups, and %s; detach, check the file system, attach again: %w",
		c.cfg.Volume.Name, d.id, d.server, d.addr, len(last), d.broken, ErrBroken))
}
