// SPDX-License-Identifier: Apache-2.0

package store

import (
	"braid/cluster"
	"braid/transport"
)

// listRegions answers OpALList. The cursor is an entry's number: entries do not
// move while they live.
func (c *Core) listRegions(r *Request) {
	n := uint64(len(c.al.ent))
	first := len(r.Regions)
	i := max(r.Value, 1)
	for ; i < n && (r.Length == 0 || uint32(len(r.Regions)-first) < r.Length); i++ {
		e := &c.al.ent[i]
		if e.state == alFree || volumeOf(e) != r.Volume {
			continue
		}
		g := Region{Volume: r.Volume, Layer: e.key.layer, Chunk: e.key.chunk, Marks: e.marks,
			Tag: cluster.Tag{Gen: cluster.Generation(e.gen), Interval: e.interval}}
		if cluster.Generation(e.gen) < r.vol.gen {
			g.Marks |= MarkSuspect
		}
		if t := c.torn[e.key]; t != nil {
			t.bits.put(g.Torn[:])
		}
		r.Regions = append(r.Regions, g)
	}
	if r.Value = i; i >= n {
		r.Value = 0
	}
	c.reply(r, transport.StatusOK)
}

// maxScan bounds the slots that one OpTags looks at, so that it cannot hold up
// the data path.
const maxScan = 16384

// listTags answers OpTags.
func (c *Core) listTags(r *Request) {
	slot := r.Value
	end := min(slot+maxScan, uint64(c.lay.slots))
	for ; slot < end && uint32(len(r.Chunks)) < r.Length; slot++ {
		in := &c.slots.info[slot]
		if in.state != stateUsed || in.key.volume != uint64(r.Volume) {
			continue
		}
		r.Chunks = append(r.Chunks, ChunkTag{Layer: in.key.layer, Chunk: in.key.chunk,
			Tag:    cluster.Tag{Gen: cluster.Generation(in.gen), Interval: in.interval},
			Blocks: in.blocks})
	}
	r.Value = slot
	if slot >= uint64(c.lay.slots) {
		r.Value = 0
	}
	c.reply(r, transport.StatusOK)
}

// dropState removes deleted volumes and what is vacated, one after another, a few
// chunks at a time.
type dropState struct {
	queue   reqQueue
	cursor  uint32
	isStuck bool // waits for a commit or a fold
}

const dropBatch = 64

// dropVolume answers OpDrop: nothing of the volume is admitted any more, its
// chunks are freed, and in the end its generation is forgotten.
func (c *Core) dropVolume(r *Request) {
	v := c.volumes[r.Volume]
	if v == nil || v.dropped {
		if v == nil {
			c.reply(r, transport.StatusOK)
		} else {
			c.reply(r, transport.StatusRetry)
		}
		return
	}
	v.dropped = true
	c.drops.queue.push(r)
}

func (c *Core) pumpDrops() bool {
	d := &c.drops
	r := d.queue.head
	if r == nil {
		return false
	}
	v := c.volumes[r.Volume]
	if r.Op == OpDrop && (v.inflight[0]+v.inflight[1] != 0 || v.fencing.head != nil || v.isNoted) {
		return false
	}
	d.isStuck = false
	for n := 0; d.cursor < c.lay.slots; d.cursor++ {
		in := &c.slots.info[d.cursor]
		if in.state != stateUsed || !r.drops(&in.key) {
			continue
		}
		if n == dropBatch {
			return true
		}
		if !c.dropChunk(d.cursor) {
			d.isStuck = true
			return n > 0
		}
		n++
		r.Value++
	}
	d.queue.pop()
	d.cursor = 0
	if r.Op == OpVacate {
		c.flushQ.push(r)
		return true
	}
	c.log.dropped = append(c.log.dropped, v)
	c.log.drops.push(r)
	return true
}

// drops reports whether the chunk is one of those to remove.
func (r *Request) drops(k *chunkKey) bool {
	if r.Op == OpVacate {
		return r.Gone(cluster.VolumeID(k.volume), k.chunk)
	}
	return k.volume == uint64(r.Volume)
}

// vacated ends the activity-log entries of chunks that are durably gone: what is
// not there differs from no copy of the group.
func (c *Core) vacated(r *Request) {
	for i := range c.al.ent {
		e := &c.al.ent[i]
		if e.state != alFree && e.slot == 0 && e.freeing == 0 && r.Gone(volumeOf(e), e.key.chunk) {
			c.al.mark(uint32(i), 0)
			e.unlog = true
		}
	}
}

// dropChunk frees a chunk unread.
func (c *Core) dropChunk(slot uint32) bool {
	if !c.roomFor(recordCost(0)) || c.unfoldable() >= c.unfoldedLimit() {
		return false
	}
	i := c.pageOf(slot)
	if i == 0 {
		return false
	}
	p := c.cache.at(i)
	if p.pins != 0 { // verification or a load: soon over
		return false
	}
	c.pin(i)
	p.state, p.fault, p.doubted = pageReady, 0, false
	key := c.slots.info[slot].key
	delete(c.doubts, key)
	delete(c.torn, key)
	c.freeChunk(i)
	c.unpin(i)
	return true
}

// forget removes a dropped volume once that is durable.
func (c *Core) forget(v *volume) {
	delete(c.volumes, v.id)
	for i := range c.vols {
		if c.vols[i] == v {
			c.vols = append(c.vols[:i], c.vols[i+1:]...)
			return
		}
	}
}
