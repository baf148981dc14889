// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
)

// faults are schedules of what hardly comes about by chance, or what chance
// would have no oracle for.
var faults = []schedule{
	{name: "power fails between log and data", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		a := s.copies(0, 0)[0]
		q := s.ask(0, bio.Write, 0, 1)
		s.until("data under way", func() bool {
			return slices.ContainsFunc(a.ios, func(f *flying) bool { return !f.io.Meta })
		})
		s.power(a)
		s.ends(q)
		s.up(a)
		s.joins(0, 0, a)
	}},
	{name: "a zombie writes and reads after the fence", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		old, a, b := s.client(0), s.copies(0, 0)[0], s.copies(0, 0)[1]
		s.hold(to(old, a), to(old, b))
		s.ask(0, bio.Write, 0, 1)
		s.run(10 * ms)
		s.volume(0).ghostRead(old, 1)
		s.next(0, false)
		s.attached(0)
		s.write(0, 0)
		s.release()
		s.run(100 * ms)
		s.read(0, 0)
	}},
	{name: "a full activity log", cfg: logsOf2(shape(2, 2, 1, 12)), play: func(s *stage) {
		var all []*request
		for chunk := range uint64(12) {
			all = append(all, s.ask(0, bio.Write, chunk*cluster.BlocksPerChunk, 1))
		}
		all = append(all, s.ask(0, bio.Flush, 0, 0))
		for _, q := range all {
			s.ends(q)
		}
	}},
	{name: "the source of a resync dies", cfg: shape(3, 3, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		three := s.copies(0, 0)
		s.kill(three[2])
		s.leaves(0, 0, three[2])
		s.write(0, 1)
		s.hold(resyncs(transport.OpTags, transport.OpSums, transport.OpCopy))
		s.up(three[2])
		s.caught("a comparison")
		s.power(three[0], three[1]) // whichever is the source
		s.release()
		s.up(three[1])
		s.attached(0)
		s.leaves(0, 0, three[0])
		s.joins(0, 0, three[2])
		s.up(three[0])
		s.joins(0, 0, three[0])
	}},
	{name: "an attach cannot reach a copy", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		a := s.copies(0, 0)[0]
		s.dies(0)
		s.power(a)
		s.next(0, false)
		s.attached(0)
		s.write(0, 0)
		s.up(a)
		s.joins(0, 0, a)
	}},
	{name: "a stale copy has the larger tag", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		b := lone(s, 0)
		if !s.over() {
			b.stop()
		}
		s.until("a clean stop", func() bool { return b.state == nodeDown })
		s.next(0, false)
		s.attached(0)
		s.leaves(0, 0, b)
		s.up(b)
		s.joins(0, 0, b)
	}},
	{name: "a block rots on one copy", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a := s.copies(0, 0)[0]
		s.quiet(0, 0, s.copies(0, 0)...)
		s.rot(a, 0)
		for range 8 {
			s.read(0, 0) // the other copy has it
		}
		s.write(0, 0)
	}},
	{name: "a device reads errors", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a := s.copies(0, 0)[0]
		a.disk.failRead = []span{{0, a.disk.Size()}}
		for range 8 {
			s.read(0, 0)
		}
	}},
	{name: "a disk returns as it was before", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a := s.copies(0, 0)[0]
		s.kill(a)
		image := a.disk.clone()
		s.up(a)
		s.joins(0, 0, a)
		s.write(0, 0)
		s.flush(0)
		s.kill(a)
		s.leaves(0, 0, a)
		s.up(a)
		s.joins(0, 0, a)
		s.write(0, 0)
		s.flush(0)
		s.power(a)
		if !s.over() { // a snapshot of the machine that it is
			a.disk.durable, a.disk.view = image.durable, image.view
			a.disk.cached, a.disk.base = image.cached, image.base
		}
		s.up(a)
		s.run(10 * s1)
		if !s.over() && s.inSync(0, 0, a) {
			s.w.failf("an older image of a disk is in sync (rule 21)")
		}
		s.w.cfg.Resync = false // it stays out for good: nobody waits for it
	}},
	{name: "groups move under load", cfg: shape(4, 2, 2, 2), play: func(s *stage) {
		for i := range s.w.volumes {
			s.write(i, 0)
		}
		for range 3 {
			a, d := s.copies(0, 0)[0], s.spare(0, 0)
			s.move(0, 0, a, d)
			for !s.over() && len(s.copies(0, 0)) != 2 || !s.inSync(0, 0, d) {
				s.ask(0, bio.Write, 0, 1)
				s.ask(1, bio.Write, 0, 1)
				s.run(20 * ms)
				if s.over() {
					return
				}
			}
		}
	}},
	{name: "a source fails a write while nothing is asked of it", cfg: shape(2, 2, 1, 2), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a, b, c := s.copies(0, 0)[0], s.copies(0, 0)[1], s.client(0)
		s.kill(b)
		s.leaves(0, 0, b)
		s.write(0, 0)
		s.flush(0)
		s.hold(to(c, b, transport.OpLock))
		s.up(b)
		s.caught("a lock")
		inc := a.core.Incarnation()
		a.disk.failNext.write = true
		q := s.ask(0, bio.Write, cluster.BlocksPerChunk, 1)
		s.until("another incarnation", func() bool { return a.core.Incarnation() != inc })
		s.run(s1) // mdm knows, and the target has heard
		for _, x := range slices.Clone(b.conns) {
			if x.c.client == c {
				x.c.cut()
			}
		}
		s.release()
		s.ends(q)
		s.joins(0, 0, b)
	}},
	{name: "nobody hears the manager's answer", cfg: shape(2, 2, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		a, b := s.copies(0, 0)[0], s.copies(0, 0)[1]
		s.w.mdm.mute = 100
		s.power(b)
		s.leaves(0, 0, b)
		s.write(0, 0)
		s.up(b)
		s.run(2 * s1)
		s.w.mdm.mute = 0
		s.joins(0, 0, b)
		s.joins(0, 0, a)
	}},
	{name: "every server loses power under a guest that lives", cfg: shape(3, 3, 1, 1), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		s.write(0, 0)
		s.power(s.w.nodes...)
		s.up(s.w.nodes...)
		s.run(5 * s1)
		s.attached(0)
		s.read(0, 0)
	}},
}

// logsOf2 is a cluster whose logs hold a few regions and cannot grow.
func logsOf2(c Config) Config {
	c.Logs = 2
	return c
}

// rot changes a byte of a block on the disk of a node.
func (s *stage) rot(n *Node, first uint64) {
	if s.over() {
		return
	}
	v := s.volume(0)
	chunk, in := v.locate(first)
	p := n.core.Peek(v.id, 0, chunk)
	at := p.At/sectorSize + int64(in)
	bad := *n.disk.view[at]
	bad[100] ^= 1
	n.disk.view[at], n.disk.durable[at] = &bad, &bad
}
