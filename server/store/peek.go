// SPDX-License-Identifier: Apache-2.0

package store

import "braid/cluster"

// Peek is what a core knows of a chunk at this instant. A simulator compares it
// with what ought to be after every event; nothing in it costs I/O or changes
// anything.
type Peek struct {
	Stored  bool  // the chunk has a slot
	Known   bool  // its page is in memory and needs no verification: what follows holds
	At      int64 // where its data lies on the device, bytes
	Present [cluster.BlocksPerChunk / 8]byte
	Torn    [cluster.BlocksPerChunk / 8]byte
	Tag     cluster.Tag
	Logged  bool // the region is in the durable activity log
	Marks   Marks
}

// Peek looks a chunk up.
func (c *Core) Peek(volume cluster.VolumeID, layer uint32, chunk uint64) (p Peek) {
	key := chunkKey{volume: uint64(volume), chunk: chunk, layer: layer}
	isUnknown := false
	if e := c.al.find(&key); e != 0 {
		isUnknown = c.isDoubted(e) && !c.al.ent[e].isFailed
		p.Logged, p.Marks = c.al.ent[e].state == alDurable, c.al.ent[e].marks
	}
	slot, ok := c.slots.find(&key)
	if !ok {
		p.Known = true
		return p
	}
	in := &c.slots.info[slot]
	p.Stored, p.At = true, c.lay.dataAt(slot)
	p.Tag = cluster.Tag{Gen: cluster.Generation(in.gen), Interval: in.interval}
	if t := c.torn[key]; t != nil {
		t.bits.put(p.Torn[:])
	}
	if in.page == 0 || isUnknown {
		return p
	}
	if page := c.cache.at(in.page); page.state == pageReady && !page.isLost {
		p.Known = true
		page.bits.put(p.Present[:])
	}
	return p
}

// Logs reports whether the activity log has an entry for a chunk, durable or not.
func (c *Core) Logs(volume cluster.VolumeID, layer uint32, chunk uint64) bool {
	return c.al.find(&chunkKey{volume: uint64(volume), chunk: chunk, layer: layer}) != 0
}
