// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"cmp"
	"maps"
	"slices"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// listBytes is the room for one part of a list; a server sends no longer ones.
const listBytes = 64 << 10

// round is one comparison: some groups that have a source in common. A chunk is
// dirty when
//
//   - its tag differs from the source's, larger or smaller (rule 9), or one side
//     has no such chunk,
//   - it is in the activity log of the source, of another in-sync copy, or in our
//     own (rule 10),
//   - a live write to it was skipped (rule 25), which the gate has marked.
//
// The parts may be read one after another, while writes go on: every write since
// the barrier comes here too, and is skipped and marked until the end.
type round struct {
	runs    []*run
	groups  map[cluster.PGID]*run
	source  Source
	others  []cluster.DeviceID // in sync, but the source
	volumes []cluster.VolumeID
	next    int // volume
	log     int // whose activity log: the source's, then the others'
	theirs  map[gate.Key]cluster.Tag
	op      Op
}

func (d *round) lives() bool {
	return slices.ContainsFunc(d.runs, func(r *run) bool { return !r.dead })
}

// startRound begins to compare what is ready.
func (c *Core) startRound() {
	if c.round != nil {
		return
	}
	d := &round{groups: map[cluster.PGID]*run{}}
	for _, r := range c.runs {
		if r.sources == nil || r.t.Compared() || c.now < r.retryAt || len(d.runs) == c.cfg.Round ||
			c.gate.Draining(r.t.PG) {
			continue
		}
		s, ok := c.source(r)
		if !ok || len(d.runs) > 0 && s != d.source || !c.reachable(r) {
			continue
		}
		d.source = s
		d.runs = append(d.runs, r)
		d.groups[r.t.PG] = r
	}
	if len(d.runs) == 0 {
		return
	}
	m := c.gate.Map()
	sets := map[uint32]bool{}
	for _, r := range d.runs {
		sets[r.t.PG.Set()] = true
		for _, id := range m.PG(r.t.PG).InSync {
			if id != d.source.Device && !slices.Contains(d.others, id) {
				d.others = append(d.others, id)
			}
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.Volumes)) {
		if sets[m.Volumes[id].PGSet] {
			d.volumes = append(d.volumes, id)
		}
	}
	d.op.Dst = make([]byte, listBytes)
	c.round = d
	c.stats.Rounds++
	c.compareVolume()
}

// reachable reports whether all in-sync copies of a group can be asked: each of
// them may have the only entry that speaks of a difference (rule 10).
func (c *Core) reachable(r *run) bool {
	for _, id := range c.gate.Map().PG(r.t.PG).InSync {
		if !c.peer(id).up {
			return false
		}
	}
	return true
}

// group returns the run that a chunk belongs to, nil: none of this round.
func (c *Core) groupOf(d *round, id cluster.VolumeID, chunk uint64) *run {
	m := c.gate.Map()
	v := m.Volumes[id]
	if v == nil {
		return nil
	}
	pg := m.VolumePG(v, chunk)
	if pg == nil {
		return nil
	}
	if r := d.groups[pg.ID]; r != nil && !r.dead {
		return r
	}
	return nil
}

// mark makes a chunk dirty if it belongs to the round.
func (c *Core) mark(d *round, k gate.Key) {
	if r := c.groupOf(d, k.Volume, k.Chunk); r != nil {
		r.t.Mark(k)
	}
}

// compareVolume asks the source for the tags of the next volume, or goes on to
// the logs.
func (c *Core) compareVolume() {
	d := c.round
	if d.next == len(d.volumes) {
		d.next = 0
		c.readLog()
		return
	}
	d.theirs = map[gate.Key]cluster.Tag{}
	c.askTags(0)
}

func (c *Core) askTags(cursor uint64) {
	d := c.round
	d.op.Header = transport.Header{Op: transport.OpTags, Chunk: cursor, Interval: uint64(d.volumes[d.next])}
	c.toPeer(&d.op, d.source.Device, c.onTags)
}

func (c *Core) onTags(op *Op, status transport.Status) {
	d := c.round
	if !c.roundGoesOn(op, status) {
		return
	}
	id := d.volumes[d.next]
	next, err := transport.DecodeTags(op.Dst[:op.Header.Payload], func(e *transport.TagEntry) {
		if c.groupOf(d, id, e.Chunk) != nil {
			d.theirs[gate.Key{Volume: id, Layer: e.Layer, Chunk: e.Chunk}] =
				cluster.Tag{Gen: cluster.Generation(e.Gen), Interval: e.Interval}
		}
	})
	switch {
	case err != nil:
		c.failRound()
	case next != 0:
		c.askTags(next)
	case c.store.Generation(id) == 0:
		c.endVolume() // nothing of it was ever here
	default:
		c.ownTags(0)
	}
}

func (c *Core) ownTags(cursor uint64) {
	d := c.round
	reset(&d.op.Req)
	r := &d.op.Req
	r.Op, r.Volume, r.Value, r.Length = store.OpTags, d.volumes[d.next], cursor, listBytes/transport.TagEntrySize
	r.Gen = c.store.Generation(r.Volume)
	c.toStore(&d.op, c.onOwnTags)
}

func (c *Core) onOwnTags(op *Op, status transport.Status) {
	d := c.round
	if !c.roundGoesOn(op, status) {
		return
	}
	for i := range op.Req.Chunks {
		x := &op.Req.Chunks[i]
		k := gate.Key{Volume: op.Req.Volume, Layer: x.Layer, Chunk: x.Chunk}
		theirs, stored := d.theirs[k]
		delete(d.theirs, k)
		differs := !stored || theirs != x.Tag
		if c.cfg.Off.Has(rules.Direction) {
			differs = stored && (theirs.Gen > x.Tag.Gen || theirs.Gen == x.Tag.Gen && theirs.Interval > x.Tag.Interval)
		}
		if differs {
			c.mark(d, k)
		}
	}
	if op.Req.Value != 0 {
		c.ownTags(op.Req.Value)
		return
	}
	c.endVolume()
}

// endVolume marks what only the source has.
func (c *Core) endVolume() {
	d := c.round
	keys := slices.SortedFunc(maps.Keys(d.theirs), func(a, b gate.Key) int {
		return cmp.Or(cmp.Compare(a.Chunk, b.Chunk), cmp.Compare(a.Layer, b.Layer))
	})
	for _, k := range keys {
		c.mark(d, k)
	}
	d.theirs = nil
	d.next++
	c.compareVolume()
}

// readLog asks for the activity log of the next volume at the next device.
func (c *Core) readLog() {
	d := c.round
	if d.next == len(d.volumes) {
		d.next = 0
		d.log++
	}
	last := len(d.others)
	if c.cfg.Off.Has(rules.UnionOfLogs) {
		last = -1
	}
	if d.log > last || len(d.volumes) == 0 {
		c.compared()
		return
	}
	c.askLog(0)
}

func (c *Core) askLog(cursor uint64) {
	d := c.round
	id := d.source.Device
	if d.log > 0 {
		id = d.others[d.log-1]
	}
	d.op.Header = transport.Header{Op: transport.OpALList, Chunk: cursor, Interval: uint64(d.volumes[d.next])}
	c.toPeer(&d.op, id, c.onLog)
}

func (c *Core) onLog(op *Op, status transport.Status) {
	d := c.round
	if !c.roundGoesOn(op, status) {
		return
	}
	id := d.volumes[d.next]
	next, err := transport.DecodeRegions(op.Dst[:op.Header.Payload], func(e *transport.Region) {
		c.mark(d, gate.Key{Volume: id, Layer: e.Layer, Chunk: e.Chunk})
	})
	switch {
	case err != nil:
		c.failRound()
	case next != 0:
		c.askLog(next)
	default:
		d.next++
		c.readLog()
	}
}

// compared ends the comparison. Our own log is read last and at once: since this
// device left the in-sync set none of its entries there could go.
func (c *Core) compared() {
	d := c.round
	c.store.EachRegion(func(id cluster.VolumeID, layer uint32, chunk uint64) {
		c.mark(d, gate.Key{Volume: id, Layer: layer, Chunk: chunk})
	})
	for _, r := range d.runs {
		// Rule 9: had the source left the set meanwhile, it would prove nothing.
		if pg := c.gate.Map().PG(r.t.PG); pg != nil && pg.Has(d.source.Device) {
			r.t.Compare()
		}
	}
	c.round = nil
}

// roundGoesOn reports whether the answer may be used.
func (c *Core) roundGoesOn(op *Op, status transport.Status) bool {
	d := c.round
	if d == nil || op != &d.op {
		return false // of a round that has ended
	}
	p := c.peer(d.source.Device)
	if status != transport.StatusOK || int(op.Header.Payload) > len(op.Dst) || !p.up ||
		!c.isJudged(p, d.source) || !d.lives() {
		c.failRound()
		return false
	}
	return true
}

// failRound gives up: the source is lost, or does not answer as it should. What
// was marked stays marked, and another source is tried.
func (c *Core) failRound() {
	for _, r := range c.round.runs {
		r.turn++
		r.retryAt = c.now + retryAfter
	}
	c.round = nil
}
