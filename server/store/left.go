// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"braid/cluster"
)

// Left names what requests have left behind, or is empty. For tests, of a store
// that nobody asks for anything and that has had time for its background work:
// then nothing is pinned or queued, and no region in the activity log, but those
// that stays says may be, of a copy that is not in sync, and those with a
// mark, which the next attach resolves. Nor is a page dirty, but those of chunks that
// may stay: what makes a page clean is the same flush. A poisoned one is none of these: its client
// has seen the new incarnation, and has it resolved.
func (c *Core) Left(stays func(cluster.VolumeID, uint64) bool) string {
	if c.failed != nil {
		return ""
	}
	queue := func(q ...reqQueue) (n int) {
		for _, x := range q {
			if x.head != nil {
				n++
			}
		}
		return n
	}
	pins := 0
	for _, slab := range c.cache.slabs {
		for i := range slab {
			pins += int(slab[i].pins)
		}
	}
	inflight := 0
	for _, v := range c.vols {
		inflight += int(v.inflight[0]+v.inflight[1]) + queue(v.fencing, v.draining)
	}
	for _, x := range []struct {
		what string
		n    int
	}{
		{"requests", c.active},
		{"changes under way", c.writing},
		{"queues", queue(c.flushQ, c.spaceQ, c.cacheQ, c.log.unproven, c.log.unacked, c.log.fences, c.log.drops,
			c.commit.flushers, c.commit.fences, c.commit.drops, c.drops.queue, c.mend.queue, c.mend.wait)},
		{"requests counted by volumes", inflight},
		{"repairs", queue(reqQueue{head: c.mend.req})},
		{"chunks to be verified", len(c.verify.queue)},
		{"dirty pages", c.dirtyLeft(stays)},
		{"bytes of log reserved", c.reserved},
		{"pins of pages", pins},
		{"effects", len(c.effects)},
	} {
		if x.n != 0 {
			return fmt.Sprintf("%d %s", x.n, x.what)
		}
	}
	return c.leftInLog(stays)
}

// dirtyLeft counts the dirty pages of chunks that a flush should have reached.
func (c *Core) dirtyLeft(stays func(cluster.VolumeID, uint64) bool) (n int) {
	for i := c.dirty.head; i != 0; {
		p := c.cache.at(i)
		key := &c.slots.info[p.slot].key
		if !stays(cluster.VolumeID(key.volume), key.chunk) {
			n++
		}
		i = p.next
	}
	return n
}

func (c *Core) leftInLog(stays func(cluster.VolumeID, uint64) bool) string {
	kept := 0
	for i := range c.al.ent {
		e := &c.al.ent[i]
		switch {
		case i == 0 || e.state == alFree:
		case e.marks != 0 && e.marks&MarkPoisoned == 0, stays(volumeOf(e), e.key.chunk):
			kept++
		default:
			return fmt.Sprintf("chunk %d of volume %d in the activity log: tag (%d, %d), marks %v, slot %d, %d changes",
				e.key.chunk, e.key.volume, e.gen, e.interval, e.marks, e.slot, e.inflight)
		}
	}
	if n := len(c.torn) + len(c.doubts); n > kept {
		return fmt.Sprintf("%d chunks in doubt, %d of them torn", n, len(c.torn))
	}
	return ""
}
