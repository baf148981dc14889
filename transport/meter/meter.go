// SPDX-License-Identifier: Apache-2.0

package meter

import (
	"encoding/json"
	"fmt"
	"math/bits"
	"time"
)

// Buckets are at most an eighth wide: eight for each power of two between the
// first and the last bound, and one on either side of them.
const (
	subBits  = 3
	subCount = 1 << subBits
	minBits  = 10 // 1.024 µs and below share the first bucket
	maxBits  = 36 // 68.7 s and above the last
	// Buckets is how many there are.
	Buckets = (maxBits-minBits)*subCount + 2
)

// Histogram counts durations. The zero value is empty.
type Histogram struct {
	counts [Buckets]uint64
	sum    uint64 // ns
}

// Record counts one duration in nanoseconds.
func (h *Histogram) Record(ns int64) {
	if ns < 0 {
		ns = 0
	}
	h.counts[bucket(uint64(ns))]++
	h.sum += uint64(ns)
}

func bucket(ns uint64) int {
	n := bits.Len64(ns)
	switch {
	case n <= minBits:
		return 0
	case n > maxBits:
		return Buckets - 1
	}
	return (n-1-minBits)<<subBits + int(ns>>(n-1-subBits)&(subCount-1)) + 1
}

// Bound is the upper bound of a bucket: all of its durations are below it. The
// last one has none; its bound is the largest number.
func Bound(bucket int) time.Duration {
	if bucket >= Buckets-1 {
		return 1<<63 - 1
	}
	octave, sub := bucket>>subBits, uint64(bucket&(subCount-1))
	return time.Duration((subCount + sub) << (octave + minBits - subBits))
}

// Snapshot is what a histogram held at one moment.
type Snapshot struct {
	Counts []uint64 // by bucket; shorter where the rest is 0
	Sum    time.Duration
}

// Snapshot copies the histogram. It is for the loop that owns it.
func (h *Histogram) Snapshot() Snapshot {
	n := Buckets
	for n > 0 && h.counts[n-1] == 0 {
		n--
	}
	return Snapshot{Counts: append([]uint64(nil), h.counts[:n]...), Sum: time.Duration(h.sum)}
}

// Count is how many durations were recorded.
func (s *Snapshot) Count() (n uint64) {
	for _, c := range s.Counts {
		n += c
	}
	return n
}

// Mean is the average duration; 0 where there is none.
func (s *Snapshot) Mean() time.Duration {
	n := s.Count()
	if n == 0 {
		return 0
	}
	return s.Sum / time.Duration(n)
}

// Quantile is a duration that the share q (0 to 1) of all does not exceed: the
// middle of the bucket in which it lies. 0 where there is none.
func (s *Snapshot) Quantile(q float64) time.Duration {
	total := s.Count()
	if total == 0 {
		return 0
	}
	rank := uint64(q * float64(total))
	seen := uint64(0)
	for i, c := range s.Counts {
		if seen += c; seen > rank || seen == total {
			return middle(i)
		}
	}
	return 0
}

func middle(i int) time.Duration {
	switch i {
	case 0:
		return Bound(0) / 2
	case Buckets - 1:
		return Bound(Buckets - 2)
	}
	return (Bound(i-1) + Bound(i)) / 2
}

// Sub returns what was recorded since an older snapshot of the same histogram.
// A histogram that has begun anew since counts from its beginning.
func (s *Snapshot) Sub(older *Snapshot) Snapshot {
	out := Snapshot{Counts: append([]uint64(nil), s.Counts...), Sum: s.Sum - older.Sum}
	for i, c := range older.Counts {
		if i >= len(out.Counts) || out.Counts[i] < c {
			return Snapshot{Counts: append([]uint64(nil), s.Counts...), Sum: s.Sum}
		}
		out.Counts[i] -= c
	}
	return out
}

// Add merges another snapshot into this one.
func (s *Snapshot) Add(other *Snapshot) {
	for len(s.Counts) < len(other.Counts) {
		s.Counts = append(s.Counts, 0)
	}
	for i, c := range other.Counts {
		s.Counts[i] += c
	}
	s.Sum += other.Sum
}

// Octaves are the counts by powers of two, for displays and for Prometheus: the
// durations below bounds[i], cumulative.
func (s *Snapshot) Octaves(each func(bound time.Duration, cumulative uint64)) {
	seen, next := uint64(0), 0
	for octave := 0; octave <= maxBits-minBits; octave++ {
		// The bounds of an octave's last bucket are the powers of two.
		for last := octave * subCount; next <= last; next++ {
			if next < len(s.Counts) {
				seen += s.Counts[next]
			}
		}
		each(time.Duration(1)<<(octave+minBits), seen)
	}
}

// wire is a snapshot in JSON: pairs of bucket and count.
type wire struct {
	Buckets [][2]uint64 `json:"buckets"`
	SumNS   int64       `json:"sum_ns"`
}

// MarshalJSON writes only the buckets that are not empty.
func (s Snapshot) MarshalJSON() ([]byte, error) {
	w := wire{Buckets: [][2]uint64{}, SumNS: int64(s.Sum)}
	for i, c := range s.Counts {
		if c > 0 {
			w.Buckets = append(w.Buckets, [2]uint64{uint64(i), c})
		}
	}
	return json.Marshal(w)
}

// UnmarshalJSON reads what MarshalJSON wrote.
func (s *Snapshot) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return err
	}
	*s = Snapshot{Sum: time.Duration(w.SumNS)}
	for _, pair := range w.Buckets {
		if pair[0] >= Buckets {
			return fmt.Errorf("histogram: there is no bucket %d", pair[0])
		}
		for uint64(len(s.Counts)) <= pair[0] {
			s.Counts = append(s.Counts, 0)
		}
		s.Counts[pair[0]] += pair[1]
	}
	return nil
}
