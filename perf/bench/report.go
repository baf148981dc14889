// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// result is what one run leaves in results.json.
type result struct {
	Started  time.Time         `json:"started"`
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	Backing  string            `json:"backing"`
	Rounds   int               `json:"rounds"`
	Runtime  string            `json:"runtime"`
	Loads    []load            `json:"loads"`
	Systems  []string          `json:"systems"`
	Samples  []sample          `json:"samples"`
}

// stat is the median and the spread of one figure over the rounds.
type stat struct{ Min, Median, Max float64 }

func newStat(v []float64) stat {
	if len(v) == 0 {
		return stat{}
	}
	v = slices.Clone(v)
	slices.Sort(v)
	m := v[len(v)/2]
	if len(v)%2 == 0 {
		m = (m + v[len(v)/2-1]) / 2
	}
	return stat{v[0], m, v[len(v)-1]}
}

// of collects one figure of one system under one load.
func (r *result) of(system, load string, figure func(sample) float64) stat {
	var v []float64
	for _, s := range r.Samples {
		if s.System == system && s.Load == load {
			v = append(v, figure(s))
		}
	}
	return newStat(v)
}

func (r *result) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(b, '\n'), 0o644); err != nil {
		return err
	}
	var md strings.Builder
	r.markdown(&md)
	if err := os.WriteFile(filepath.Join(dir, "results.md"), []byte(md.String()), 0o644); err != nil {
		return err
	}
	return r.plots(dir)
}

// markdown prints a table a load: medians, with min-max of the throughput.
func (r *result) markdown(w io.Writer) {
	fmt.Fprintf(w, "# Benchmark of %s\n\n", r.Started.Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(w, "%s, %s cores, %s, kernel %s. Backing: %s. %d rounds of %s, interleaved; medians.\n",
		r.Machine["cpu"], r.Machine["cores"], r.Machine["memory"], r.Machine["kernel"], r.Backing, r.Rounds, r.Runtime)
	repeats, disturbed, steal, foreign := 0, 0, 0.0, 0.0
	for _, s := range r.Samples {
		repeats += s.Repeats
		if s.Disturbed {
			disturbed++
		}
		steal = max(steal, s.Steal)
		foreign = max(foreign, s.Foreign)
	}
	fmt.Fprintf(w, "Disturbance: steal at most %.1f %%, CPU used outside the measured processes (kernel threads"+
		" included) at most %.0f %%; %d samples repeated, %d of %d kept although disturbed.\n",
		steal*100, foreign*100, repeats, disturbed, len(r.Samples))
	for _, k := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(w, "- %s: %s\n", k, r.Versions[k])
	}
	for _, l := range r.Loads {
		fmt.Fprintf(w, "\n## %s\n\n", l.Name)
		fmt.Fprintln(w, "| system | IOPS (min-max) | MiB/s | mean µs | p50 | p99 | p99.9 "+
			"| CPU µs per I/O, its processes | of which | machine |")
		fmt.Fprintln(w, "|---|---:|---:|---:|---:|---:|---:|---:|---|---:|")
		for _, name := range r.Systems {
			iops := r.of(name, l.Name, func(s sample) float64 { return s.IOPS })
			if iops.Max == 0 {
				continue
			}
			med := func(f func(sample) float64) float64 { return r.of(name, l.Name, f).Median }
			cpu := func(k string) float64 { return med(func(s sample) float64 { return s.CPUUs[k] }) }
			fmt.Fprintf(w, "| %s | %.0f (%.0f-%.0f) | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f | %s | %.1f |\n",
				name, iops.Median, iops.Min, iops.Max, med(func(s sample) float64 { return s.MiBps }),
				med(func(s sample) float64 { return s.MeanUs }), med(func(s sample) float64 { return s.P50Us }),
				med(func(s sample) float64 { return s.P99Us }), med(func(s sample) float64 { return s.P999Us }),
				cpu("system"), r.parts(name, l.Name), cpu("machine"))
		}
	}
}

// parts names what each process of a system used, largest first.
func (r *result) parts(system, load string) string {
	names := map[string]bool{}
	for _, s := range r.Samples {
		if s.System == system && s.Load == load {
			for k := range s.CPUUs {
				names[k] = true
			}
		}
	}
	delete(names, "system")
	delete(names, "machine")
	type part struct {
		name string
		us   float64
	}
	var parts []part
	for k := range names {
		parts = append(parts, part{k, r.of(system, load, func(s sample) float64 { return s.CPUUs[k] }).Median})
	}
	slices.SortFunc(parts, func(a, b part) int {
		if a.us != b.us {
			if a.us > b.us {
				return -1
			}
			return 1
		}
		return strings.Compare(a.name, b.name)
	})
	var out []string
	for _, p := range parts {
		out = append(out, fmt.Sprintf("%s %.1f", p.name, p.us))
	}
	return strings.Join(out, ", ")
}
