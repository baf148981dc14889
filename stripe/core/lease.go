// SPDX-License-Identifier: Apache-2.0

package core

import (
	"braid/cluster/rules"
)

// readLease is rule 15. A reply from a device confirms that our generation was
// the newest there when its request was sent. A read counts only if every device
// that may have to fence us, each in-sync one and the target, has confirmed it
// within the lease before the read's data arrived: a client that replaces us has
// fenced them all, or has waited for that long.
//
// The metadata manager is not needed for it. What is held waits for
// confirmations, which the core asks for, or for a map that wants fewer.
type readLease struct {
	held copyList
}

// confirm notes an answer to a request that was sent at that time.
func (c *Core) confirm(dev int32, sent int64) {
	d := &c.devs[dev]
	if sent <= d.confirmed {
		return
	}
	d.confirmed = sent
	if c.reads.held.n > 0 {
		c.releaseReads()
	}
}

// isLive reports whether data of the group that arrived at that time counts.
func (c *Core) isLive(g *group, arrived int64) bool {
	if arrived < g.freshUntil || c.cfg.Lease < 0 || c.cfg.Off.Has(rules.ZombieReads) {
		return true
	}
	oldest := c.now
	for _, d := range g.writeSet() {
		oldest = min(oldest, c.devs[d].confirmed)
	}
	g.freshUntil = oldest + int64(c.cfg.Lease)
	return arrived < g.freshUntil
}

// readGood ends a read whose data is there and matches, or holds it.
func (c *Core) readGood(ref int32) {
	pi := ref / MaxCopies
	p := &c.pieces[pi]
	g := &c.groups[p.group]
	if c.isLive(g, c.now) {
		c.readDone(pi, nil)
		return
	}
	cp := &c.copies[ref]
	cp.kind, cp.at = copyHeld, c.now
	p.receiver = heldReceiver
	c.waits(cp)
	c.push(&c.reads.held, ref)
	g.askAt = 0
	c.askConfirm(g, none)
	c.want(c.now + confirmEvery)
}

// heldReceiver, as a piece's receiver, keeps the other copy of a hedged read from
// writing over data that is held.
const heldReceiver = int32(-2)

// unhold is for a copy that is held, and whose data is not wanted any more.
func (p *piece) unhold(cp *copyState) {
	if cp.kind == copyHeld {
		p.receiver = none
	}
}

// releaseReads completes the reads that were held and count by now.
func (c *Core) releaseReads() {
	for ref := c.reads.held.head; ref != none; {
		next := c.copies[ref].next
		pi := ref / MaxCopies
		if c.isLive(&c.groups[c.pieces[pi].group], c.copies[ref].at) {
			c.readDone(pi, nil)
		}
		ref = next
	}
}

// askConfirm asks those of a group's devices for a confirmation whose last one is
// getting old, but for one that is asked something else.
func (c *Core) askConfirm(g *group, except int32) {
	half := int64(c.cfg.Lease) / 2
	if c.cfg.Lease < 0 {
		half = 1 << 60
	}
	g.askAt = c.now + half/4
	for _, dev := range g.writeSet() {
		d := &c.devs[dev]
		ref := c.confirmRef(dev)
		if dev == except || d.confirmed+half > c.now || !d.reachable() ||
			c.copies[ref].kind != copyNone {
			continue
		}
		c.enqueue(c.freshCopy(ref, dev))
	}
}

// tickReads asks again for what the held reads wait for.
func (c *Core) tickReads() {
	if c.reads.held.n == 0 {
		return
	}
	c.releaseReads()
	for ref := c.reads.held.head; ref != none; ref = c.copies[ref].next {
		c.askConfirm(&c.groups[c.pieceOf(ref).group], none)
	}
	c.want(c.now + confirmEvery)
}
