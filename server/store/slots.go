// SPDX-License-Identifier: Apache-2.0

package store

import "math/bits"

// slotInfo is what memory holds for each chunk slot: 64 bytes without pointers,
// in one array that the kernel backs with memory only as slots come into use.
type slotInfo struct {
	key      chunkKey
	gen      uint64
	interval uint64
	pageSeq  uint32 // of the newest page that may be on the disk
	page     uint32 // in the cache, 0: not cached
	al       uint32 // entry of the activity log, 0: none
	blocks   uint16 // present, as of the last change in the cache
	state    slotState
}

type slotState uint8

// A slot is freed in three steps: freeing until the record of it is durable,
// discarding until the device has done that, then free for another chunk.
const (
	stateFree slotState = iota
	stateUsed
	stateFreeing
	stateDiscarding
)

// slotTable maps chunks to slots by open addressing over slot numbers, and
// hands out free slots in ascending order from a rover, so that a fresh
// device fills from its start and neighbours share header pages.
type slotTable struct {
	info  []slotInfo
	index []uint32 // slot+1, 0 empty
	mask  uint32
	free  []uint64 // bit set: free
	rover uint32
	used  uint32 // slots not free
	// freeing counts slots that become free without anyone's help.
	freeing uint32
}

func (t *slotTable) init(slots uint32) {
	n := uint32(1) << bits.Len32(slots+slots/3)
	t.info = make([]slotInfo, slots)
	t.index = make([]uint32, n)
	t.mask = n - 1
	t.free = make([]uint64, (slots+63)/64)
	for s := range slots {
		t.free[s>>6] |= 1 << (s & 63)
	}
}

func (k *chunkKey) hash() uint32 {
	h := k.volume*0x9E3779B97F4A7C15 ^ uint64(k.layer)*0xC2B2AE3D27D4EB4F
	h ^= h >> 29
	h = (h + k.chunk) * 0xBF58476D1CE4E5B9
	h ^= h >> 32
	return uint32(h)
}

// find returns the slot of a chunk.
func (t *slotTable) find(k *chunkKey) (slot uint32, ok bool) {
	for i := k.hash() & t.mask; ; i = (i + 1) & t.mask {
		v := t.index[i]
		if v == 0 {
			return 0, false
		}
		if t.info[v-1].key == *k {
			return v - 1, true
		}
	}
}

// insert adds a slot under its key. It reports false when the key is there.
func (t *slotTable) insert(slot uint32) bool {
	k := &t.info[slot].key
	for i := k.hash() & t.mask; ; i = (i + 1) & t.mask {
		v := t.index[i]
		if v == 0 {
			t.index[i] = slot + 1
			return true
		}
		if t.info[v-1].key == *k {
			return false
		}
	}
}

// remove takes the slot's key out of the index (backward-shift deletion).
func (t *slotTable) remove(slot uint32) {
	k := &t.info[slot].key
	i := k.hash() & t.mask
	for t.index[i] != slot+1 {
		if t.index[i] == 0 {
			panic("store: a used slot is not in the index")
		}
		i = (i + 1) & t.mask
	}
	for j := i; ; {
		j = (j + 1) & t.mask
		v := t.index[j]
		if v == 0 {
			break
		}
		home := t.info[v-1].key.hash() & t.mask
		if (j-home)&t.mask >= (j-i)&t.mask {
			t.index[i] = v
			i = j
		}
	}
	t.index[i] = 0
}

// take hands out a free slot.
func (t *slotTable) take() (slot uint32, ok bool) {
	n := uint32(len(t.free))
	for i := range n {
		w := (t.rover + i) % n
		if m := t.free[w]; m != 0 {
			t.rover = w
			b := uint32(bits.TrailingZeros64(m))
			t.free[w] &^= 1 << b
			t.used++
			return w<<6 + b, true
		}
	}
	return 0, false
}

// claim marks a slot as used (recovery).
func (t *slotTable) claim(slot uint32) {
	t.free[slot>>6] &^= 1 << (slot & 63)
	t.used++
}

// release gives a slot back. Its page sequence number stays.
func (t *slotTable) release(slot uint32) {
	in := &t.info[slot]
	*in = slotInfo{pageSeq: in.pageSeq, page: in.page}
	t.free[slot>>6] |= 1 << (slot & 63)
	t.used--
}
