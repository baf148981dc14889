// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"flag"
	"slices"
	"testing"

	"braid/cluster"
	"braid/cluster/rules"
)

var seedFlag = flag.Uint64("seed", 0, "replay this seed of TestRandom")

// walk brings C out of sync and back, some times, while a client writes, is
// replaced, loses its connection, and C loses power.
func (w *world) walk() {
	w.t.Helper()
	for range 3 {
		for range w.rnd.IntN(30) {
			w.client()
		}
		w.evict()
		w.disconnect(devC)
		for range w.rnd.IntN(20) {
			w.client()
		}
		w.announce()
		w.connect(devC)
		for n := 0; !w.counts(devC) && n < 3000; n++ {
			switch {
			case w.rnd.IntN(5) > 0 || n > 2000:
				w.step()
			default:
				w.client()
			}
			if n > 2000 {
				w.heal()
			}
			switch w.rnd.IntN(400) {
			case 0:
				w.log("crash of C")
				w.crashTarget()
			case 1:
				w.log("connection of the source ends")
				w.core.PeerDown(w.now, devA+cluster.DeviceID(w.rnd.IntN(2)))
			case 2:
				w.unknown = 1
			}
		}
		if w.off == 0 || w.counts(devC) {
			w.joined()
		}
	}
}

// heal lets the client finish.
func (w *world) heal() {
	if w.nodes[devC].conn == 0 {
		w.connect(devC)
	}
	w.resolve()
	for _, f := range slices.Clone(w.flight) {
		for _, id := range slices.Clone(f.need) {
			w.deliver(f, id)
		}
	}
}

// client does one thing that a client does.
func (w *world) client() {
	switch n := w.rnd.IntN(100); {
	case n < 35:
		w.issue(uint64(w.rnd.IntN(chunks)), uint32(w.rnd.IntN(4)), w.rnd.IntN(5) == 0)
	case n < 90:
		if len(w.flight) > 0 {
			f := w.flight[w.rnd.IntN(len(w.flight))]
			w.deliver(f, f.need[w.rnd.IntN(len(f.need))])
		}
	case n < 94:
		w.flush()
	case n < 96:
		w.disconnect(devC)
	case n < 99:
		if w.nodes[devC].conn == 0 && (w.counts(devC) || w.pg().Target == devC) {
			w.connect(devC)
		}
	default:
		w.log("attach")
		w.attach()
	}
}

// Goal: whatever happens during a resync, the copies are equal when it is over.
// Method: seeded walks; `go test ./server/resync -run TestRandom -seed N` replays
// one.
func TestRandom(t *testing.T) {
	first, n := uint64(1), uint64(40)
	if testing.Short() {
		n = 5 // one goroutine: the race detector has nothing to find
	}
	if *seedFlag != 0 {
		first, n = *seedFlag, 1
	}
	var sum Stats
	for seed := first; seed < first+n && !t.Failed(); seed++ {
		w := newWorld(t, seed, 0)
		w.walk()
		if t.Failed() {
			t.Fatalf("replay with -seed %d", seed)
		}
		s := w.core.Stats()
		sum.Copied += s.Copied
		sum.Repeated += s.Repeated
		sum.Rounds += s.Rounds
	}
	if *seedFlag == 0 && !testing.Short() && (sum.Copied < 100 || sum.Repeated < 10 || sum.Rounds < 40) {
		t.Errorf("too little happened: %+v", sum)
	}
}

// Goal: the checks of this test see what each rule is for. Method: without the
// rule some walk ends with copies that differ; the search begins shortly before a
// seed that is known to show it.
func TestMutations(t *testing.T) {
	for _, c := range []struct {
		rule rules.Rule
		from uint64
	}{{rules.SkipDirty, 98}, {rules.ChunkLock, 1}, {rules.Adoption, 1}, {rules.SkippedDirty, 1},
		{rules.AttachDirties, 1}} {
		caught := false
		for seed := c.from; seed < c.from+200 && !caught; seed++ {
			w := newWorld(t, seed, rules.Set(c.rule))
			w.walk()
			if caught = w.differs; caught {
				t.Logf("%v: seed %d", c.rule, seed)
			}
		}
		if !caught {
			t.Errorf("without %v nothing is found", c.rule)
		}
	}
}
