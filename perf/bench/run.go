// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/schollz/progressbar/v3"
)

// sample is one system under one load for a few seconds.
type sample struct {
	System string  `json:"system"`
	Load   string  `json:"load"`
	Round  int     `json:"round"`
	IOPS   float64 `json:"iops"`
	MiBps  float64 `json:"mib_per_s"`
	MeanUs float64 `json:"mean_us"`
	P50Us  float64 `json:"p50_us"`
	P99Us  float64 `json:"p99_us"`
	P999Us float64 `json:"p999_us"`
	// CPUUs is CPU time per I/O in microseconds: of each of the system's
	// processes, of their sum ("system"), of fio and of the whole machine.
	CPUUs     map[string]float64 `json:"cpu_us_per_io"`
	Steal     float64            `json:"steal"`   // share of the CPU time that the hypervisor took
	Foreign   float64            `json:"foreign"` // share that other processes and kernel threads used
	Repeats   int                `json:"repeats"` // disturbed tries before this one
	Disturbed bool               `json:"disturbed"`
}

// A sample is disturbed when the hypervisor took this share of the CPU time.
const (
	stealLimit = 0.05
	maxRepeats = 2
)

type running struct {
	sys system
	t   target
}

type plan struct {
	Rounds  int
	Runtime time.Duration
	Loads   []load
}

// measure runs the plan over the systems, interleaved.
func measure(ctx context.Context, p plan, systems []running) ([]sample, error) {
	total := p.Rounds * len(p.Loads) * len(systems)
	bar := progressbar.NewOptions(total, progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetVisibility(stderrIsTerminal()), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true), progressbar.OptionSetWidth(30))
	var out []sample
	for round := range p.Rounds {
		for _, l := range p.Loads {
			for i := range systems {
				r := systems[(i+round)%len(systems)]
				if l.Fsync > 0 && r.t.NoFlush {
					_ = bar.Add(1)
					continue
				}
				bar.Describe(fmt.Sprintf("%-16s %-24s", r.sys.Name(), l.Name))
				s, err := measureOne(ctx, p, l, r, round)
				if err != nil {
					return out, fmt.Errorf("%s, %s: %w", r.sys.Name(), l.Name, err)
				}
				out = append(out, s)
				_ = bar.Add(1)
			}
		}
		if !stderrIsTerminal() {
			fmt.Fprintf(os.Stderr, "bench: round %d of %d done\n", round+1, p.Rounds)
		}
	}
	_ = bar.Finish()
	return out, nil
}

func measureOne(ctx context.Context, p plan, l load, r running, round int) (sample, error) {
	for try := 0; ; try++ {
		s, err := takeSample(ctx, p, l, r)
		s.Round, s.Repeats = round, try
		s.Disturbed = s.Steal > stealLimit
		if err != nil || !s.Disturbed || try == maxRepeats {
			return s, err
		}
	}
}

// takeSample runs fio once between two readings of all CPU clocks.
func takeSample(ctx context.Context, p plan, l load, r running) (sample, error) {
	s := sample{System: r.sys.Name(), Load: l.Name, CPUUs: map[string]float64{}}
	pids := r.sys.Pids()
	before, err := readProcesses(pids)
	if err != nil {
		return s, err
	}
	m0, err := readMachine()
	if err != nil {
		return s, err
	}
	self0 := childSeconds()
	out, err := fio(ctx, fioArgs(r.t, l, p.Runtime), p.Runtime+30*time.Second)
	if err != nil {
		return s, err
	}
	fioCPU := childSeconds() - self0
	m1, err := readMachine()
	if err != nil {
		return s, err
	}
	after, err := readProcesses(pids)
	if err != nil {
		return s, err
	}

	j := out.Jobs[0]
	ios := float64(j.Read.TotalIOs + j.Write.TotalIOs)
	if ios == 0 {
		return s, fmt.Errorf("fio completed no I/O")
	}
	s.IOPS = j.Read.IOPS + j.Write.IOPS
	s.MiBps = (j.Read.BWBytes + j.Write.BWBytes) / (1 << 20)
	main := j.Read
	if j.Write.TotalIOs > j.Read.TotalIOs {
		main = j.Write
	}
	s.MeanUs = main.Clat.Mean / 1e3
	s.P50Us = main.Clat.Percentile["50.000000"] / 1e3
	s.P99Us = main.Clat.Percentile["99.000000"] / 1e3
	s.P999Us = main.Clat.Percentile["99.900000"] / 1e3

	sum := 0.0
	for name, clocks := range after {
		d := 0.0
		for i, c := range clocks {
			d += c.since(before[name][i])
		}
		s.CPUUs[name] = d / ios * 1e6
		sum += d
	}
	busy, idle, steal := m1.Busy-m0.Busy, m1.Idle-m0.Idle, m1.Steal-m0.Steal
	all := busy + idle + steal
	s.CPUUs["system"] = sum / ios * 1e6
	s.CPUUs["fio"] = fioCPU / ios * 1e6
	s.CPUUs["machine"] = busy / ios * 1e6
	if all > 0 {
		s.Steal = steal / all
		s.Foreign = max(0, busy-sum-fioCPU) / all
	}
	return s, nil
}

func readProcesses(pids map[string][]int) (map[string][]clock, error) {
	out := map[string][]clock{}
	for name, list := range pids {
		for _, pid := range list {
			c, err := readClock(pid)
			if err != nil {
				return nil, fmt.Errorf("CPU time of %s, pid %d: %w", name, pid, err)
			}
			out[name] = append(out[name], c)
		}
	}
	return out, nil
}
