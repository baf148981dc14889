// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"strings"
	"testing"

	"braid/cluster/rules"
	"braid/transport/bio"
)

// planted is a mistake around the cores, and what has to find it.
var planted = []struct {
	name  string
	plant plant
	want  string
}{
	{"a frame is never let go of", plantFrame, "something is left behind (invariant 15): c0.1"},
	{"a request is counted for ever", plantTicket, "something is left behind (invariant 15): "},
	{"a copy is written a second time", plantCopy, "(invariant 13)"},
}

// Goal: what is left behind, and a copy that comes late, are found. Method: a
// schedule with a resync that ends well, and with a planted mistake does not.
func TestPlantedMistakes(t *testing.T) {
	var next plant
	x := schedule{name: "a resync and writes", cfg: shape(2, 2, 1, 2), play: func(s *stage) {
		s.write(0, 0)
		s.flush(0)
		b := s.copies(0, 0)[1]
		s.kill(b)
		s.leaves(0, 0, b)
		s.write(0, 0)
		s.w.cfg.plant = next
		s.up(b)
		s.joins(0, 0, b)
		for range 3 {
			s.write(0, 0)
		}
		s.run(30 * s1)
	}}
	x.well(t)
	for _, p := range planted[:max(len(planted)/slow, 1)] {
		next = p.plant
		s := x.run(0)
		if !s.w.sown || s.w.err == nil || !strings.Contains(s.w.err.Error(), p.want) {
			t.Errorf("%s: made %v, the end is %v%s; want %q", p.name, s.w.sown, s.w.err, stuckText(s), p.want)
		} else {
			t.Logf("%s: %v", p.name, s.w.err)
		}
	}
}

// Goal: a flush that another incarnation answers than the writes is found at its
// ack. Method: rule 5 is off, a copy comes back without its cache.
func TestOneIncarnation(t *testing.T) {
	for _, x := range schedules {
		if x.rule == rules.Verifier && !x.cfg.Evict {
			if s := x.run(rules.Set(x.rule)); s.w.err == nil || !strings.Contains(s.w.err.Error(), "(invariant 14)") {
				t.Errorf("%s: %v%s", x.name, s.w.err, stuckText(s))
			}
		}
	}
}

// Goal: bytes that differ from their checksum on one copy are found at the end.
// Method: a block rots when all is at rest.
func TestRotAtTheEnd(t *testing.T) {
	s := newStage(shape(2, 2, 1, 1))
	s.write(0, 0)
	s.ends(s.ask(0, bio.Flush, 0, 0))
	s.w.settle()
	if s.over() {
		t.Fatal(s.w.err)
	}
	s.rot(s.copies(0, 0)[1], 0)
	if s.w.identical(); s.w.err == nil {
		t.Error("nobody noticed")
	}
}
