// SPDX-License-Identifier: Apache-2.0

package rangelock

// entry is 32 bytes, two in a cache line: a scan over 64 entries costs about
// 60 ns, less than an interval tree's insertion up to a few hundred requests.
type entry struct {
	first, end uint64 // blocks [first, end)
	seq        uint64 // order of arrival; 0: slot not in use
	blockers   int32  // earlier conflicting entries that are still here
	write      bool
}

// Table holds at most as many ranges as it has slots.
type Table struct {
	entries []entry
	high    int // no entry at or above is in use
	seq     uint64
	used    int
	writes  int
	waiting int
}

// New makes a table for slots 0..slots-1.
func New(slots int) *Table {
	return &Table{entries: make([]entry, slots)}
}

// Lock asks for the blocks [first, first+count) on behalf of slot, which must
// not be in use. It reports whether they are granted at once; otherwise slot is
// returned by a later Unlock.
func (t *Table) Lock(slot int32, first, count uint64, write bool) bool {
	e := &t.entries[slot]
	if e.seq != 0 || count == 0 {
		panic("rangelock: slot in use or empty range")
	}
	t.seq++
	*e = entry{first: first, end: first + count, seq: t.seq, write: write}
	if write || t.writes > 0 {
		e.blockers = t.conflicts(e)
	}
	t.high = max(t.high, int(slot)+1)
	t.used++
	if write {
		t.writes++
	}
	if e.blockers > 0 {
		t.waiting++
		return false
	}
	return true
}

func (t *Table) conflicts(e *entry) (n int32) {
	for i := range t.entries[:t.high] {
		o := &t.entries[i]
		if o.seq != 0 && o.first < e.end && e.first < o.end && (o.write || e.write) && o != e {
			n++
		}
	}
	return n
}

// Unlock gives slot's range back and appends to granted the slots that wait no
// longer, in order of arrival. It is also how a slot that still waits leaves.
func (t *Table) Unlock(slot int32, granted []int32) []int32 {
	e := t.entries[slot]
	if e.seq == 0 {
		panic("rangelock: unlock of a free slot")
	}
	t.entries[slot] = entry{}
	t.used--
	if e.write {
		t.writes--
	}
	if e.blockers > 0 {
		t.waiting--
	}
	for t.high > 0 && t.entries[t.high-1].seq == 0 {
		t.high--
	}
	if t.waiting == 0 {
		return granted
	}
	start := len(granted)
	for i := range t.entries[:t.high] {
		o := &t.entries[i]
		if o.seq <= e.seq || o.first >= e.end || e.first >= o.end || !(o.write || e.write) {
			continue
		}
		if o.blockers--; o.blockers == 0 {
			t.waiting--
			granted = append(granted, int32(i))
		}
	}
	t.sortByArrival(granted[start:])
	return granted
}

// sortByArrival is an insertion sort: one release rarely grants more than two.
func (t *Table) sortByArrival(slots []int32) {
	for i := 1; i < len(slots); i++ {
		for j := i; j > 0 && t.entries[slots[j]].seq < t.entries[slots[j-1]].seq; j-- {
			slots[j], slots[j-1] = slots[j-1], slots[j]
		}
	}
}

// Used is the number of ranges held or waited for; Waiting counts the latter.
func (t *Table) Used() int    { return t.used }
func (t *Table) Waiting() int { return t.waiting }
