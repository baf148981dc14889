// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
)

// second is the first block of chunk 1, which nobody has written.
const second = cluster.BlocksPerChunk

// roomless lets a write find no room on a node.
func roomless(s *stage, a *Node) *request {
	a.setFull(true)
	q := s.ask(0, bio.Write, second, 1)
	s.until("a write without room", func() bool { return s.client(0).core.Stats().Roomless > 0 })
	return q
}

// waits lets time pass in which a request must not end.
func (s *stage) waits(q *request, d int64) {
	if s.run(d); !s.over() && q.over {
		s.stuck = "a write that has no room: it has ended"
	}
}

// spaces are schedules of devices that have no room.
var spaces = []schedule{
	{name: "a write waits for room, and nothing else does", cfg: shape(2, 2, 1, 3), play: func(s *stage) {
		s.write(0, 0)
		a := s.copies(0, 1)[0]
		q := roomless(s, a)
		s.read(0, 0)
		s.write(0, 0)
		s.flush(0)
		s.ends(s.ask(0, bio.Trim, 0, cluster.BlocksPerChunk))
		s.waits(q, 5*s1)
		a.setFull(false)
		s.ends(q)
		s.flush(0)
	}},
	{name: "each server dies while a write waits for room", cfg: byClients(shape(2, 2, 1, 3)), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		a, b := s.copies(0, 1)[0], s.copies(0, 1)[1]
		q := roomless(s, a)
		s.flush(0)
		s.kill(a)
		s.up(a)
		s.waits(q, 2*s1)
		s.kill(b)
		s.up(b)
		s.waits(q, 2*s1)
		a.setFull(false)
		s.ends(q)
	}},
	{name: "the full device leaves", cfg: shape(3, 2, 1, 3), play: func(s *stage) {
		s.write(0, 0)
		a := s.copies(0, 1)[0]
		q := roomless(s, a)
		s.kill(a)
		s.leaves(0, 1, a)
		s.ends(q)
		s.up(a)
		a.setFull(false)
	}},
	{name: "a group moves while a write waits for room", cfg: shape(3, 2, 1, 3), play: func(s *stage) {
		s.write(0, second)
		s.flush(0)
		s.ends(s.ask(0, bio.Trim, second, cluster.BlocksPerChunk))
		a, b, spare := s.copies(0, 1)[0], s.copies(0, 1)[1], s.spare(0, 1)
		s.run(s1) // what was trimmed is free
		q := roomless(s, a)
		s.move(0, 1, b, spare)
		s.joins(0, 1, spare)
		s.ends(q)
		a.setFull(false)
	}},
	{name: "the client dies before the other copy has given the write back", cfg: shape(2, 2, 1, 3),
		play: func(s *stage) {
			s.write(0, 0)
			a, b := s.copies(0, 1)[0], s.copies(0, 1)[1]
			a.setFull(true)
			s.hold(to(s.client(0), b, transport.OpTrim))
			s.ask(0, bio.Write, second, 1)
			s.caught("the undoing of a write")
			s.dies(0)
			s.release()
			s.next(0, false)
			s.run(2 * s1)
			a.setFull(false)
			s.attached(0)
			s.read(0, second)
			s.write(0, second)
		}},
	{name: "another client takes the volume while a write waits for room", cfg: shape(2, 2, 1, 3),
		play: func(s *stage) {
			s.write(0, 0)
			a := s.copies(0, 1)[0]
			roomless(s, a)
			s.next(0, false)
			s.attached(0)
			q := s.ask(0, bio.Write, second, 1)
			s.waits(q, s1)
			a.setFull(false)
			s.ends(q)
		}},
}

// Goal: a write that finds no room waits for it and ends well, whatever happens
// meanwhile, and holds nothing up but what overlaps. Method: directed schedules.
func TestSpace(t *testing.T) {
	for _, x := range spaces[:max(len(spaces)/slow, 2)] {
		t.Run(x.name, func(t *testing.T) { x.well(t) })
	}
}
