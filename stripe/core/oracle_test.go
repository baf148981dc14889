// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"errors"
	"slices"

	"braid/cluster"
	"braid/transport/bio"
)

// submit makes a random request, and tells the oracle.
func (s *sim) submit() {
	j := &order{s: s, versions: map[int]int{}}
	j.r.Done = j
	s.live[&j.r] = j
	j.r.Op = []bio.Op{bio.Read, bio.Read, bio.Read, bio.Write, bio.Write, bio.Write, bio.Write, bio.Trim,
		bio.WriteZeroes, bio.Flush, bio.BlockStatus}[s.rng.IntN(11)]
	length := 1 + s.rng.IntN(s.cfg.maxLength)
	if s.cfg.longTrims && j.r.Op != bio.Read && j.r.Op != bio.Write && s.rng.IntN(2) == 0 {
		length = 1 + s.rng.IntN(int(s.cfg.size))
	}
	off := s.rng.IntN(int(s.cfg.size) - length + 1)
	if s.rng.IntN(2) == 0 { // aligned
		length = (length + blockMask) &^ blockMask
		off = min(off&^blockMask, int(s.cfg.size)-length)
	}
	j.r.Off, j.r.Len = uint64(off), uint64(length)
	if s.rng.IntN(4) == 0 {
		j.r.Flags = bio.FUA
	}
	switch j.r.Op {
	case bio.Flush:
		j.r.Off, j.r.Len = 0, 0
		j.snap = slices.Clone(s.stable)
	case bio.Read:
		j.r.Data = make([]byte, length)
		j.want = slices.Clone(s.model[off : off+length])
	case bio.Write:
		j.r.Data = make([]byte, length)
		for i := range j.r.Data {
			j.r.Data[i] = byte(s.rng.Uint32())
		}
		copy(s.model[off:], j.r.Data)
		s.newVersions(j, j.r.Off, j.r.Off+j.r.Len)
	case bio.WriteZeroes, bio.Trim:
		clear(s.model[off : off+length])
		s.newVersions(j, j.r.Off, j.r.Off+j.r.Len)
	}
	s.core.Submit(s.now, &j.r)
}

func (s *sim) newVersions(j *order, off, end uint64) {
	for b := int(off / cluster.BlockSize); b <= int((end-1)/cluster.BlockSize); b++ {
		s.history[b] = append(s.history[b], hashBlock(s.model[b*cluster.BlockSize:][:cluster.BlockSize]))
		j.versions[b] = len(s.history[b]) - 1
	}
}

// completed checks a request that has ended.
func (s *sim) completed(r *bio.Request) {
	j := s.live[r]
	if j == nil {
		s.failf("a request completes twice")
		return
	}
	delete(s.live, r)
	s.done++
	if r.Err != nil {
		if s.cfg.badReads > 0 && r.Op != bio.Flush && errors.Is(r.Err, bio.ErrIO) {
			s.marks["read-failed"]++ // every replica was spoilt
			return
		}
		if s.lost == nil || !errors.Is(r.Err, s.lost) {
			s.failf("%s [%d,+%d) fails: %v", r.Op, r.Off, r.Len, r.Err)
		}
		return
	}
	switch r.Op {
	case bio.Read:
		if !bytes.Equal(r.Data, j.want) {
			s.failf("read [%d,+%d) returns the wrong bytes", r.Off, r.Len)
		}
	case bio.Flush:
		s.checkFlush(j)
	case bio.BlockStatus:
		total := uint64(0)
		for _, e := range r.Extents {
			total += e.Length
		}
		if total == 0 || total > r.Len {
			s.failf("block status of [%d,+%d) covers %d bytes", r.Off, r.Len, total)
		}
	case bio.Write, bio.Trim, bio.WriteZeroes:
		s.checkWrite(j)
	}
	// Whoever still reads or writes these bytes will be caught.
	for i := range r.Data {
		r.Data[i] = 0xDB
	}
}

// checkWrite: an acked write is on each in-sync replica at that instant
// (invariant 1); with FUA it is durable there.
func (s *sim) checkWrite(j *order) {
	for b, version := range j.versions {
		s.stable[b] = max(s.stable[b], version)
		for _, d := range s.inSync(b) {
			key := s.key(b)
			if cd := &s.core.devs[s.core.devIndex[d.id]]; cd.inc != cluster.Incarnation(d.inc) {
				continue // it lost its cache; the core does not know yet, and will drop it
			}
			if hashBlock(d.current[key]) != s.history[b][version] {
				s.failf("%s of block %d is acked but not on device %d", j.r.Op, b, d.id)
			}
			if j.r.Flags&bio.FUA != 0 && j.r.Op == bio.Write && hashBlock(d.durable[key]) != s.history[b][version] {
				s.failf("FUA write of block %d is acked but not durable on device %d", b, d.id)
			}
		}
	}
}

// checkFlush: each in-sync replica durably holds, per block, the value at the
// flush's call or a later one (invariant 2).
func (s *sim) checkFlush(j *order) {
	for b := range s.history {
		if j.snap[b] == 0 && !s.cfg.before.GuestAlive && !s.isOpen(b) {
			continue // a fresh attach has promised nothing about it yet
		}
		for _, d := range s.inSync(b) {
			if !slices.Contains(s.history[b][j.snap[b]:], hashBlock(d.durable[s.key(b)])) {
				s.failf("flush is acked, but device %d holds no value of block %d since its call durably", d.id, b)
				return
			}
		}
	}
}

// isOpen reports whether requests pass to a block.
func (s *sim) isOpen(block int) bool {
	chunk, _ := s.core.layout.Locate(uint64(block) * cluster.BlockSize)
	st := s.core.gate.chunks[chunk]
	return s.core.groups[s.core.groupOf(chunk)].collected && (st == nil || !st.suspect)
}

// key is where a volume's block lies on a device.
func (s *sim) key(block int) uint64 {
	chunk, in := s.core.layout.Locate(uint64(block) * cluster.BlockSize)
	return chunk*cluster.BlocksPerChunk + uint64(in/cluster.BlockSize)
}

func (s *sim) inSync(block int) (list []*fakeDevice) {
	chunk, _ := s.core.layout.Locate(uint64(block) * cluster.BlockSize)
	for _, id := range s.m.VolumePG(s.m.Volumes[7], chunk).InSync {
		list = append(list, s.devs[id-1])
	}
	return list
}

// checkInvariants looks at the core's books.
func (s *sim) checkInvariants() {
	c := s.core
	if c.lost != nil {
		return
	}
	open := make([]int, len(c.reqs))
	old, fresh := 0, 0
	for i := range c.pieces {
		p := &c.pieces[i]
		if !p.live {
			continue
		}
		open[p.req]++
		n := 0
		for ref := int32(i) * MaxCopies; ref < int32(i+1)*MaxCopies; ref++ {
			switch c.copies[ref].kind {
			case copyNone, copyDone:
			case copyLoose:
				s.failf("a copy of a piece is in no list")
			default:
				n++
			}
		}
		if n != int(p.open) {
			s.failf("piece %d has %d open copies and counts %d", i, n, p.open)
		}
		switch {
		case !p.isWrite() || p.parked:
		case p.interval < c.interval || p.reacks > 0:
			old++
		default:
			fresh++
		}
	}
	if old != c.flush.old || fresh != c.flush.fresh {
		s.failf("%d old and %d fresh writes, counted %d and %d", old, fresh, c.flush.old, c.flush.fresh)
	}
	for i := range c.reqs {
		if c.reqs[i].r != nil && int(c.reqs[i].open) != open[i] {
			s.failf("request %d has %d pieces and counts %d", i, open[i], c.reqs[i].open)
		}
	}
}

// heal turns the faults off and lets everything end.
func (s *sim) heal() {
	s.healing = true
	for _, d := range s.devs {
		d.chunks = 0
	}
	for range 400_000 {
		if s.fail != nil || len(s.live) == 0 && s.core.flush.step == flushIdle {
			break
		}
		s.step()
	}
	if s.fail == nil && len(s.live) > 0 && s.lost == nil {
		s.failf("%d requests do not end after healing; waiting: %+v", len(s.live), s.core.Waiting(s.now, 0))
	}
}

// checkRest: replicas are equal, and nothing is left behind.
func (s *sim) checkRest() {
	if s.fail != nil {
		return
	}
	c := s.core
	for range 10 { // what was sent is told to the core
		for _, id := range s.linkIDs() {
			s.closeLink(id)
		}
		s.effects()
	}
	if s.lost != nil {
		if len(s.live) > 0 {
			s.failf("%d requests were not ended when the volume was lost", len(s.live))
		}
		return
	}
	if !c.Idle() || len(c.freeReqs) != len(c.reqs)-maxJobs || len(c.freePieces)+len(c.jobFree) != len(c.pieces) ||
		len(c.freeFrames) != len(c.frames) || c.locks.Used() != 0 || c.readsOut != 0 {
		s.failf("left behind: requests %d, pieces %d, frames %d, locks %d, reads %d",
			len(c.reqs)-maxJobs-len(c.freeReqs), len(c.pieces)-len(c.freePieces)-len(c.jobFree),
			len(c.frames)-len(c.freeFrames), c.locks.Used(), c.readsOut)
	}
	for b := range s.history {
		want := hashBlock(s.model[b*cluster.BlockSize:][:cluster.BlockSize])
		for _, d := range s.inSync(b) {
			if hashBlock(d.current[s.key(b)]) != want {
				s.failf("at rest, block %d differs on device %d", b, d.id)
			}
		}
	}
}
