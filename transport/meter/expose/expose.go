// SPDX-License-Identifier: Apache-2.0

// Package expose turns the histograms of package meter into Prometheus metrics.
package expose

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"braid/transport/meter"
)

// Bounds of the buckets: each power of two between them is one. What is below or
// above is in the first or in +Inf.
const (
	first = 4096 * time.Nanosecond
	last  = 8589934592 * time.Nanosecond
)

// Histogram is a snapshot as a metric, in seconds.
func Histogram(desc *prometheus.Desc, s *meter.Snapshot, labels ...string) prometheus.Metric {
	buckets := map[float64]uint64{}
	s.Octaves(func(bound time.Duration, n uint64) {
		if bound >= first && bound <= last {
			buckets[bound.Seconds()] = n
		}
	})
	return prometheus.MustNewConstHistogram(desc, s.Count(), s.Sum.Seconds(), buckets, labels...)
}
