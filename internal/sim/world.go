// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"time"

	"braid/cluster/rules"
)

// Virtual durations, ns.
const (
	us = int64(time.Microsecond)
	ms = int64(time.Millisecond)
	s1 = int64(time.Second)
)

// Config describes one run.
type Config struct {
	Seed     uint64
	Servers  int // with one device each
	Replicas int
	Volumes  int
	Chunks   int           // per volume
	Duration time.Duration // virtual time with faults; healing comes after
	Off      rules.Off     // rules that are switched off
	Faults   Faults
	Plan     []Action      // instead of what Faults and Seed would draw
	Reattach bool          // volumes that lost their client get another one
	Evict    bool          // the manager takes copies out by itself
	Resync   bool          // and brings them back
	Grace    time.Duration // 0: no device is given up, and nothing moves by itself
	Verbose  bool          // keep the whole trace, not only its end
	// Calm: nothing happens by chance, and guests ask for nothing by themselves. What
	// goes wrong is told by a directed schedule.
	Calm bool
	Logs int   // regions that each activity log holds at the most; 0: as the seed has it
	Room []int // chunks that each server has room for; missing or 0: for everything

	plant plant // see there
}

// kind says what an event is, for the hash and the trace.
type kind uint8

const (
	evDisk kind = iota + 1
	evNet
	evClosed
	evGuest
	evTick
	evRPC
	evMap
	evFault
	evNode
	evClient
	evCheck
)

type event struct {
	at, seq int64
	kind    kind
	who     uint32
	do      func()
}

// World is one simulated cluster.
type World struct {
	cfg  Config
	rng  *rand.Rand
	now  int64
	seq  int64
	heap []event

	disks   []*Disk
	nodes   []*Node
	clients []*Client
	volumes []*Volume
	mdm     *Mdm

	healing  bool
	hash     uint64
	events   uint64
	err      error
	trace    []string
	cut      int // lines of the trace that were forgotten
	marks    map[string]int
	touched  []touch
	plan     plan
	deadline int64  // of await
	hold     filter // of a directed schedule: what is not delivered now
	held     []heldMessage
	sown     bool // the planted mistake was made
}

// after runs do at now+d.
func (w *World) after(d int64, k kind, who uint32, do func()) {
	w.seq++
	w.heap = append(w.heap, event{at: w.now + max(d, 0), seq: w.seq, kind: k, who: who, do: do})
	i := len(w.heap) - 1
	for i > 0 {
		p := (i - 1) / 2
		if !w.heap[i].before(&w.heap[p]) {
			break
		}
		w.heap[i], w.heap[p] = w.heap[p], w.heap[i]
		i = p
	}
}

func (e *event) before(o *event) bool {
	return e.at < o.at || e.at == o.at && e.seq < o.seq
}

func (w *World) pop() event {
	h := w.heap
	top := h[0]
	n := len(h) - 1
	h[0] = h[n]
	h[n] = event{}
	w.heap = h[:n]
	h = w.heap
	for i := 0; ; {
		c := 2*i + 1
		if c >= n {
			break
		}
		if c+1 < n && h[c+1].before(&h[c]) {
			c++
		}
		if !h[c].before(&h[i]) {
			break
		}
		h[i], h[c] = h[c], h[i]
		i = c
	}
	return top
}

// step runs one event and checks what it touched.
func (w *World) step() bool {
	if w.err != nil || len(w.heap) == 0 {
		return false
	}
	e := w.pop()
	w.now = e.at
	w.events++
	w.mix(uint64(e.at), uint64(e.kind)<<32|uint64(e.who))
	e.do()
	w.check()
	return w.err == nil
}

// mix adds to the hash of the run.
func (w *World) mix(values ...uint64) {
	for _, v := range values {
		w.hash = (w.hash ^ v) * 0x9E3779B97F4A7C15
		w.hash ^= w.hash >> 29
	}
}

// failf reports a violation; the first one ends the run.
func (w *World) failf(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf(format, args...)
		w.logf("VIOLATION %v", w.err)
	}
}

const traceKept = 400

func (w *World) logf(format string, args ...any) {
	if !w.cfg.Verbose && len(w.trace) >= 2*traceKept {
		w.cut += traceKept
		w.trace = append(w.trace[:0], w.trace[traceKept:]...)
	}
	w.trace = append(w.trace, fmt.Sprintf("%12.6f  ", float64(w.now)/1e9)+fmt.Sprintf(format, args...))
}

// Trace is the end of the run's story, or with Verbose all of it.
func (w *World) Trace() string { return strings.Join(w.trace, "\n") }

func (w *World) mark(name string) { w.marks[name]++ }

// chance is true n times in d while faults are on.
func (w *World) chance(n, d int) bool {
	return !w.healing && !w.cfg.Calm && n > 0 && w.rng.IntN(d) < n
}

// between draws a duration; small ones are likelier.
func (w *World) between(low, high int64) int64 {
	if w.cfg.Calm {
		return low + (high-low)/8
	}
	x := w.rng.Float64()
	return low + int64(x*x*float64(high-low))
}
