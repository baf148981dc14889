// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"testing"
	"time"
)

// Goal: the percentile follows what is recorded within two spans, up and down, also
// where little is; a few in a thousand do not count; after a pause it says nothing, and
// then nothing of what was before. Method: durations on a clock that is turned.
func TestTail(t *testing.T) {
	const us, ms = int64(time.Microsecond), int64(time.Millisecond)
	var tail Tail
	if got := tail.P99(5 * ms); got != 0 {
		t.Errorf("before anything: %d", got)
	}
	now := int64(time.Hour)
	run := func(n int, every int64, took func(i int) int64) {
		for i := range n {
			now += every
			tail.Record(now, took(i))
		}
	}
	want := func(what string, low, high int64) {
		t.Helper()
		if got := tail.P99(now); got < low || got > high {
			t.Errorf("%s: %d µs, want %d to %d", what, got/us, low/us, high/us)
		}
	}
	run(1, ms, func(int) int64 { return ms })
	want("the first of all", 900*us, 1200*us)
	run(2000, ms/2, func(i int) int64 {
		if i%250 == 0 {
			return 50 * ms
		}
		return 200 * us
	})
	want("four in a thousand are slow", 180*us, 230*us)
	run(1000, ms/2, func(i int) int64 {
		if i%50 == 0 {
			return 20 * ms
		}
		return 200 * us
	})
	want("two in a hundred are", 18*ms, 23*ms)
	run(1000, ms/2, func(int) int64 { return 300 * us })
	want("none is any more", 270*us, 340*us)
	run(200, 50*ms, func(i int) int64 { return 10 * ms })
	want("twenty a second", 9*ms, 12*ms)
	run(80, 50*ms, func(i int) int64 { return ms })
	want("and these are quicker", 900*us, 1200*us)
	now += int64(time.Second)
	want("nobody asks", 0, 0)
	run(1, ms, func(int) int64 { return 4 * ms })
	want("somebody asks again", 3500*us, 4500*us)
	if n := testing.AllocsPerRun(1000, func() { now += ms; tail.Record(now, ms); tail.P99(now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
