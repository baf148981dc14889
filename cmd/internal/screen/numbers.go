// SPDX-License-Identifier: Apache-2.0

package screen

import (
	"fmt"
	"strings"
	"time"

	"braid/transport/meter"
)

// Latency sums up the durations of a period, in microseconds.
type Latency struct {
	Count  uint64  `json:"count"`
	PerSec float64 `json:"per_second"`
	MeanUS float64 `json:"mean_us"`
	P50US  float64 `json:"p50_us"`
	P99US  float64 `json:"p99_us"`
	P999US float64 `json:"p999_us"`
}

// Since sums up what was recorded between two snapshots, the newer first.
func Since(newer, older meter.Snapshot, period time.Duration) Latency {
	return sumUp(newer.Sub(&older), period)
}

func sumUp(d meter.Snapshot, period time.Duration) Latency {
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1000 }
	l := Latency{Count: d.Count(), MeanUS: us(d.Mean()), P50US: us(d.Quantile(0.5)), P99US: us(d.Quantile(0.99)),
		P999US: us(d.Quantile(0.999))}
	l.PerSec = Rate(l.Count, 0, period)
	return l
}

// Rate is how much a counter grew in a second. One that began anew counts from 0.
func Rate(newer, older uint64, period time.Duration) float64 {
	if newer < older {
		older = 0
	}
	if period <= 0 {
		return 0
	}
	return float64(newer-older) / period.Seconds()
}

// Micros is a duration for people: 85us, 1.2ms, 3.4s; - for none.
func Micros(us float64) string {
	switch {
	case us <= 0:
		return "-"
	case us < 999.5:
		return fmt.Sprintf("%.0fus", us)
	case us < 9950:
		return fmt.Sprintf("%.1fms", us/1e3)
	case us < 999500:
		return fmt.Sprintf("%.0fms", us/1e3)
	}
	return fmt.Sprintf("%.1fs", us/1e6)
}

// Number is a rate for people: 0, 7.5, 950, 12.3k, 1.2M.
func Number(x float64) string {
	switch {
	case x < 0.05:
		return "0"
	case x < 9.95:
		return fmt.Sprintf("%.1f", x)
	case x < 9999.5:
		return fmt.Sprintf("%.0f", x)
	case x < 999500:
		return fmt.Sprintf("%.1fk", x/1e3)
	}
	return fmt.Sprintf("%.1fM", x/1e6)
}

// MB is a rate of bytes in millions.
func MB(bytesPerSecond float64) string {
	if bytesPerSecond < 50000 {
		if bytesPerSecond < 1 {
			return "0"
		}
		return fmt.Sprintf("%.2f", bytesPerSecond/1e6)
	}
	if bytesPerSecond < 99.5e6 {
		return fmt.Sprintf("%.1f", bytesPerSecond/1e6)
	}
	return fmt.Sprintf("%.0f", bytesPerSecond/1e6)
}

// Ago is how long something has lasted: 0.4s, 12s, 4m10s, 3h05m, 2d4h.
func Ago(d time.Duration) string {
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%.0fs", d.Truncate(time.Second).Seconds())
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh%02dm", d/time.Hour, d%time.Hour/time.Minute)
	}
	return fmt.Sprintf("%dd%dh", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
}

// The columns of Bars are powers of two from 8 µs to 8 s.
const (
	firstBar = 8192 * time.Nanosecond
	lastBar  = 8589934592 * time.Nanosecond
)

// BarsLabel stands below Bars: the column of each mark is where its duration is.
const BarsLabel = "8us    1ms   67ms  8s"

// Bars draws a small histogram: one column for each power of two of duration, as
// high as its share of the highest.
func Bars(d meter.Snapshot) string {
	heights := []uint64{}
	most, before := uint64(0), uint64(0)
	d.Octaves(func(bound time.Duration, n uint64) {
		if bound < firstBar || bound > lastBar {
			return
		}
		heights = append(heights, n-before)
		most = max(most, n-before)
		before = n
	})
	if rest := d.Count() - before; rest > 0 && len(heights) > 0 {
		heights[len(heights)-1] += rest
		most = max(most, heights[len(heights)-1])
	}
	levels := []rune(" ▁▂▃▄▅▆▇█")
	var b strings.Builder
	for _, h := range heights {
		level := 0
		if h > 0 {
			level = 1 + int((uint64(len(levels)-2)*h+most/2)/most)
		}
		b.WriteRune(levels[min(level, len(levels)-1)])
	}
	return b.String()
}
