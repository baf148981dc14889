// SPDX-License-Identifier: Apache-2.0

package store

import "math/bits"

// alState is where an entry stands.
type alState uint8

// An entry is pending until a commit that contains it is durable; only then may
// data of its region be submitted (rule 2).
const (
	alFree alState = iota
	alPending
	alDurable
)

// alEntry is one region of the activity log: 96 bytes, no pointers.
type alEntry struct {
	key      chunkKey
	gen      uint64 // tag of the region's last write
	interval uint64
	logSeq   uint64 // group that holds its newest add record
	slot     uint32 // of the chunk +1, 0: not stored
	inflight uint32 // admitted changes that have not completed
	state    alState
	marks    Marks
	logMarks Marks  // as in the newest add record
	durMarks Marks  // as in the newest one that is durable
	unlog    bool   // its stamp is all that has to become durable
	isQueued bool   // its add record waits for a commit
	isFailed bool   // to be verified because a write failed, not after a crash: bits are known
	freeing  uint32 // slots of its chunk whose removal is not durable yet
	lru      link   // by last use
	log      link   // by logSeq
}

type link struct{ prev, next uint32 }

// alTable holds the entries, numbered from 1, and two orders over them. Entry
// 0 is the head of both lists.
type alTable struct {
	ent     []alEntry
	index   []uint32
	mask    uint32
	free    []uint32
	count   int
	marked  int         // entries with a mark
	slots   int         // the size that pressure is measured against
	wait    []reqQueue  // by entry: requests that wait for its add or its verification
	pending []uint32    // entries whose add record waits for a commit
	removed []alRemoval // removals that wait for a commit
}

type alRemoval struct{ key chunkKey }

// alOverflow is how far beyond its size the log may go before the table grows.
const alOverflow = 2

// mostRegions is how many entries the log may have (rule 18). A write whose region finds
// no entry is sent back, and a flush of its interval waits for it; if entries
// went only after that flush, both would wait for ever. So there is room for what
// all clients together may have in flight when the pressure that they see has
// reached its maximum and they hold new writes: the table grows, up to what a
// quarter of the log ring can hold when everything has to be logged again.
func (c *Core) mostRegions() int {
	if c.cfg.ALMost != 0 {
		return c.cfg.ALMost
	}
	const perPage = logPayload / shortRecord
	return max((int(c.lay.ringPages)/4-maxVolumes/perPage-4)*perPage, c.cfg.ALSlots*alOverflow)
}

// grow doubles the table.
func (t *alTable) grow() {
	old := len(t.ent)
	n := 2 * old
	t.ent = append(t.ent, make([]alEntry, n-old)...)
	t.wait = append(t.wait, make([]reqQueue, n-old)...)
	for i := n - 1; i >= old; i-- {
		t.free = append(t.free, uint32(i))
	}
	t.pending = append(make([]uint32, 0, n), t.pending...)
	t.removed = append(make([]alRemoval, 0, n), t.removed...)
	size := uint32(1) << bits.Len32(uint32(n)*4/3)
	t.index, t.mask = make([]uint32, size), size-1
	for e := 1; e < old; e++ {
		if t.ent[e].state == alFree {
			continue
		}
		i := t.ent[e].key.hash() & t.mask
		for t.index[i] != 0 {
			i = (i + 1) & t.mask
		}
		t.index[i] = uint32(e)
	}
}

func (t *alTable) init(slots, recovered int) {
	n := slots*alOverflow + recovered + 1
	t.slots = slots
	t.ent = make([]alEntry, n)
	t.wait = make([]reqQueue, n)
	size := uint32(1) << bits.Len32(uint32(n)*4/3)
	t.index = make([]uint32, size)
	t.mask = size - 1
	t.free = make([]uint32, 0, n)
	for i := n - 1; i > 0; i-- {
		t.free = append(t.free, uint32(i))
	}
	t.pending = make([]uint32, 0, n)
	t.removed = make([]alRemoval, 0, n)
}

func (t *alTable) find(k *chunkKey) uint32 {
	for i := k.hash() & t.mask; ; i = (i + 1) & t.mask {
		v := t.index[i]
		if v == 0 || t.ent[v].key == *k {
			return v
		}
	}
}

// add makes an entry for a region that has none. It returns 0 when full.
func (t *alTable) add(k *chunkKey) uint32 {
	if len(t.free) == 0 {
		return 0
	}
	e := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	t.ent[e] = alEntry{key: *k, state: alPending}
	i := k.hash() & t.mask
	for t.index[i] != 0 {
		i = (i + 1) & t.mask
	}
	t.index[i] = e
	t.count++
	t.lruPush(e)
	return e
}

// mark sets the marks of an entry.
func (t *alTable) mark(e uint32, m Marks) {
	if t.ent[e].marks != 0 {
		t.marked--
	}
	if m != 0 {
		t.marked++
	}
	t.ent[e].marks = m
}

// queueAdd has the next commit write an add record for the entry.
func (t *alTable) queueAdd(e uint32) {
	if !t.ent[e].isQueued {
		t.ent[e].isQueued = true
		t.pending = append(t.pending, e)
	}
}

// drop forgets an entry. Nobody may wait for it.
func (t *alTable) drop(e uint32) {
	if t.wait[e].head != nil || t.ent[e].isQueued {
		panic("store: activity-log entry dropped while in use")
	}
	k := &t.ent[e].key
	i := k.hash() & t.mask
	for t.index[i] != e {
		i = (i + 1) & t.mask
	}
	for j := i; ; {
		j = (j + 1) & t.mask
		v := t.index[j]
		if v == 0 {
			break
		}
		home := t.ent[v].key.hash() & t.mask
		if (j-home)&t.mask >= (j-i)&t.mask {
			t.index[i] = v
			i = j
		}
	}
	t.index[i] = 0
	t.lruUnlink(e)
	t.logUnlink(e)
	t.mark(e, 0)
	t.ent[e] = alEntry{}
	t.free = append(t.free, e)
	t.count--
}

func (t *alTable) lruPush(e uint32) {
	last := t.ent[0].lru.prev
	t.ent[e].lru = link{prev: last}
	t.ent[last].lru.next = e
	t.ent[0].lru.prev = e
}

func (t *alTable) lruUnlink(e uint32) {
	l := t.ent[e].lru
	t.ent[l.prev].lru.next = l.next
	t.ent[l.next].lru.prev = l.prev
}

// touch makes the entry the most recently used one.
func (t *alTable) touch(e uint32) {
	if t.ent[0].lru.prev != e {
		t.lruUnlink(e)
		t.lruPush(e)
	}
}

// logged notes that the group at seq holds an add record of the entry.
func (t *alTable) logged(e uint32, seq uint64) {
	t.logUnlink(e)
	last := t.ent[0].log.prev
	t.ent[e].log = link{prev: last}
	t.ent[last].log.next = e
	t.ent[0].log.prev = e
	t.ent[e].logSeq = seq
}

func (t *alTable) logUnlink(e uint32) {
	if t.ent[e].logSeq == 0 {
		return
	}
	l := t.ent[e].log
	t.ent[l.prev].log.next = l.next
	t.ent[l.next].log.prev = l.prev
	t.ent[e].logSeq = 0
}

// oldest returns the entry whose add record lies furthest back, 0: none.
func (t *alTable) oldest() uint32 { return t.ent[0].log.next }

// pressure is 0 up to half of the log, which the device itself keeps free, and
// 1000 when it is full. Marked entries do not count: no flush removes them.
func (t *alTable) pressure() int {
	half := t.slots / 2
	return min(max(t.excess(), 0)*1000/max(t.slots-half, 1), 1000)
}

// excess is how many entries there are beyond half of the log.
func (t *alTable) excess() int { return t.count - t.marked - t.slots/2 }
