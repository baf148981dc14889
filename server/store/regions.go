// SPDX-License-Identifier: Apache-2.0

package store

import "braid/cluster"

// EachRegion calls fn for every region of the activity log, now.
func (c *Core) EachRegion(fn func(id cluster.VolumeID, layer uint32, chunk uint64)) {
	for i := range c.al.ent {
		if e := &c.al.ent[i]; e.state != alFree {
			fn(volumeOf(e), e.key.layer, e.key.chunk)
		}
	}
}

// Suspect marks those regions of the activity log that keep picks, at once and in
// memory: no flush lets them go, until OpStamp. It is for a device that has left
// the in-sync set of a group: a drained flush does not speak of its copy any
// more. After a restart the marks come from the map anew.
func (c *Core) Suspect(keep func(id cluster.VolumeID, chunk uint64) bool) {
	for i := range c.al.ent {
		if e := &c.al.ent[i]; e.state != alFree && keep(volumeOf(e), e.key.chunk) {
			c.al.mark(uint32(i), e.marks|MarkSuspect)
			e.unlog = false
		}
	}
}
