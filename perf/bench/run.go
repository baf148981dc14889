// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"math"
	"os"
	"slices"
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
	// processes, of their sum (cpuSystem), of fio, kernel threads and all of the
	// machine.
	CPUUs     map[string]float64 `json:"cpu_us_per_io"`
	Steal     float64            `json:"steal"`             // share of the CPU time that the hypervisor took
	Foreign   float64            `json:"foreign"`           // share that processes of neither system nor fio used
	Repeats   int                `json:"repeats,omitempty"` // further tries, because all before were disturbed
	Disturbed bool               `json:"disturbed,omitempty"`
}

// Keys of CPUUs that are not processes of a system.
const (
	cpuSystem  = "system"
	cpuMachine = "machine"
	cpuKernel  = "kernel threads"
	cpuFio     = "fio"
)

// A sample is disturbed when the hypervisor took this share of the CPU time, or
// others used that share. It is taken again up to maxRepeats times, while the
// whole run does not grow by more than repeatShare; the least disturbed try
// counts, whatever it measured.
const (
	stealLimit   = 0.05
	foreignLimit = 0.10
	maxRepeats   = 2
	repeatShare  = 0.2
)

type running struct {
	sys system
	t   target
}

type plan struct {
	Rounds  int
	Runtime time.Duration
	Loads   []load
	// Limit bounds the measuring, if it is not 0: no sample is taken again when time
	// is short, and no round but the first minRounds is begun that would not end.
	Limit time.Duration

	began   time.Time
	repeats int // how many are left
	total   int // samples
	done    int
	failed  map[string]error // by system and load; not tried again
}

// minRounds are measured even when time is short.
const minRounds = 3

// late reports whether the run would end after its limit if a sample took as long
// as those so far did.
func (p *plan) late() bool {
	spent := time.Since(p.began)
	return p.Limit > 0 && p.done > 0 && spent/time.Duration(p.done)*time.Duration(p.total) > p.Limit
}

// measure runs the plan over the systems, interleaved. What fails is left out from
// then on; the error names all of it.
func measure(ctx context.Context, p *plan, systems []running) ([]sample, error) {
	round := 0 // samples of one
	for _, l := range p.Loads {
		for _, r := range systems {
			if l.runsOn(r.sys.Name(), r.t) {
				round++
			}
		}
	}
	p.total, p.began, p.failed = round*p.Rounds, time.Now(), map[string]error{}
	p.repeats = int(repeatShare * float64(p.total))
	bar := progressbar.NewOptions(p.total, progressbar.OptionSetWriter(os.Stderr),
		progressbar.OptionSetVisibility(stderrIsTerminal()), progressbar.OptionShowCount(),
		progressbar.OptionSetPredictTime(true), progressbar.OptionSetWidth(30))
	var out []sample
	for n := range p.Rounds {
		if spent := time.Since(p.began); n >= minRounds && p.Limit > 0 && spent+spent/time.Duration(n) > p.Limit {
			fmt.Fprintf(os.Stderr, "bench: %d rounds are all that fits into %v\n", n, p.Limit)
			p.Rounds = n
			break
		}
		for _, l := range p.Loads {
			for i := range systems {
				r := systems[(i+n)%len(systems)]
				if !l.runsOn(r.sys.Name(), r.t) {
					continue
				}
				bar.Describe(fmt.Sprintf("%-18s %-26s", r.sys.Name(), l.Name))
				if s, ok := p.measureOne(ctx, l, r, n); ok {
					out = append(out, s)
				}
				p.done++
				_ = bar.Add(1)
			}
			if ctx.Err() != nil {
				return out, ctx.Err()
			}
		}
		if !stderrIsTerminal() {
			fmt.Fprintf(os.Stderr, "bench: round %d of %d done, %d of %d samples in %.0f s\n",
				n+1, p.Rounds, p.done, p.total, time.Since(p.began).Seconds())
		}
	}
	_ = bar.Finish()
	return out, errors.Join(slices.Collect(maps.Values(p.failed))...)
}

// measureOne takes a sample, again if it was disturbed. It is not ok when it fails,
// or has failed before.
func (p *plan) measureOne(ctx context.Context, l load, r running, round int) (best sample, ok bool) {
	key := r.sys.Name() + ", " + l.Name
	if p.failed[key] != nil {
		return best, false
	}
	for try := 0; ; try++ {
		s, err := takeSample(ctx, p.Runtime, l, r)
		if err != nil {
			p.failed[key] = fmt.Errorf("%s: %w", key, err)
			fmt.Fprintln(os.Stderr, "bench:", p.failed[key])
			return best, false
		}
		s.Disturbed = s.Steal > stealLimit || s.Foreign > foreignLimit
		if try == 0 || s.Steal+s.Foreign < best.Steal+best.Foreign {
			best = s
		}
		best.Round, best.Repeats = round, try
		if !s.Disturbed || try == maxRepeats || p.repeats == 0 || p.late() {
			return best, true
		}
		p.repeats--
	}
}

// reading is all clocks at one moment.
type reading struct {
	processes map[string][]clock
	kernel    map[int]clock
	machine   machineTimes
	children  float64
}

func takeReading(pids map[string][]int) (r reading, err error) {
	if r.processes, err = readProcesses(pids); err != nil {
		return r, err
	}
	r.kernel, r.children = readKernel(), childSeconds()
	r.machine, err = readMachine()
	return r, err
}

// takeSample runs fio once between two readings of all CPU clocks.
func takeSample(ctx context.Context, runtime time.Duration, l load, r running) (sample, error) {
	s := sample{System: r.sys.Name(), Load: l.Name}
	pids := r.sys.Pids()
	before, err := takeReading(pids)
	if err != nil {
		return s, err
	}
	out, err := fio(ctx, r.t.Env, fioArgs(r.t, l, runtime), runtime+30*time.Second)
	if err != nil {
		return s, err
	}
	after, err := takeReading(pids)
	if err != nil {
		return s, err
	}
	if err := s.readFio(out, l); err != nil {
		return s, err
	}
	s.readClocks(before, after, float64(out.Jobs[0].Read.TotalIOs+out.Jobs[0].Write.TotalIOs))
	s.round()
	return s, nil
}

// readFio takes throughput and latency. Of a mix the latency is that of the more
// frequent direction. Where each write is flushed, the mean is that of both
// together and the percentiles are the flush's.
func (s *sample) readFio(out fioOutput, l load) error {
	j := out.Jobs[0]
	if j.Read.TotalIOs+j.Write.TotalIOs == 0 {
		return fmt.Errorf("fio completed no I/O")
	}
	s.IOPS = j.Read.IOPS + j.Write.IOPS
	s.MiBps = (j.Read.BWBytes + j.Write.BWBytes) / (1 << 20)
	lat := j.Read.Clat
	if j.Write.TotalIOs > j.Read.TotalIOs {
		lat = j.Write.Clat
	}
	if l.Fsync > 0 {
		mean := lat.Mean + j.Sync.Lat.Mean
		lat = j.Sync.Lat
		lat.Mean = mean
	}
	s.MeanUs = lat.Mean / 1e3
	s.P50Us = lat.Percentile["50.000000"] / 1e3
	s.P99Us = lat.Percentile["99.000000"] / 1e3
	s.P999Us = lat.Percentile["99.900000"] / 1e3
	return nil
}

func (s *sample) readClocks(before, after reading, ios float64) {
	s.CPUUs = map[string]float64{}
	sum := 0.0
	for name, clocks := range after.processes {
		d := 0.0
		for i, c := range clocks {
			d += c.since(before.processes[name][i])
		}
		s.CPUUs[name] = d / ios * 1e6
		sum += d
	}
	fio := after.children - before.children
	kernel := kernelSince(before.kernel, after.kernel)
	m0, m1 := before.machine, after.machine
	busy, idle, steal := m1.Busy-m0.Busy, m1.Idle-m0.Idle, m1.Steal-m0.Steal
	s.CPUUs[cpuSystem] = sum / ios * 1e6
	s.CPUUs[cpuFio] = fio / ios * 1e6
	s.CPUUs[cpuKernel] = kernel / ios * 1e6
	s.CPUUs[cpuMachine] = busy / ios * 1e6
	if all := busy + idle + steal; all > 0 {
		s.Steal = steal / all
		s.Foreign = max(0, busy-sum-fio-kernel) / all
	}
}

// round keeps four digits: more say nothing, and the file stays readable.
func (s *sample) round() {
	for _, v := range []*float64{&s.IOPS, &s.MiBps, &s.MeanUs, &s.P50Us, &s.P99Us, &s.P999Us, &s.Steal, &s.Foreign} {
		*v = fourDigits(*v)
	}
	for k, v := range s.CPUUs {
		s.CPUUs[k] = fourDigits(v)
	}
}

func fourDigits(v float64) float64 {
	if v == 0 || math.IsNaN(v) || math.IsInf(v, 0) {
		return 0
	}
	scale := math.Pow(10, 3-math.Floor(math.Log10(math.Abs(v))))
	return math.Round(v*scale) / scale
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

// processNames lists the processes of a sample, the costliest first.
func (s sample) processNames() []string {
	var names []string
	for k := range s.CPUUs {
		if k != cpuSystem && k != cpuMachine && k != cpuKernel && k != cpuFio {
			names = append(names, k)
		}
	}
	slices.SortFunc(names, func(a, b string) int {
		if s.CPUUs[a] > s.CPUUs[b] {
			return -1
		}
		return 1
	})
	return names
}
