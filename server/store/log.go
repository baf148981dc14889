// SPDX-License-Identifier: Apache-2.0

package store

import (
	"braid/cluster/rules"
	"braid/transport"
)

// logState is the ring as memory sees it. Sequence numbers count pages.
type logState struct {
	next        uint64   // of the next page
	tail        uint64   // newest one put into a commit
	durableTail uint64   // newest one that is durable: what lies before may be overwritten
	groupMax    int      // pages a commit may take
	reserve     int      // pages that logging the activity log and all fences again takes
	durable     uint64   // first page of the newest group that is durable
	wantsProof  bool     // a group has to be written, be it empty
	unproven    reqQueue // writes that wait for it
	unacked     reqQueue // flushes and FUA that wait for it
	isOpen      bool     // the newest group's acks wait for it
	passTo      uint64   // the tail has to get here soon: a page before it is damaged
	passing     uint64   // how many are
	noted       []*volume
	dropped     []*volume
	fences      reqQueue // wait for a commit that notes their volume
	drops       reqQueue
}

// A commit takes at most 1/groupDivisor of the ring, within these bounds.
const (
	groupDivisor  = 8
	minGroupPages = 16
	maxGroupPages = 256
	maxVolumes    = 4096 // the fences of so many always fit beside the activity log
	idleTailPages = 8    // an idle device advances its tail by no less
)

func (l *logState) init(ringPages uint32, alSlots int) {
	l.groupMax = min(max(int(ringPages)/groupDivisor, minGroupPages), maxGroupPages)
	l.reserveFor(ringPages, alSlots*alOverflow)
}

func (l *logState) reserveFor(ringPages uint32, entries int) {
	const perPage = logPayload / shortRecord
	l.reserve = min(entries/perPage+maxVolumes/perPage+4, int(ringPages)/4)
}

func (l *logState) used() int { return int(l.next - l.durableTail) }

func (c *Core) ringFree() int { return int(c.lay.ringPages) - c.log.used() }

// softDirty bytes of records call for a commit by the device itself; hardDirty
// is what one commit takes for sure, the rest of it is for other records and for
// what does not fill its page.
func (l *logState) softDirty() int { return l.groupMax * logPayload / 2 }
func (l *logState) hardDirty() int { return l.groupMax * logPayload * 3 / 4 }

// roomFor reserves (rule 18): a change is admitted only if the record that a
// flush will need for it fits into one commit with all others, and the ring
// holds that commit and the one after it.
func (c *Core) roomFor(cost int) bool {
	return c.dirtyCost+c.reserved+cost <= c.log.hardDirty() &&
		c.ringFree() >= 2*c.log.groupMax+c.log.reserve
}

// unfoldable counts pages that are or may become pinned until they are folded.
func (c *Core) unfoldable() int { return c.cache.unfolded + c.dirty.count + c.writing + c.fold.n }

func (c *Core) unfoldedLimit() int { return c.cache.limit * 3 / 4 }

// isRingLow reports that commits have to wait for the tail, unless they help it.
func (c *Core) isRingLow() bool { return c.ringFree() < c.log.groupMax+c.log.reserve+1 }

// tailBound is the oldest group that recovery still needs for chunks.
func (c *Core) tailBound() uint64 {
	bound := c.log.next
	if i := c.cache.at(c.cache.log).chain.next; i != c.cache.log {
		bound = min(bound, c.cache.at(i).firstSeq)
	}
	if c.fold.stage != foldIdle {
		bound = min(bound, c.fold.minSeq)
	}
	return bound
}

// wantsTail reports whether advancing the tail deserves a commit of its own.
func (c *Core) wantsTail() bool {
	gain := int64(c.tailBound()) - int64(c.log.tail)
	ring := int(c.lay.ringPages)
	switch {
	case gain <= 0:
		return false
	case c.log.tail < c.log.passTo:
		return true
	case c.isRingLow() || c.spaceQ.head != nil && !c.roomFor(0):
		return true
	case c.log.used() > ring/2:
		return gain >= int64(ring/16)
	}
	return c.idle && gain > idleTailPages && c.cache.unfolded == 0 && c.fold.stage == foldIdle
}

// groupWriter fills the pages of one commit with records.
type groupWriter struct {
	buf   []byte
	used  [maxGroupPages]uint16
	pages int
	max   int
}

func (w *groupWriter) reset(limit int) { w.pages, w.max = 0, limit }

// left is what the current page still takes.
func (w *groupWriter) left() int {
	if w.pages == 0 {
		return 0
	}
	return logPayload - int(w.used[w.pages-1])
}

// room returns space for a record of n bytes, or nil when the commit is full.
// take counts it.
func (w *groupWriter) room(n int) []byte {
	if w.left() < n {
		if w.pages >= w.max {
			return nil
		}
		w.used[w.pages] = 0
		w.pages++
	}
	p := w.pages - 1
	o := p*pageSize + logHeader + int(w.used[p])
	return w.buf[o : (p+1)*pageSize]
}

func (w *groupWriter) take(n int) { w.used[w.pages-1] += uint16(n) }

func (w *groupWriter) short(kind recordKind, flags uint8, key chunkKey) bool {
	b := w.room(shortRecord)
	if b == nil {
		return false
	}
	putShort(b, kind, flags, key)
	w.take(shortRecord)
	return true
}

// Pieces of a chunk record smaller than this are not worth a split.
const minPiece = 32

// chunk writes the record of a page, in pieces where it does not fit. It leaves
// no trace in the page itself. It reports false when the commit has no room.
func (w *groupWriter) chunk(r *record, sums *[blocks]uint64) bool {
	all := r.mask
	n := all.count()
	need := (chunkRecord + 8*n + logPayload - 1) / logPayload
	if w.pages+need+1 > w.max && w.left() < chunkRecord+8*n {
		return false
	}
	for first := true; first || n > 0; first = false {
		if w.left() < chunkRecord+8*min(n, minPiece) {
			if w.room(logPayload) == nil {
				panic("store: a record was started that does not fit")
			}
		}
		k := min(n, (w.left()-chunkRecord)/8)
		r.mask = all.firstN(k)
		w.take(putChunk(w.room(chunkRecord+8*k), r, sums))
		all.without(r.mask)
		n -= k
		r.flags &^= chunkFresh
	}
	return true
}

// firstN returns the n lowest bits of m.
func (m bitmap) firstN(n int) (r bitmap) {
	for w := range m {
		for x := m[w]; x != 0 && n > 0; x &= x - 1 {
			r[w] |= x & -x
			n--
		}
	}
	return r
}

// retire takes up to limit entries off the activity log, least recently used
// first (rules 1 and 3): no change in flight, the last one licensed by a drained
// flush, everything of the chunk durable, no mark. What is left behind in front
// is moved to the end, so that the next call does not look at it again.
func (c *Core) retire(limit int) (removed int) {
	t := &c.al
	for looked := 0; looked < 2*limit && removed < limit && len(t.removed) < cap(t.removed); looked++ {
		e := t.ent[0].lru.next
		if e == 0 || looked >= t.count+removed {
			break
		}
		if !c.retireable(e) {
			t.lruUnlink(e)
			t.lruPush(e)
			continue
		}
		ent := &t.ent[e]
		t.removed = append(t.removed, alRemoval{ent.key})
		if ent.slot != 0 {
			c.slots.info[ent.slot-1].al = 0
		}
		t.drop(e)
		c.stats.ALRemoves++
		removed++
	}
	return removed
}

// hasEntry reports whether a region can enter the activity log, after retiring
// what may go.
func (c *Core) hasEntry() bool {
	if len(c.al.free) > 0 || c.retire(c.al.slots/8+1) > 0 {
		return true
	}
	if c.al.count-c.al.marked >= c.mostRegions() {
		return false
	}
	c.al.grow()
	c.log.reserveFor(c.lay.ringPages, len(c.al.ent))
	return true
}

func (c *Core) retireable(e uint32) bool {
	ent := &c.al.ent[e]
	if ent.state != alDurable || ent.inflight != 0 || ent.isQueued || ent.freeing != 0 ||
		c.al.wait[e].head != nil {
		return false
	}
	if c.commit.stage != commitIdle && ent.logSeq >= c.commit.group {
		return false // the commit under way still speaks of it
	}
	v := c.volumes[volumeOf(ent)]
	if v != nil && !v.dropped && (ent.marks != 0 || !ent.unlog && !c.licensed(ent)) {
		return false
	}
	return ent.slot == 0 || c.isDurable(ent.slot-1) || c.cfg.Off.Has(rules.FlushMetadata)
}

// isDurable reports whether every change of a slot's metadata is durable.
func (c *Core) isDurable(slot uint32) bool {
	i := c.slots.info[slot].page
	if i == 0 {
		return true
	}
	p := c.cache.at(i)
	return !p.isDirty && p.writes == 0 &&
		(c.commit.stage == commitIdle || p.lastSeq < c.commit.group)
}

// finishFlush completes a flush or FUA whose commit is durable.
func (c *Core) finishFlush(r *Request) {
	if r.Op == OpFlush {
		c.stats.Flushes++
		if v := r.vol; r.Drained && v != nil {
			d := &v.drained
			if r.Gen > d.Gen {
				d.Gen, d.Interval = r.Gen, r.Interval
			} else if r.Gen == d.Gen {
				d.Interval = max(d.Interval, r.Interval)
			}
			// What the flush has licensed goes at once if the log is filling, so that the
			// reply already tells the lower pressure.
			if excess := c.al.excess(); excess > 0 {
				c.retire(excess + c.al.slots/8)
			}
		}
	}
	if r.Op == OpVacate {
		c.vacated(r)
	}
	c.reply(r, transport.StatusOK)
}

// Idle starts background work, for a device that has nothing else to do:
// licensed entries leave the activity log, pages are folded, the log's tail
// advances. It reports whether there is more; call it again a little later.
func (c *Core) Idle() bool {
	if c.failed != nil || c.stop.stage != stopNone {
		return false
	}
	c.idle = true
	c.retire(cap(c.al.removed))
	return c.verifyNext() || c.cache.unfolded > 0 || c.fold.stage != foldIdle || c.commit.stage != commitIdle ||
		len(c.al.removed) > 0 || c.wantsTail()
}
