// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"encoding/json"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// Goal: each duration lies in the bucket whose bounds enclose it. Method: powers
// of two, their neighbours, and random ones.
func TestBuckets(t *testing.T) {
	check := func(ns uint64) {
		b := bucket(ns)
		low := time.Duration(0)
		if b > 0 {
			low = Bound(b - 1)
		}
		if d := time.Duration(ns); d < low || d >= Bound(b) {
			t.Errorf("%d ns is in bucket %d, %d to %d ns", ns, b, low, Bound(b))
		}
		if b > 0 && b < Buckets-1 && float64(Bound(b)-low) > float64(low)/subCount+1 {
			t.Errorf("bucket %d is too wide: %d to %d", b, low, Bound(b))
		}
	}
	for shift := range 63 {
		for _, d := range []uint64{0, 1, 2} {
			check(1<<shift + d - 1)
		}
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 10000 {
		check(rng.Uint64() >> (1 + rng.IntN(62)))
	}
}

// Goal: quantiles, mean, differences and sums are right within a bucket's width.
func TestSnapshots(t *testing.T) {
	var h Histogram
	for i := range 1000 {
		h.Record(int64(i+1) * int64(time.Millisecond))
	}
	first := h.Snapshot()
	for _, c := range []struct {
		q    float64
		want time.Duration
	}{{0.5, 500 * time.Millisecond}, {0.99, 990 * time.Millisecond}, {0.999, time.Second}, {0, time.Millisecond}} {
		got := first.Quantile(c.q)
		if off := max(got-c.want, c.want-got); off > c.want/subCount {
			t.Errorf("quantile %v is %v, want about %v", c.q, got, c.want)
		}
	}
	if first.Count() != 1000 || first.Mean() != 500*time.Millisecond+500*time.Microsecond {
		t.Errorf("count %d, mean %v", first.Count(), first.Mean())
	}
	h.Record(-5)
	h.Record(int64(time.Hour))
	second := h.Snapshot()
	since := second.Sub(&first)
	if since.Count() != 2 || since.Sum != time.Hour {
		t.Errorf("difference has %d in %v", since.Count(), since.Sum)
	}
	if again := first.Sub(&second); again.Count() != 1000 {
		t.Errorf("a histogram that began anew has %d", again.Count())
	}
	since.Add(&first)
	if since.Count() != 1002 {
		t.Errorf("sum has %d", since.Count())
	}
	var empty Snapshot
	if empty.Quantile(0.5) != 0 || empty.Mean() != 0 {
		t.Error("an empty histogram has durations")
	}
}

// Goal: the powers of two count what lies below them, all in all.
func TestOctaves(t *testing.T) {
	var h Histogram
	for _, us := range []int64{1, 3, 10, 100, 100, 5000} {
		h.Record(us * 1000)
	}
	s := h.Snapshot()
	got := map[time.Duration]uint64{}
	s.Octaves(func(bound time.Duration, n uint64) { got[bound] = n })
	for bound, want := range map[time.Duration]uint64{1024: 1, 4096: 2, 16384: 3, 131072: 5, 1 << 36: 6} {
		if got[bound] != want {
			t.Errorf("%d below %v, want %d", got[bound], bound, want)
		}
	}
}

// Goal: a snapshot survives JSON, and nonsense is refused.
func TestJSON(t *testing.T) {
	var h Histogram
	h.Record(77777)
	h.Record(1 << 40)
	s := h.Snapshot()
	b, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	var back Snapshot
	if err := json.Unmarshal(b, &back); err != nil {
		t.Fatal(err)
	}
	if !slices.Equal(back.Counts, s.Counts) || back.Sum != s.Sum {
		t.Errorf("%v came back as %v", s, back)
	}
	if err := json.Unmarshal([]byte(`{"buckets":[[9999,1]]}`), &back); err == nil {
		t.Error("a bucket that does not exist was taken")
	}
}

// Goal: recording allocates nothing.
func TestRecordAllocatesNothing(t *testing.T) {
	var h Histogram
	if n := testing.AllocsPerRun(1000, func() { h.Record(12345) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkRecord(b *testing.B) {
	var h Histogram
	for i := range b.N {
		h.Record(int64(i) << 4)
	}
}
