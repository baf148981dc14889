// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"braid/cluster"
	"braid/transport"
)

// tagged notes the tag that an acked change has given its chunk.
func (m *model) tagged(r *Request, op *modelOp) {
	k := modelKey{op.first.volume, op.first.chunk, 0}
	t := cluster.Tag{Gen: r.Gen, Interval: r.Interval}
	old := m.tags[k]
	isLess := t.Gen < old.Gen || t.Gen == old.Gen && t.Interval < old.Interval
	switch isTrim := op.kind == "trim" || op.kind == "zero" && !r.NoHole; {
	case isTrim: // it may have had nothing to do, or have freed the chunk
		if isLess {
			t = old.Tag
		}
		m.tags[k] = modelTag{t, false}
	case !isLess:
		m.tags[k] = modelTag{t, true}
	}
}

type modelTag struct {
	cluster.Tag
	isKnown bool
}

// checkTags: what has left the activity log has its last tag (invariant 6).
func (m *model) checkTags(g *rig, v cluster.VolumeID, gen cluster.Generation, regions map[chunkKey]bool) {
	m.t.Helper()
	r := g.must(&Request{Op: OpTags, Volume: v, Gen: gen, Length: 1 << 20})
	for _, c := range r.Chunks {
		want := m.tags[modelKey{v, c.Chunk, 0}]
		if key := (chunkKey{uint64(v), c.Chunk, 0}); want.isKnown && !regions[key] && c.Tag != want.Tag {
			m.t.Fatalf("chunk %d of volume %d is not in the activity log and has the tag %v instead of %v%s", c.Chunk,
				v, c.Tag, want.Tag, dumpLog(g, key))
		}
	}
}

// checkMarks: what was marked is in the log with that mark, until it is stamped (rule 20).
func (m *model) checkMarks(v cluster.VolumeID, regions []Region) {
	m.t.Helper()
	have := map[uint64]Marks{}
	for _, x := range regions {
		have[x.Chunk] = x.Marks
	}
	for chunk, marks := range m.marked {
		if v == 1 && have[chunk]&marks != marks {
			m.t.Fatalf("chunk %d was marked %v; after a power loss it has %v", chunk, marks, have[chunk])
		}
	}
}

// scrubbed looks at a piece of a pass and asks for the next one.
func (m *model) scrubbed() {
	r := m.scrub
	if r.Status != transport.StatusOK || !r.Hole && r.Table.Rot != (transport.Bitmap{}) {
		m.t.Fatalf("scrub of chunk %d: status %d, rot %x", r.Chunk, r.Status, r.Table.Rot)
	}
	if s := m.rig.core.Stats(); s.MetaRot != 0 {
		m.t.Fatalf("scrub: %d pages of healthy metadata were called damaged (position %d)", s.MetaRot, r.Value)
	}
	m.scrubs++
}

func (m *model) quiesce() {
	m.rig.run()
	m.take()
	if len(m.ops) != 0 {
		for r, op := range m.ops {
			m.t.Errorf("never answered: %s %+v stage %d", op.kind, op.first, r.stage)
		}
		m.t.Fatalf("%d requests hang; %s", len(m.ops), m.rig.core.debug())
	}
	m.audit()
}

// drain flushes all volumes and idles: the activity log and the ring must empty.
func (m *model) drain() {
	m.quiesce()
	m.rig.each = nil // these flushes are not the model's
	for _, v := range m.vols {
		r := m.rig.must(&Request{Op: OpALList, Volume: v.id, Gen: v.gen})
		m.resolve(m.rig, v.id, v.gen, r.Regions)
		clear(m.tags) // stamped
		m.rig.flush(v.id, v.gen, v.interval)
		v.interval++
	}
	m.flushed()
	m.rig.each = m.tick
	for range 200 {
		more := m.rig.core.Idle()
		m.rig.run()
		if !more {
			break
		}
	}
	m.audit()
	if s := m.rig.core.Stats(); s.AL > 0 || s.Unfolded > 0 {
		m.t.Fatalf("idle, and still %d regions, %d unfolded chunks: %s", s.AL, s.Unfolded, m.rig.core.debug())
	}
}

// audit checks the core's books at rest.
func (m *model) audit() {
	m.t.Helper()
	c := m.rig.core
	if len(m.ops) == 0 && (c.reserved != 0 || c.writing != 0 || c.active != 0) {
		m.t.Fatalf("at rest: reserved %d, writing %d, active %d", c.reserved, c.writing, c.active)
	}
	cost, unfolded, pins := 0, 0, 0
	for i := uint32(3); int(i) < len(c.cache.slabs)*slabPages; i++ {
		p := c.cache.at(i)
		if p.state == pageNone && c.slots.info[p.slot].page != i {
			continue
		}
		cost += int(p.cost)
		pins += int(p.pins)
		if p.firstSeq != 0 {
			unfolded++
			if p.firstSeq < c.log.tail {
				m.t.Fatalf("tail %d lies beyond an unfolded record at %d", c.log.tail, p.firstSeq)
			}
		}
	}
	if cost != c.dirtyCost || unfolded != c.cache.unfolded {
		m.t.Fatalf("dirty cost %d, counted %d; unfolded %d, counted %d", c.dirtyCost, cost,
			c.cache.unfolded, unfolded)
	}
	if len(m.ops) == 0 && pins != 0 && c.verify.stage == verifyIdle {
		m.t.Fatalf("at rest: %d pins", pins)
	}
}

func (c *Core) debug() string {
	return fmt.Sprintf("ring %d/%d tail %d durable %d next %d; commit %d fold %d wants %v; "+
		"dirty %d cost %d reserved %d; AL %d pending %d; space %v cache %v flush %v; idle %v",
		c.log.used(), c.lay.ringPages, c.log.tail, c.log.durableTail, c.log.next, c.commit.stage, c.fold.stage,
		c.fold.wantsCommit, c.dirty.count, c.dirtyCost, c.reserved, c.al.count, len(c.al.pending),
		c.spaceQ.head != nil, c.cacheQ.head != nil, c.flushQ.head != nil, c.idle)
}
