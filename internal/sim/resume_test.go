// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"
	"testing"

	"braid/transport"
	"braid/transport/bio"
)

// soleCopy flushes a write, has the second copy leave for good, and names the first.
func soleCopy(s *stage) *Node {
	s.write(0, 0)
	s.flush(0)
	a, b := s.copies(0, 0)[0], s.copies(0, 0)[1]
	s.kill(b)
	s.leaves(0, 0, b)
	s.knows(0)
	return a
}

// Goal: a guest is not resumed on a copy that was whole at the attach and has lost
// its cache before the chunk was resolved (rule 6), though the client had nothing
// unflushed on it by then. Method: power fails while the resolver's stamp is on its
// way to the only copy.
func TestLastCopyForgetsDuringAResume(t *testing.T) {
	s := newStage(shape(2, 2, 1, 1))
	a := soleCopy(s)
	s.write(0, 1)
	s.dies(0)
	s.next(0, true)
	s.hold(func(x *Conn, from int, m *message) bool {
		return x.client != nil && from == sideClient && m.h.Op == transport.OpStamp
	})
	s.caught("a stamp")
	s.power(a)
	s.up(a)
	s.run(s1)
	s.release()
	s.attached(0)
	s.read(0, 1)
	s.finish()
	if s.over() || s.w.marks["resume failed: no source"] == 0 {
		t.Fatalf("%s\n\nthe guest goes on; the end is %v%s", s.w.Trace(), s.w.err, stuckText(s))
	}
}

// Goal: a resumed guest's volume whose inheritance is resolved is like any other:
// its last copy may lose its cache with a write under way that nobody acknowledged.
// Method: that, after a resume and a flush; the write has to end well.
func TestResumedVolumeOutlivesAForgetfulCopy(t *testing.T) {
	s := newStage(shape(2, 2, 1, 1))
	a := soleCopy(s)
	s.write(0, 0)
	s.dies(0)
	s.next(0, true)
	s.attached(0)
	s.flush(0)
	q := s.ask(0, bio.Write, 0, 1)
	s.until("data under way", func() bool {
		return slices.ContainsFunc(a.ios, func(f *flying) bool { return !f.io.Meta })
	})
	s.power(a)
	s.up(a)
	s.ends(q)
	s.read(0, 0)
	s.finish()
	if s.over() || q.orphan || s.w.marks["resume failed: no source"] > 0 {
		t.Fatalf("%s\n\nthe end is %v%s", s.w.Trace(), s.w.err, stuckText(s))
	}
}
