// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm/state"
	"braid/transport/bio"
)

// losses are schedules of writes that go astray, and of devices that never return.
var losses = []schedule{
	{name: "a write lands at another chunk's place", cfg: shape(2, 2, 1, 2), play: func(s *stage) {
		a := stray(s)
		s.flush(0)
		s.mended(a)
	}},
	{name: "a write lands at another chunk's place, and the power fails", cfg: shape(2, 2, 1, 2), play: func(s *stage) {
		a := stray(s)
		s.flush(0)
		s.power(a)
		s.leaves(0, 0, a)
		s.write(0, 1)
		s.up(a)
		s.joins(0, 0, a)
		s.mended(a)
	}},
	{name: "a write lands at another chunk's place, and the client dies", cfg: shape(2, 2, 1, 2), play: func(s *stage) {
		a := stray(s)
		s.flush(0)
		s.dies(0)
		s.next(0, false)
		s.attached(0)
		s.mended(a)
	}},
	{name: "a device never returns, and a fresh one comes", cfg: shape(3, 2, 1, 2), play: func(s *stage) {
		for chunk := range uint64(2) {
			s.write(0, chunk*cluster.BlocksPerChunk)
		}
		s.flush(0)
		s.grace(3 * time.Second)
		a, spare := s.copies(0, 0)[0], s.spare(0, 0)
		s.lose(a)
		s.leaves(0, 0, a)
		s.ask(0, bio.Write, 0, 1)
		s.planned()
		s.w.mark(markGrace)
		s.joins(0, 0, spare)
		s.write(0, 0)
		s.forget(a)
		d := s.fresh()
		s.move(0, 0, d, spare)
		for !s.over() && !s.inSync(0, 0, d) {
			s.ask(0, bio.Write, 0, 1)
			s.run(20 * ms)
		}
		s.w.mark(markFresh)
	}},
}

// stray has a write to chunk 0 of the first copy land in chunk 1, and names the copy.
func stray(s *stage) *Node {
	for chunk := range uint64(2) {
		s.write(0, chunk*cluster.BlocksPerChunk)
	}
	s.forgotten(s.copies(0, 0)...)
	a := s.copies(0, 0)[0]
	if !s.over() {
		a.disk.astray = a.core.Peek(s.volume(0).id, 0, 1).At
	}
	s.write(0, 0)
	return a
}

// mended reads until a copy has put back everything.
func (s *stage) mended(n *Node) {
	for end := s.w.now + 60*s1; !s.over() && len(n.disk.wrong) > 0; {
		if s.w.now > end {
			s.stuck = "a mended disk"
		}
		s.read(0, 0)
		s.read(0, cluster.BlocksPerChunk)
		s.write(0, 2)
		s.flush(0)
		s.run(100 * ms)
	}
}

// grace sets how long a device may be away.
func (s *stage) grace(d time.Duration) {
	if s.over() {
		return
	}
	m := s.w.mdm
	next := m.st.Settings()
	next.Grace = d
	tx, err := m.st.Set(next, m.time())
	if err != nil {
		s.w.failf("grace: %v", err)
		return
	}
	m.commit(tx)
}

// lose ends a node for good.
func (s *stage) lose(n *Node) {
	s.power(n)
	n.gone = true
}

// planned waits until mdm has groups lie elsewhere, of which the grace is over.
func (s *stage) planned() {
	m := s.w.mdm
	s.until("a plan", func() bool {
		plan, err := m.st.PlanMoves(state.Membership{}, m.time())
		if err != nil || len(plan.Moves) == 0 {
			return false
		}
		m.commit(m.st.Move(plan, "devices changed", m.time()))
		m.tend()
		return true
	})
}

// forget removes a device that is lost.
func (s *stage) forget(n *Node) {
	if s.over() {
		return
	}
	m := s.w.mdm
	tx, err := m.st.RemoveDevice(n.dev, true, m.time())
	if err != nil {
		s.w.failf("remove: %v", err)
		return
	}
	m.commit(tx)
}

// fresh adds a node with an empty device.
func (s *stage) fresh() *Node {
	w := s.w
	i := len(w.nodes)
	n := newNode(w, i, w.cfg.diskSize(i))
	n.cfg = w.nodes[0].cfg
	if s.over() {
		return n
	}
	w.nodes = append(slices.Clip(w.nodes), n)
	s.up(n)
	s.until("a fresh device", func() bool { return n.dev != 0 })
	return n
}

// Goal: what a stray write spoils is found and mended and never served, and the
// copies of a device that is lost are made anew. Method: directed schedules; every
// read is held against the oracle.
func TestLosses(t *testing.T) {
	for _, x := range losses[:max(len(losses)/slow, 1)] {
		t.Run(x.name, func(t *testing.T) { x.well(t) })
	}
}

// Goal: the oracle would notice a stray write that is served. Method: the checksum
// goes with the bytes, so that nothing but the oracle can tell.
func TestServedStrayWriteIsCaught(t *testing.T) {
	x := schedule{cfg: shape(2, 2, 1, 2), play: func(s *stage) {
		a := stray(s)
		s.flush(0)
		a.disk.wrong = nil // the checks of the copies are told of nothing
		s.read(0, 0)
		s.write(0, 0)
		s.flush(0)
	}}
	if s := x.run(0); s.w.err == nil {
		t.Error("nobody noticed")
	}
}
