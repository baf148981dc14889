// SPDX-License-Identifier: Apache-2.0

package expose

import (
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"braid/transport/meter"
)

// Goal: count, sum and buckets say what was recorded, in seconds.
func TestHistogram(t *testing.T) {
	var h meter.Histogram
	for _, d := range []time.Duration{time.Microsecond, 100 * time.Microsecond, time.Minute} {
		h.Record(int64(d))
	}
	s := h.Snapshot()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(one{Histogram(prometheus.NewDesc("x_seconds", "x", []string{"op"}, nil), &s, "read")})
	families, err := reg.Gather()
	if err != nil || len(families) != 1 {
		t.Fatal(families, err)
	}
	got := families[0].GetMetric()[0].GetHistogram()
	if got.GetSampleCount() != 3 || got.GetSampleSum() < 60 || got.GetSampleSum() > 61 {
		t.Errorf("count %d, sum %v", got.GetSampleCount(), got.GetSampleSum())
	}
	b := got.GetBucket()
	if b[0].GetUpperBound() != 4096e-9 || b[0].GetCumulativeCount() != 1 {
		t.Errorf("first bucket %v", b[0])
	}
	if end := b[len(b)-1]; end.GetCumulativeCount() != 2 {
		t.Errorf("last bucket %v: a minute is beyond it", end)
	}
}

// one is a collector of one metric.
type one struct{ m prometheus.Metric }

func (o one) Describe(out chan<- *prometheus.Desc) { out <- o.m.Desc() }
func (o one) Collect(out chan<- prometheus.Metric) { out <- o.m }
