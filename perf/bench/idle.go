// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"maps"
	"slices"
	"time"
)

// idleFigure is what a process of a system costs while nobody uses it.
type idleFigure struct {
	System  string  `json:"system"`
	Process string  `json:"process"`
	Count   int     `json:"count"`
	CPU     float64 `json:"cpu_percent"` // of a core, of the busiest of them
	RSS     float64 `json:"rss_mib"`     // of the largest of them
}

// measureIdle watches all systems at once for the given time. They have just been
// started and are empty; what they still do about that gets a quarter as long.
func measureIdle(ctx context.Context, systems []running, window time.Duration) ([]idleFigure, error) {
	if err := pause(ctx, window/4); err != nil {
		return nil, err
	}
	var before []map[string][]clock
	for _, r := range systems {
		c, err := readProcesses(r.sys.Pids())
		if err != nil {
			return nil, err
		}
		before = append(before, c)
	}
	began := time.Now()
	if err := pause(ctx, window); err != nil {
		return nil, err
	}
	var out []idleFigure
	for i, r := range systems {
		pids := r.sys.Pids()
		after, err := readProcesses(pids)
		if err != nil {
			return nil, err
		}
		took := time.Since(began).Seconds()
		for _, name := range slices.Sorted(maps.Keys(pids)) {
			f := idleFigure{System: r.sys.Name(), Process: name, Count: len(pids[name])}
			for k, pid := range pids[name] {
				f.CPU = max(f.CPU, fourDigits(idleSince(before[i][name][k], after[name][k])/took*100))
				f.RSS = max(f.RSS, fourDigits(float64(residentBytes(pid))/(1<<20)))
			}
			out = append(out, f)
		}
	}
	return out, nil
}

func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

// idleSince trusts the clock in nanoseconds: a tick is too coarse here, and idle
// processes start and end no threads.
func idleSince(before, after clock) float64 {
	if after.threads > 0 {
		return max(0, after.threads-before.threads)
	}
	return after.since(before)
}
