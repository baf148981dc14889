// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"slices"

	"braid/cluster"
)

// Key names a chunk on a device.
type Key struct {
	Volume cluster.VolumeID
	Layer  uint32
	Chunk  uint64
}

// Target is one attempt to bring this device's copy of a group into sync: which
// chunks are not known to be clean. Package resync fills and empties it; live
// writes to what is dirty are skipped, and make it dirty anew (rules 11, 25).
type Target struct {
	PG      cluster.PGID
	Attempt uint32 // the epoch that announced it

	compared bool
	joining  bool
	// dirty holds, by chunk, the number of its last mark. Before the comparison it
	// holds what was marked so far, and everything counts as dirty.
	dirty map[Key]uint64
	queue []Key // of dirty, in the order of the first mark; may name clean chunks
	marks uint64
}

func newTarget(pg *cluster.PG) *Target {
	return &Target{PG: pg.ID, Attempt: pg.TargetEpoch, dirty: map[Key]uint64{}}
}

// isClean reports whether the chunk's copy is whole, so that live writes apply.
func (t *Target) isClean(k Key) bool {
	if !t.compared {
		return false
	}
	_, dirty := t.dirty[k]
	return !dirty
}

// Mark makes a chunk dirty, again where it is already: a copy of it that is
// under way will not make it clean.
func (t *Target) Mark(k Key) {
	t.marks++
	if _, dirty := t.dirty[k]; !dirty {
		t.queue = append(t.queue, k)
	}
	t.dirty[k] = t.marks
}

// Compare ends the comparison: what is not marked is clean from now on.
func (t *Target) Compare() { t.compared = true }

// Compared reports whether the comparison is over.
func (t *Target) Compared() bool { return t.compared }

// SetJoining says that the device asks to be called in sync. Until the outcome is
// known nothing may make a chunk dirty.
func (t *Target) SetJoining(on bool) { t.joining = on }

// Next takes the dirty chunk that waits longest out of the queue. Its caller
// copies it and calls Clean, or gives it back by Requeue.
func (t *Target) Next() (Key, bool) {
	for len(t.queue) > 0 {
		k := t.queue[0]
		t.queue = t.queue[1:]
		if _, dirty := t.dirty[k]; dirty {
			return k, true
		}
	}
	t.queue = nil
	return Key{}, false
}

// Requeue puts a chunk that Next gave back at the end.
func (t *Target) Requeue(k Key) { t.queue = append(t.queue, k) }

// LastMark is the number of a chunk's last mark, 0: it is clean.
func (t *Target) LastMark(k Key) uint64 { return t.dirty[k] }

// Clean says that a chunk was copied. It reports false, and the chunk stays
// dirty, when it was marked after the copy began: after mark was read.
func (t *Target) Clean(k Key, mark uint64) bool {
	if t.dirty[k] != mark {
		return false
	}
	delete(t.dirty, k)
	return true
}

// Left is how many chunks are dirty.
func (t *Target) Left() int { return len(t.dirty) }

func appendSorted(list []cluster.VolumeID, set map[cluster.VolumeID]bool) []cluster.VolumeID {
	first := len(list)
	for id := range set {
		list = append(list, id)
	}
	slices.Sort(list[first:])
	return list
}
