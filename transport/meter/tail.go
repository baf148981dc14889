// SPDX-License-Identifier: Apache-2.0

package meter

import "time"

// Terms of a Tail. A percentile of fewer durations than tailLeast is their maximum.
const (
	tailSpan  = int64(250 * time.Millisecond)
	tailLeast = 100
	tailMost  = int64(2 * time.Second) // a span lasts no longer, however little happens
	tailFresh = int64(500 * time.Millisecond)
)

// Tail tells the 99th percentile of the durations of late: of those in the newest
// span that is over, a quarter of a second or as long as a hundred take. As a
// Histogram it belongs to one loop. The zero value is empty.
type Tail struct {
	now    Histogram
	count  uint64
	since  int64 // when the span began
	newest int64 // when the newest duration was recorded
	p99    int64 // ns, of the span before
}

// Record counts a duration that ended now, both in ns.
func (t *Tail) Record(now, took int64) {
	if now-t.newest > tailFresh { // after a pause what was before says nothing
		t.now, t.count, t.since, t.p99 = Histogram{}, 0, now, 0
	}
	t.now.Record(took)
	t.count++
	t.newest = now
	if age := now - t.since; age < tailSpan || t.count < tailLeast && age < tailMost {
		return
	}
	t.p99 = t.quantile()
	t.now, t.count, t.since = Histogram{}, 0, now
}

// P99 is the percentile in ns. 0: nothing has been recorded lately.
func (t *Tail) P99(now int64) int64 {
	switch {
	case t.newest == 0 || now-t.newest > tailFresh:
		return 0
	case t.p99 == 0: // the first span is not over
		return t.quantile()
	}
	return t.p99
}

func (t *Tail) quantile() int64 {
	above := t.count / 100
	for i := Buckets - 1; i >= 0; i-- {
		if n := t.now.counts[i]; n > above {
			return int64(middle(i))
		} else {
			above -= n
		}
	}
	return 0
}
