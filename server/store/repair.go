// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"

	"github.com/cespare/xxhash/v2"

	"braid/transport"
)

// mendState is the one repair that may be under way.
//
// A repair changes nothing but what the disk holds. A block is written only when
// the bytes on the disk do not match the stored checksum and the bytes that were
// brought do. So what is written belongs there, whoever brings it, and needs
// neither a lock, nor an entry of the activity log, nor a flush of its own: after
// a crash the block is mended, or rotten as before.
type mendState struct {
	req   *Request
	queue reqQueue // repairs that wait for their turn
	wait  reqQueue // writes that overlap what is being written
	page  uint32   // while blocks are being written, 0: none are
	now   bitmap   // those blocks
	bad   bitmap   // blocks still to be written
	sums  [blocks]uint64
	first uint32
	buf   []byte
	io    IO
}

// stepRepair answers OpRepair.
func (c *Core) stepRepair(r *Request) {
	m := &c.mend
	if m.req == r {
		c.mendNext() // a group has proven what it waited for
		return
	}
	p, slot, ok := c.readable(r)
	if !ok {
		return
	}
	if m.req != nil {
		c.unpin(r.page)
		r.page = 0
		m.queue.push(r)
		return
	}
	r.Value, r.slot = 0, slot
	want := p.bits.and(r.span())
	if t := c.torn[r.key()]; t != nil {
		want.without(t.bits) // the resolver's
	}
	want.without(p.flying)
	if want.empty() {
		c.unpin(r.page)
		c.reply(r, transport.StatusOK)
		return
	}
	m.req, m.bad, m.sums = r, want, p.sums
	if m.buf == nil {
		m.buf = alignedBytes(1 << chunkShift)
	}
	m.first = want.first()
	n := want.last() + 1 - m.first
	m.io = IO{Kind: IORead, owner: ownMend, Off: c.lay.dataAt(slot) + int64(m.first)<<blockShift,
		Len: int64(n) << blockShift, Data: m.buf[:n<<blockShift], Shell: m.io.Shell}
	c.startIO(&m.io)
}

func (c *Core) mendIODone(err error) {
	m := &c.mend
	r := m.req
	if c.failed != nil {
		m.req = nil
		c.reply(r, transport.StatusIO)
		return
	}
	if m.io.Kind == IOWrite {
		c.mendWritten(err)
		return
	}
	// What cannot be read is written as well: the disk then puts it elsewhere.
	p := c.cache.at(r.page)
	lost := false
	for i := range uint32(blocks) {
		if !m.bad.has(i) {
			continue
		}
		o := (i - m.first) << blockShift
		switch {
		case err == nil && xxhash.Sum64(m.buf[o:o+pageSize]) == m.sums[i], !c.isMendable(p, i):
			m.bad.clear(i)
		case r.brings(i) != p.sums[i]:
			m.bad.clear(i)
			lost = true
		default:
			c.stats.Rot++
		}
	}
	if lost {
		r.Status = transport.StatusRot
	}
	c.mendNext()
}

// brings is the checksum of what a request has for block i.
func (r *Request) brings(i uint32) uint64 {
	return binary.LittleEndian.Uint64(r.Sums[8*(i-r.Offset>>blockShift):])
}

// isMendable reports whether block i is as it was when the repair looked at it.
func (c *Core) isMendable(p *page, i uint32) bool {
	return p.state == pageReady && p.bits.has(i) && !p.flying.has(i) && p.sums[i] == c.mend.sums[i]
}

// mendNext writes the next run of blocks, or ends the repair.
func (c *Core) mendNext() {
	m := &c.mend
	r := m.req
	if r == nil {
		return
	}
	p := c.cache.at(r.page)
	for !m.bad.empty() && !c.isMendable(p, m.bad.first()) {
		m.bad.clear(m.bad.first())
	}
	if m.bad.empty() {
		m.req = nil
		c.unpin(r.page)
		c.reply(r, r.Status)
		if q := m.queue.pop(); q != nil {
			c.step(q)
		}
		return
	}
	if !c.proven(r) {
		return
	}
	a := m.bad.first()
	n := uint32(1)
	for a+n < blocks && m.bad.has(a+n) && c.isMendable(p, a+n) {
		n++
	}
	m.page, m.now = r.page, span(a, n)
	o := a<<blockShift - r.Offset
	m.io = IO{Kind: IOWrite, owner: ownMend, Off: c.lay.dataAt(r.slot) + int64(a)<<blockShift,
		Len: int64(n) << blockShift, Data: r.Data[o : o+n<<blockShift], Shell: m.io.Shell}
	c.startIO(&m.io)
}

func (c *Core) mendWritten(err error) {
	m := &c.mend
	r := m.req
	if err != nil {
		// The blocks were rotten and still are: nothing that was acked is lost by it.
		c.stats.Errors++
		r.Status = transport.StatusIO
	} else {
		n := m.now.count()
		r.Value += uint64(n)
		c.stats.Mended += uint64(n)
	}
	m.bad.without(m.now)
	m.page, m.now = 0, bitmap{}
	q := m.wait
	m.wait = reqQueue{}
	for w := q.pop(); w != nil; w = q.pop() {
		c.step(w)
	}
	c.mendNext()
}

// unmended reports whether a write may go to the device: not while a repair is
// writing the same blocks.
func (c *Core) unmended(r *Request) bool {
	m := &c.mend
	if m.page == 0 || m.page != r.page {
		return true
	}
	if x := m.now.and(r.span()); x.empty() {
		return true
	}
	m.wait.push(r)
	return false
}
