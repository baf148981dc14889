// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/cluster/rules"
	"braid/mdm/state"
	"braid/transport"
	"braid/transport/bio"
)

// byClients is a cluster in which mdm takes no copies out by itself.
func byClients(c Config) Config {
	c.Evict = false
	return c
}

// full1 has a server that is too small, for once.
func full1(c Config) Config {
	c.Room, c.Faults.Full = []int{4}, true
	return c
}

var schedules = []schedule{
	{rules.FlushMetadata, "power fails after a flush", shape(2, 2, 1, 1), func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		both := s.copies(0, 0)
		s.power(both...)
		s.up(both...)
	}},
	{rules.Verifier, "all copies lose an acked write", shape(2, 2, 1, 1), func(s *stage) {
		s.write(0, 0)
		both := s.copies(0, 0)
		s.power(both...)
		s.up(both...)
		s.run(5 * s1)
		s.attached(0)
		s.read(0, 0)
	}},
	{rules.Verifier, "a copy returns without its cache and acks the flush", byClients(shape(2, 2, 1, 1)),
		func(s *stage) {
			s.write(0, 0)
			b := s.copies(0, 0)[1]
			s.power(b)
			s.up(b)
			s.flush(0)
		}},
	{rules.UnbrokenSource, "the copy that forgot decides", byClients(shape(2, 2, 1, 1)), func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		s.write(0, 0)
		b := s.copies(0, 0)[1]
		s.dies(0)
		s.power(b)
		s.up(b)
		s.run(s1)
		s.next(0, true)
		s.attached(0)
		s.read(0, 0)
	}},
	{rules.ResolveFirst, "a value is read and vanishes", shape(2, 2, 1, 1), func(s *stage) {
		one := lone(s, 0)
		s.next(0, false)
		s.until("a client", s.volume(0).serving)
		for range 100 {
			for range 4 {
				s.ask(0, bio.Read, 0, 1)
			}
			s.run(100 * us)
		}
		_ = one
	}},
	{rules.UnionOfLogs, "only the second copy has the entry", shape(2, 2, 1, 1), func(s *stage) {
		lone(s, 0)
		s.next(0, false)
		s.attached(0)
	}},
	{rules.SkipDirty, "the tag moves on over a missed write", shape(2, 2, 1, 2), func(s *stage) {
		s.write(0, 0)
		s.write(0, 1)
		a, b := s.copies(0, 0)[0], s.copies(0, 0)[1]
		s.forgotten(a, b)
		s.kill(b)
		s.leaves(0, 0, b)
		s.write(0, 0) // b misses it
		s.flush(0)
		s.quiet(0, 0, a)
		s.hold(resyncs(transport.OpTags))
		s.up(b)
		s.caught("a comparison")
		s.write(0, 1)
		s.flush(0)
		s.run(2 * s1)
		s.quiet(0, 0, a, b)
		s.release()
	}},
	{rules.JoinBarrier, "an old map's write after the comparison", shape(2, 2, 1, 2), behindTheTarget},
	{rules.Adoption, "an old map's write after the comparison", shape(2, 2, 1, 2), behindTheTarget},
	{rules.ZombieReads, "the next client writes where the old one cannot look", shape(2, 2, 1, 1), func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a, b, old := s.copies(0, 0)[0], s.copies(0, 0)[1], s.client(0)
		s.read(0, 0)
		old.cutOff, a.cutOff = true, true
		s.next(0, false)
		s.apart(s.client(0), a)
		s.apart(old, b)
		s.attached(0)
		s.write(0, 0)
		zombieReads(s, old)
	}},
	{rules.StaleFirst, "a write is acked while the copy that failed is in sync", shape(2, 2, 1, 2), func(s *stage) {
		s.write(0, 0)
		s.write(0, cluster.BlocksPerChunk)
		a, c := s.copies(0, 0)[0], s.client(0)
		c.cutOff, a.cutOff = true, true
		a.disk.failNext.write = true
		toA := to(c, a, transport.OpWrite)
		s.hold(func(x *Conn, from int, m *message) bool { return toA(x, from, m) && m.h.Chunk == 1 })
		q := s.ask(0, bio.Write, 0, 1)
		s.ask(0, bio.Write, cluster.BlocksPerChunk, 1)
		s.run(300 * ms)
		s.release()
		c.cutOff, a.cutOff = false, false
		s.ends(q)
	}},
	{rules.NoSplit, "one copy has no room", full1(shape(2, 2, 1, 6)), func(s *stage) {
		for chunk := range uint64(6) {
			s.ends(s.ask(0, bio.Write, chunk*cluster.BlocksPerChunk, 1))
		}
	}},
	{rules.EpochFence, "a reader of an old map and a copy that was freed", shape(3, 2, 1, 1), func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a, b := s.copies(0, 0)[0], s.copies(0, 0)[1]
		c := s.client(0)
		spare := s.spare(0, 0)
		s.move(0, 0, a, spare)
		s.until("a target", func() bool { return s.isTarget(0, 0, spare) })
		s.knows(0)
		c.mapHeld = true
		s.leaves(0, 0, b)
		s.until("a freed copy", func() bool { return !b.core.Peek(s.volume(0).id, 0, 0).Stored })
		s.hold(to(c, a), to(c, spare))
		q := s.ask(0, bio.Read, 0, 1)
		s.run(s1)
		c.mapHeld = false
		s.release()
		s.ends(q)
	}},
	{rules.SkippedDirty, "skipped here before the comparison, applied there after it", shape(2, 2, 1, 2),
		func(s *stage) {
			a, b := missing1(s)
			c := s.client(0)
			s.hold(resyncs(transport.OpTags))
			s.up(b)
			s.caught("a comparison")
			s.hold(resyncs(transport.OpTags), to(c, a, transport.OpWrite))
			q := s.ask(0, bio.Write, 0, 1)
			s.run(20 * ms)
			s.hold(to(c, a, transport.OpWrite))
			s.run(3 * s1)
			s.release()
			s.ends(q)
		}},
	{rules.AttachFencesAll, "a copy that left is forgotten by the attach", shape(2, 2, 1, 1), func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a, b, old := s.copies(0, 0)[0], s.copies(0, 0)[1], s.client(0)
		old.cutOff, b.cutOff = true, true
		for !s.over() && s.inSync(0, 0, b) { // its lease is fresh to the end
			s.ask(0, bio.Read, 0, 1)
			s.run(50 * ms)
		}
		s.apart(old, a)
		s.next(0, false)
		s.apart(s.client(0), b)
		s.attached(0)
		s.write(0, 0)
		zombieReads(s, old)
	}},
	{rules.AttachDirties, "the old client's write is on the target only", shape(2, 2, 1, 2), func(s *stage) {
		a, b := missing1(s)
		c := s.client(0)
		s.hold(resyncs(transport.OpTags))
		s.up(b)
		s.caught("a comparison")
		b.cutOff = true // it cannot ask to join
		s.release()
		s.until("a clean target", func() bool {
			compared, left := s.ready(0, 0, b)
			return compared && left == 0
		})
		s.hold(to(c, a, transport.OpWrite))
		s.ask(0, bio.Write, 0, 1)
		s.run(50 * ms)
		s.dies(0)
		s.release()
		s.run(50 * ms)
		s.next(0, false)
		s.attached(0)
		s.run(s1)
		b.cutOff = false
		s.joins(0, 0, b)
	}},
	{rules.RecordedSource, "a copy from the one that forgot hides that", shape(3, 3, 1, 1), func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		three, c := s.copies(0, 0), s.client(0)
		s.quiet(0, 0, three...)
		s.power(three[2])
		s.leaves(0, 0, three[2])
		s.knows(0)
		s.write(0, 0)
		forgetful(s, c, three[:1], three[1])
		three[0].cutOff = false
		s.until("the forgetful copy", func() bool { return s.reach(three[0]) })
		s.up(three[2])
		c.cutOff = false
		s.run(5 * s1)
		three[1].cutOff = false
		s.run(5 * s1)
		s.together(c, three[0])
		s.read(0, 0)
	}},
	{rules.PlannedDropWaits, "the last unbroken copy was to move", shape(4, 3, 1, 1), func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		three, c := s.copies(0, 0), s.client(0)
		d := s.spare(0, 0)
		s.hold(resyncs(transport.OpTags))
		s.move(0, 0, three[0], three[2], d)
		s.caught("a comparison")
		s.w.mdm.idle = true // the leader ends between the join and what follows
		s.release()
		s.joins(0, 0, d)
		s.knows(0)
		s.write(0, 0)
		forgetful(s, c, []*Node{three[0], three[2], d}, three[1])
		s.w.mdm.idle = false
		for _, n := range []*Node{three[0], three[2], d} {
			n.cutOff = false
			s.until("a forgetful copy", func() bool { return s.reach(n) })
		}
		s.run(s1)
		if !s.over() && !s.holds(0, 0) {
			s.w.failf("no in-sync copy holds what was acked, but %s, which left by plan, does (rule 29)", three[1].name)
		}
		three[1].cutOff = false
		s.until("the unbroken copy", func() bool { return s.reach(three[1]) })
		c.cutOff = false
		for _, n := range s.w.nodes {
			s.together(c, n)
		}
	}},
}

// lone leaves a write on the second copy only, whose client dies, and names it.
func lone(s *stage, first uint64) *Node {
	s.write(0, first)
	s.flush(0)
	a, b := s.copies(0, 0)[0], s.copies(0, 0)[1]
	s.quiet(0, 0, a, b)
	s.hold(to(s.client(0), a, transport.OpWrite))
	s.ask(0, bio.Write, first, 1)
	s.run(50 * ms)
	s.dies(0)
	s.release()
	s.run(50 * ms)
	return b
}

// missing1 has the second copy out of the set and down; it has missed nothing.
func missing1(s *stage) (a, b *Node) {
	s.write(0, 0)
	a, b = s.copies(0, 0)[0], s.copies(0, 0)[1]
	s.forgotten(a, b)
	s.kill(b)
	s.leaves(0, 0, b)
	s.knows(0)
	return a, b
}

// forgotten flushes chunk 0 and has it leave the activity logs for good: that it
// left is durable with the next flush.
func (s *stage) forgotten(nodes ...*Node) {
	s.flush(0)
	s.quiet(0, 0, nodes...)
	s.write(0, cluster.BlocksPerChunk)
	s.flush(0)
	s.quiet(0, 1, nodes...)
}

// behindTheTarget has a copy come back that neither the client nor the source
// has heard of.
func behindTheTarget(s *stage) {
	a, b := missing1(s)
	c := s.client(0)
	a.mapHeld, c.mapHeld = true, true
	s.up(b)
	s.run(3 * s1)
	s.write(0, 0)
	a.mapHeld, c.mapHeld = false, false
}

// zombieReads has a client that another one replaced read what was overwritten.
func zombieReads(s *stage, old *Client) {
	if s.over() || old.ended {
		return
	}
	q := s.volume(0).ghostRead(old, 0)
	s.run(3 * s1)
	_ = q
}

// forgetful has some nodes lose their caches at a time when mdm is away and does
// not learn of it before the lease of kept, which loses nothing, has run out, too.
func forgetful(s *stage, c *Client, lose []*Node, kept *Node) {
	s.mdmDown()
	c.cutOff, kept.cutOff = true, true
	for _, n := range lose {
		n.cutOff = true
		s.apart(c, n)
	}
	s.power(lose...)
	s.up(lose...)
	s.mdmUp()
	s.until("leases run out", func() bool {
		for _, n := range append([]*Node{kept}, lose...) {
			if s.reach(n) {
				return false
			}
		}
		return true
	})
}

// reach reports whether mdm believes that a node is up.
func (s *stage) reach(n *Node) bool {
	_, _, up := s.w.mdm.st.Reach(n.dev)
	return up
}

// spare is a node that has no copy of the chunk.
func (s *stage) spare(i int, chunk uint64) *Node {
	for _, n := range s.w.nodes {
		if !s.inSync(i, chunk, n) {
			return n
		}
	}
	return nil
}

// move plans that a chunk's group lies on those nodes.
func (s *stage) move(i int, chunk uint64, want ...*Node) {
	if s.over() {
		return
	}
	x := state.Move{PG: s.w.pgOf(s.volume(i), chunk).ID}
	for _, n := range want {
		x.Want = append(x.Want, n.dev)
	}
	m := s.w.mdm
	m.commit(m.st.Move(state.MovePlan{Moves: []state.Move{x}}, "a schedule wants it", m.time()))
	m.tend()
}

// holds reports whether some in-sync copy has the newest acked version of a block.
func (s *stage) holds(i int, first uint64) bool {
	v := s.volume(i)
	chunk, at := v.locate(first)
	h := &v.oracle.blocks[first]
	for _, n := range s.copies(i, chunk) {
		if n.state != nodeUp {
			continue
		}
		p := n.core.Peek(v.id, 0, chunk)
		if x := n.content(&p, at); x != nil {
			if id, _ := idOf(x[:]); id == h.at(h.low).id {
				return true
			}
		}
	}
	return false
}
