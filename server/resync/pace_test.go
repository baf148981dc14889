// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"testing"
	"time"

	"braid/cluster"
)

// paced is a pacer beside clients whose latency grows with the rate of the copying,
// as a queue does, and who tell of it a quarter of a second later. Its clock goes on
// from run to run.
type paced struct {
	p        pacer
	now      int64
	capacity int64 // bytes per second that the disk has
	base     int64 // µs of the clients' alone; 0: there are none
	told     []uint32
}

// front is what they see now, µs.
func (x *paced) front() uint32 {
	if x.base == 0 {
		return 0
	}
	free := max(x.capacity-x.p.rate, x.capacity/50)
	return uint32(x.base * x.capacity / free)
}

// run lets time pass. It returns the mean rate, and the share of the time, in
// percent, in which clients waited for longer than some µs.
func (x *paced) run(d time.Duration, some uint32) (mean int64, above int) {
	const step = int64(10 * time.Millisecond)
	n := int64(d) / step
	for range n {
		x.now += step
		x.told = append(x.told, x.front())
		x.p.hear(x.now, 2, x.told[max(0, len(x.told)-25)])
		x.p.tick(x.now)
		x.p.done += x.p.rate / 100
		mean += x.p.rate / n
		if x.front() > some {
			above++
		}
	}
	return mean, above * 100 / int(n)
}

// Goal: copying slows down until what clients see is what it may be, goes on at the
// least rate where that is still too much, is quick where there are no clients, and
// never exceeds the bound. Method: a queue that answers to the rate, late.
func TestPace(t *testing.T) {
	x := &paced{p: newPacer(0), now: int64(time.Hour), capacity: 400 << 20}
	if x.run(3*time.Second, 0); x.p.rate < 1<<30 {
		t.Errorf("without clients it copies %d MiB/s after 3 s", x.p.rate>>20)
	}
	look := func(what string, low, high int64, aim uint32) {
		t.Helper()
		x.run(30*time.Second, 0)
		mean, above := x.run(60*time.Second, aim*3/2)
		t.Logf("%s: %d MiB/s, above one and a half times the aim for %d %% of the time", what, mean>>20, above)
		if mean>>20 < low || mean>>20 > high || above > 5 {
			t.Errorf("%s: %d MiB/s, want %d to %d, and at most 5 %% of the time above", what, mean>>20, low, high)
		}
	}
	// Requests take 2.5 ms alone: 5 ms at half of what the disk has.
	x.base = 2500
	look("quick clients", 140, 220, 5000)
	x.p.short = true
	look("copies are missing", 240, 320, 10000)
	x.p.short = false
	// Now they take 20 ms alone, 40 at half of it: learned at the least rate.
	x.base = 20000
	look("slow clients", 80, 220, 40000)
	// The clients are quick again: that 20 ms were theirs is forgotten.
	x.base = 2500
	look("quick again", 140, 220, 5000)
	// An operator wants more of either.
	x.p.aim = 3000
	look("a tight aim", 40, 90, 3000)
	x.p.aim = 25000
	look("a wide aim", 280, 390, 25000)
	// What cannot be: the least rate, whatever clients see.
	x.p.aim = 1000
	if x.run(10*time.Second, 0); x.p.rate != paceFloor {
		t.Errorf("with an aim out of reach it copies %d MiB/s", x.p.rate>>20)
	}
	x.base = 0
	if x.run(3*time.Second, 0); x.p.rate < 1<<30 {
		t.Errorf("when clients are gone it copies %d MiB/s after 3 s", x.p.rate>>20)
	}
}

// Goal: of several devices the one whose clients suffer most counts, and one that
// tells nothing any more does not.
func TestPaceOfSources(t *testing.T) {
	p, now := newPacer(0), int64(time.Hour)
	run := func(fronts ...uint32) {
		for range 500 {
			now += int64(10 * time.Millisecond)
			for i, f := range fronts {
				p.hear(now, 2, f)
				if i > 0 {
					p.hear(now, 3, f)
				}
			}
			p.tick(now)
			p.done += p.rate / 100
		}
	}
	run(1000, 2000)
	if p.rate < 64<<20 {
		t.Errorf("all are well: %d MiB/s", p.rate>>20)
	}
	p.aim = 5000
	run(1000, 9000)
	if p.rate != paceFloor {
		t.Errorf("one suffers: %d MiB/s", p.rate>>20)
	}
	run(1000)
	if p.rate < 64<<20 {
		t.Errorf("that one is silent: %d MiB/s", p.rate>>20)
	}
}

// Goal: where a copy is missing clients may wait for longer than where one only moves.
// Method: three copies of which one is away, then two that are all there should be.
func TestPaceKnowsWhatIsMissing(t *testing.T) {
	w := stale(t)
	w.missAll()
	w.announce()
	if !w.core.pace.short {
		t.Error("a copy of three is missing, and that is not known")
	}
	w.m.Sets[1] = &cluster.PGSet{Number: 1, Replicas: 2, Count: 1}
	w.publish(nil)
	if w.core.pace.short {
		t.Error("there are as many copies as there should be; one more is made")
	}
	w.connect(devC)
	w.joined()
	if w.core.pace.short {
		t.Error("nothing is left to do, and a copy is thought missing")
	}
}

// Goal: a bound holds, whoever set it, and the lower one of two.
func TestPaceBound(t *testing.T) {
	x := &paced{p: newPacer(20 << 20), now: int64(time.Hour)}
	if x.run(3*time.Second, 0); x.p.rate != 20<<20 {
		t.Errorf("with a bound of 20 MiB/s it copies %d MiB/s", x.p.rate>>20)
	}
	c := Core{cfg: Config{Rate: 20 << 20}, pace: x.p}
	for _, bound := range [][2]int64{{5 << 20, 5 << 20}, {50 << 20, 20 << 20}, {0, 20 << 20}} {
		c.Limit(bound[0])
		x.p = c.pace
		x.run(time.Second, 0)
		if c.Limited() != bound[1] || x.p.rate != bound[1] {
			t.Errorf("configured are 20 MiB/s, set %d: it copies %d MiB/s", bound[0]>>20, x.p.rate>>20)
		}
	}
}
