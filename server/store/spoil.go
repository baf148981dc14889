// SPDX-License-Identifier: Apache-2.0

package store

import "braid/cluster"

// spoiledPart is out of how many blocks of a chunk one at most rots, the first of the
// second half.
const spoiledPart = 32

// Blocks returns where on the device up to n blocks of a volume lie, one of each chunk
// that is written in full: for a drill that spoils them. They hold until the
// volume's next change.
func (c *Core) Blocks(v cluster.VolumeID, n int) (offs []int64) {
	for slot := range c.slots.info {
		s := &c.slots.info[slot]
		if len(offs) == n {
			break
		}
		if s.state == stateUsed && s.key.volume == uint64(v) && s.blocks == cluster.BlocksPerChunk {
			block := int64(len(offs)%(cluster.BlocksPerChunk/spoiledPart)*spoiledPart + spoiledPart/2)
			offs = append(offs, c.lay.dataAt(uint32(slot))+block*cluster.BlockSize)
		}
	}
	return offs
}
