// SPDX-License-Identifier: Apache-2.0

package resync

import "testing"

// load is a device whose clients' latency grows with the rate of the copying, as a
// queue does: base µs alone, and all that it has at capacity bytes a second.
func load(rate int64, base, capacity int64) uint32 {
	free := max(capacity-rate, capacity/50)
	return uint32(base * capacity / free)
}

// Goal: copying slows down until clients hardly notice it, on a source as on the
// target, goes on at the least rate where that is still too much, is quick where
// there are no clients, and never exceeds the bound. Method: a queue that answers
// to the rate, in steps of 10 ms.
func TestPace(t *testing.T) {
	const ms = int64(1e6)
	run := func(p *pacer, from, steps int64, front func(rate int64) uint32) (now, mean int64) {
		total := int64(0)
		for i := range steps {
			now = from + i*10*ms
			p.hear(now, 2, front(p.rate))
			p.tick(now)
			p.done += p.rate / 100
			total += p.rate
		}
		return now, total / steps
	}
	p := newPacer(0)
	now, mean := run(&p, 0, 300, func(int64) uint32 { return 0 })
	if p.rate < 1<<30 {
		t.Errorf("without clients it copies %d MiB/s after 3 s", p.rate>>20)
	}
	// Clients come: 5 ms each alone, and 400 MiB/s are all that the disk has.
	now, _ = run(&p, now, 2000, func(rate int64) uint32 { return load(rate, 5000, 400<<20) })
	now, mean = run(&p, now, 2000, func(rate int64) uint32 { return load(rate, 5000, 400<<20) })
	if mean < 80<<20 || mean > 300<<20 {
		t.Errorf("beside clients it copies %d MiB/s on average, of 400", mean>>20)
	}
	worst := uint32(0)
	now, _ = run(&p, now, 1000, func(rate int64) uint32 {
		worst = max(worst, load(rate, 5000, 400<<20))
		return load(rate, 5000, 400<<20)
	})
	if worst > 20000 {
		t.Errorf("requests take %d µs, 5,000 alone", worst)
	}
	// A disk that is full of clients: latency does not depend on us, and jumps.
	n := 0
	now, _ = run(&p, now, 400, func(int64) uint32 { n++; return uint32(5000 + n%20*2000) })
	if p.rate < paceFloor {
		t.Errorf("it copies %d bytes/s", p.rate)
	}
	q := newPacer(20 << 20)
	if now, _ = run(&q, now, 300, func(int64) uint32 { return 0 }); q.rate != 20<<20 {
		t.Errorf("with a bound of 20 MiB/s it copies %d MiB/s", q.rate>>20)
	}
	c := Core{cfg: Config{Rate: 20 << 20}, pace: q}
	for _, x := range [][2]int64{{5 << 20, 5 << 20}, {50 << 20, 20 << 20}, {0, 20 << 20}} {
		c.Limit(x[0])
		now, _ = run(&c.pace, now, 100, func(int64) uint32 { return 0 })
		if c.Limited() != x[1] || c.pace.rate != x[1] {
			t.Errorf("configured are 20 MiB/s, set %d: it copies %d MiB/s", x[0]>>20, c.pace.rate>>20)
		}
	}
}
