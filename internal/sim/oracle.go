// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"strings"

	"braid/transport/bio"
)

// versionState is what has become of a version of a block.
type versionState uint8

const (
	pending versionState = iota // submitted, not completed
	acked
	maybe // it failed: it may be there or not
	ghost // left by a client or guest that is gone: the attach settles it
	never // the attach settled for another one
)

type version struct {
	id    uint64 // 0: zeroes
	state versionState
}

// history is the versions of a block in the order of their submission, which
// for overlapping requests is the order of their execution (rule 7).
//
//	first        floor          low                    newest
//	  |            |             |                        |
//	  forgotten    oldest that   oldest that a read may   last submitted
//	               a guest's     return now
//	               restart may
//	               go back to
type history struct {
	first, floor, low uint32
	versions          []version // from first on
}

type oracle struct {
	v      *Volume
	blocks []history
}

func (o *oracle) init(v *Volume) {
	o.v = v
	o.blocks = make([]history, v.size/block)
	for i := range o.blocks {
		o.blocks[i].versions = []version{{0, acked}}
	}
}

func (h *history) at(i uint32) *version { return &h.versions[i-h.first] }
func (h *history) end() uint32          { return h.first + uint32(len(h.versions)) }

// trim forgets what nothing can return to.
func (h *history) trim() {
	if n := min(h.floor, h.low) - h.first; n > 16 {
		h.versions = append([]version(nil), h.versions[n:]...)
		h.first += n
	}
}

// submitted notes what a request that begins now may return or makes.
func (o *oracle) submitted(q *request) {
	switch q.r.Op {
	case bio.Read:
		for i := range q.count {
			q.low = append(q.low, o.blocks[q.first+i].low)
		}
	case bio.Flush:
		q.low = make([]uint32, len(o.blocks))
		for i := range o.blocks {
			q.low[i] = o.blocks[i].low
		}
	case bio.Write, bio.WriteZeroes, bio.Trim:
		for i := range q.count {
			h := &o.blocks[q.first+i]
			q.index = append(q.index, h.end())
			id := uint64(0)
			if q.r.Op == bio.Write {
				id, _ = idOf(q.r.Data[i*block:][:block])
			}
			h.versions = append(h.versions, version{id, pending})
		}
	}
}

// succeeded holds a request that ended well against what may be.
func (o *oracle) succeeded(q *request) {
	switch q.r.Op {
	case bio.Read:
		for i := range q.count {
			o.read(q, q.first+i, q.r.Data[i*block:][:block], q.low[i])
		}
	case bio.Write, bio.WriteZeroes, bio.Trim:
		for i := range q.count {
			h := &o.blocks[q.first+i]
			h.at(q.index[i]).state = acked
			h.low = max(h.low, q.index[i])
			if q.r.Flags&bio.FUA != 0 {
				h.floor = max(h.floor, q.index[i])
			}
			h.trim()
		}
		o.v.w.ackedWrite(o.v, q)
	case bio.Flush:
		q.client.covered()
		for i := range o.blocks {
			h := &o.blocks[i]
			h.floor = max(h.floor, q.low[i])
			h.trim()
		}
		o.v.w.ackedFlush(o.v, q)
	case bio.BlockStatus:
		o.status(q)
	}
}

// read holds what a block was read as against its history, and fixes it: a
// value that was seen does not vanish.
func (o *oracle) read(q *request, b uint64, data []byte, low uint32) {
	h := &o.blocks[b]
	id, ok := idOf(data)
	i, found := h.find(id, low)
	if !ok && !found && h.torn(low, id) {
		o.v.w.mark("torn block read")
		return
	}
	if !ok && !found {
		o.v.w.failf("%s block %d: %s reads bytes that nobody wrote: %x... %x... (%s); %s", o.v.name, b, q.client,
			data[:8], data[512:520], h, o.v.w.where(o.v, b))
		return
	}
	if !found {
		o.v.w.failf("%s block %d: %s reads %x, which it may not: %s; %s",
			o.v.name, b, q.client, id, h, o.v.w.where(o.v, b))
		return
	}
	if h.rewritten(id, i) {
		h.low = max(h.low, i) // which of the two it was is not known
		return
	}
	o.seen(h, i)
}

// rewritten reports whether a version after i that no attach had to settle has
// the same contents, as zeroes often do: a read of them does not tell that the
// attach settled for version i.
func (h *history) rewritten(id uint64, i uint32) bool {
	if h.at(i).state != ghost {
		return false
	}
	for k := i + 1; k < h.end(); k++ {
		if v := h.at(k); v.id == id && v.state != never && v.state != ghost {
			return true
		}
	}
	return false
}

// torn takes bytes that are a mixture: of a block that was being written, or not
// flushed, when a cache was lost, this is what there is (rule 22). From then on
// it is the block's contents.
func (h *history) torn(low uint32, id uint64) bool {
	for i := h.end(); i > max(low, h.first); i-- {
		if v := h.at(i - 1); v.state == ghost {
			for k := h.first; k < i; k++ {
				if x := h.at(k); x.state == ghost {
					x.state = never
				}
			}
			*v = version{id, acked}
			h.low, h.floor = max(h.low, i-1), max(h.floor, i-1)
			return true
		}
	}
	return false
}

// find returns the oldest version with that contents, from low on.
func (h *history) find(id uint64, low uint32) (uint32, bool) {
	for i := max(low, h.first); i < h.end(); i++ {
		if v := h.at(i); v.id == id && v.state != never {
			return i, true
		}
	}
	return 0, false
}

// seen notes that a version was read. What an attach settled for is durable
// everywhere before anybody reads it (rule 8), and the others are gone for good.
func (o *oracle) seen(h *history, i uint32) {
	h.low = max(h.low, i)
	v := h.at(i)
	if v.state == ghost {
		h.floor = max(h.floor, i)
		for k := h.first; k < h.end(); k++ {
			if x := h.at(k); x.state == ghost {
				x.state = never
			}
		}
	}
	v.state = acked
}

func (h *history) String() string {
	var s strings.Builder
	for i := h.first; i < h.end(); i++ {
		v := h.at(i)
		fmt.Fprintf(&s, "%d:%x/%d ", i, v.id, v.state)
	}
	return fmt.Sprintf("%s(floor %d, low %d)", s.String(), h.floor, h.low)
}

// failed notes that nobody knows whether a write took place.
func (o *oracle) failed(q *request) {
	for i, k := range q.index {
		o.blocks[q.first+uint64(i)].at(k).state = maybe
	}
}

// haunted makes ghosts of what a dead client had under way.
func (o *oracle) haunted(q *request) {
	for i, k := range q.index {
		o.blocks[q.first+uint64(i)].at(k).state = ghost
	}
}

// restarted is a guest that begins anew: what it had not flushed may be gone,
// block by block.
func (o *oracle) restarted() {
	for i := range o.blocks {
		h := &o.blocks[i]
		h.low = h.floor
		for k := h.low; k < h.end(); k++ {
			if v := h.at(k); v.state != never {
				v.state = ghost
			}
		}
	}
}

// status checks that the extents cover the range and that a hole reads as
// zeroes.
func (o *oracle) status(q *request) {
	total := uint64(0)
	for _, e := range q.r.Extents {
		if e.Hole {
			for b := (q.r.Off + total) / block; b < (q.r.Off+total+e.Length)/block; b++ {
				if _, ok := o.blocks[b].find(0, o.blocks[b].first); !ok {
					o.v.w.failf("%s block %d is a hole for %s: %s", o.v.name, b, q.client, &o.blocks[b])
				}
			}
		}
		total += e.Length
	}
	if total == 0 || total > q.r.Len {
		o.v.w.failf("block status of %d bytes covers %d", q.r.Len, total)
	}
}
