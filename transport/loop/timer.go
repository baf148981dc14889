// SPDX-License-Identifier: Apache-2.0

package loop

// TimerFunc is called on the loop when a timer runs out. The timer is disarmed
// then and may be armed again from inside.
type TimerFunc func(t *Timer)

// Timer is embedded by value in the caller's structure and reused; it must not
// be copied or moved while armed. Set Fire once, before the first Arm.
type Timer struct {
	Fire TimerFunc

	pos int // place in the heap + 1; 0 when disarmed
}

// Armed reports whether the timer is running.
func (t *Timer) Armed() bool { return t.pos != 0 }

// timerHeap is a binary heap by deadline, and by the order of Arm among equals.
// Deadlines lie beside the pointers, so that sifting does not touch the timers
// that it does not move.
type timerHeap struct {
	entries []timerEntry
	seq     uint64
}

type timerEntry struct {
	when int64
	seq  uint64
	t    *Timer
}

func (e timerEntry) before(o timerEntry) bool {
	return e.when < o.when || e.when == o.when && e.seq < o.seq
}

func (h *timerHeap) arm(t *Timer, when int64) {
	h.seq++
	e := timerEntry{when: when, seq: h.seq, t: t}
	if t.pos == 0 {
		h.entries = append(h.entries, e)
		h.up(len(h.entries)-1, e)
		return
	}
	i := t.pos - 1
	if e.before(h.entries[i]) {
		h.up(i, e)
	} else {
		h.down(i, e)
	}
}

func (h *timerHeap) disarm(t *Timer) {
	if t.pos == 0 {
		return
	}
	i, last := t.pos-1, len(h.entries)-1
	t.pos = 0
	e := h.entries[last]
	h.entries[last] = timerEntry{}
	h.entries = h.entries[:last]
	if i == last {
		return
	}
	if i > 0 && e.before(h.entries[(i-1)/2]) {
		h.up(i, e)
	} else {
		h.down(i, e)
	}
}

// next is the earliest deadline.
func (h *timerHeap) next() (when int64, ok bool) {
	if len(h.entries) == 0 {
		return 0, false
	}
	return h.entries[0].when, true
}

func (h *timerHeap) up(i int, e timerEntry) {
	for i > 0 {
		parent := (i - 1) / 2
		if !e.before(h.entries[parent]) {
			break
		}
		h.set(i, h.entries[parent])
		i = parent
	}
	h.set(i, e)
}

func (h *timerHeap) down(i int, e timerEntry) {
	for {
		child := 2*i + 1
		if child >= len(h.entries) {
			break
		}
		if right := child + 1; right < len(h.entries) && h.entries[right].before(h.entries[child]) {
			child = right
		}
		if !h.entries[child].before(e) {
			break
		}
		h.set(i, h.entries[child])
		i = child
	}
	h.set(i, e)
}

func (h *timerHeap) set(i int, e timerEntry) {
	h.entries[i] = e
	e.t.pos = i + 1
}
