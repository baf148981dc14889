// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

func main() {
	results := flag.String("results", "perf/results", "where the benchmark has left its results")
	docs := flag.String("docs", "docs", "where the pages are")
	flag.Parse()
	if err := run(*results, *docs); err != nil {
		fmt.Fprintln(os.Stderr, "pages:", err)
		os.Exit(1)
	}
}

func run(results, docs string) error {
	r, err := readMeasured(filepath.Join(results, "results.json"))
	if err != nil {
		return err
	}
	figures := map[string]string{"run": r.provenance(), "targets": r.targetTable(), "core": r.coreTables()}
	if disk, err := readMeasured(filepath.Join(results, "disk", "results.json")); err == nil {
		figures["disk"] = disk.provenance() + "\n" + disk.coreTables()
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if profile, err := os.ReadFile(filepath.Join(results, "profile.md")); err == nil {
		figures["profile"] = string(profile)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	for _, pass := range []string{"fast", "slow"} {
		s, err := readMeasured(filepath.Join(results, "scaling", pass, "results.json"))
		if err == nil {
			figures["scale-"+pass] = s.scaleTable()
		} else if !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	costs, err := r.costs()
	if err != nil {
		return err
	}
	scalingFigures(figures, costs)
	if err := plots(filepath.Join(docs, "scaling"), costs); err != nil {
		return err
	}
	for _, page := range []string{"performance.md", "scaling.md"} {
		path := filepath.Join(docs, page)
		text, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(replaceFigures(string(text), figures)), 0o644); err != nil {
			return err
		}
	}
	return nil
}

// replaceFigures puts each figure between its marks. A mark without a figure keeps
// what it had.
func replaceFigures(text string, figures map[string]string) string {
	const open, middle, end = "<!-- figures: ", " -->\n", "<!-- end -->"
	var out strings.Builder
	for {
		before, rest, found := strings.Cut(text, open)
		out.WriteString(before)
		if !found {
			return out.String()
		}
		name, rest, _ := strings.Cut(rest, middle)
		old, rest, closed := strings.Cut(rest, end)
		figure, known := figures[name]
		if !known || !closed {
			figure = old
		}
		out.WriteString(open + name + middle + strings.TrimRight(figure, "\n") + "\n")
		if closed {
			out.WriteString(end)
		}
		text = rest
	}
}

// measured is what the pages need of a benchmark's results.json.
type measured struct {
	Started  string            `json:"started"`
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	Backing  string            `json:"backing"`
	SizeMiB  int               `json:"size_mib"`
	Rounds   int               `json:"rounds"`
	Runtime  string            `json:"runtime"`
	Systems  []string          `json:"systems"`
	Loads    []struct {
		Name string `json:"name"`
	} `json:"loads"`
	Targets []struct {
		Name    string  `json:"name"`
		Value   float64 `json:"value"`
		Unit    string  `json:"unit"`
		AtMost  bool    `json:"at_most"`
		Target  float64 `json:"target"`
		Aim     float64 `json:"aim"`
		Verdict string  `json:"verdict"`
		Note    string  `json:"note"`
	} `json:"targets"`
	Samples []sample `json:"samples"`
}

type sample struct {
	System    string             `json:"system"`
	Load      string             `json:"load"`
	IOPS      float64            `json:"iops"`
	MiBps     float64            `json:"mib_per_s"`
	MeanUs    float64            `json:"mean_us"`
	P99Us     float64            `json:"p99_us"`
	CPUUs     map[string]float64 `json:"cpu_us_per_io"`
	Disturbed bool               `json:"disturbed"`
}

func readMeasured(path string) (*measured, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var r measured
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return &r, nil
}

// median is that of one figure of a system under a load; 0 when there is none.
func (r *measured) median(system, load string, figure func(sample) float64) float64 {
	var v []float64
	for _, s := range r.Samples {
		if s.System == system && s.Load == load {
			v = append(v, figure(s))
		}
	}
	if len(v) == 0 {
		return 0
	}
	slices.Sort(v)
	return (v[(len(v)-1)/2] + v[len(v)/2]) / 2
}

func (r *measured) cpu(system, load string, processes ...string) float64 {
	return r.median(system, load, func(s sample) (sum float64) {
		for _, p := range processes {
			sum += s.CPUUs[p]
		}
		return sum
	})
}

func (r *measured) provenance() string {
	disturbed := 0
	for _, s := range r.Samples {
		if s.Disturbed {
			disturbed++
		}
	}
	return fmt.Sprintf("Taken %s at commit %s on %s, %s cores, %s, kernel %s, %s; backing %s, volumes of %d MiB;"+
		" %d rounds of %s, medians; %d of %d samples count although the machine was disturbed.\n", r.Started,
		r.Versions["braid"], r.Machine["cpu"], r.Machine["cores"], r.Machine["memory"], r.Machine["kernel"],
		r.Machine["virtual"], r.Backing, r.SizeMiB, r.Rounds, r.Runtime, disturbed, len(r.Samples))
}

func (r *measured) targetTable() string {
	var b strings.Builder
	b.WriteString("| what | figure | target | then aim at | |\n|---|---:|---:|---:|---|\n")
	for _, t := range r.Targets {
		sign, aim := "≥", ""
		if t.AtMost {
			sign = "≤"
		}
		if t.Aim > 0 {
			aim = fmt.Sprintf("%.3g", t.Aim)
		}
		verdict := t.Verdict
		if t.Note != "" {
			verdict += ", " + t.Note
		}
		fmt.Fprintf(&b, "| %s | %.3g %s | %s %.3g | %s | %s |\n", t.Name, t.Value, t.Unit, sign, t.Target, aim, verdict)
	}
	return b.String()
}

// coreTables are throughput, latency and CPU time, systems down, loads across.
func (r *measured) coreTables() string {
	var b strings.Builder
	loads := []string{"4k-randread-qd1", "4k-randread-qd32", "4k-randwrite-qd1", "4k-randwrite-qd32",
		"4k-rand70r-qd32", "4k-randwrite-fsync-qd1", "1m-read-qd8", "1m-write-qd8"}
	loads = slices.DeleteFunc(loads, func(name string) bool {
		return !slices.ContainsFunc(r.Samples, func(s sample) bool { return s.Load == name })
	})
	systems := slices.DeleteFunc(slices.Clone(r.Systems), func(name string) bool {
		return r.median(name, loads[0], func(s sample) float64 { return s.IOPS }) == 0
	})
	for _, table := range []struct {
		title  string
		figure func(system, load string) float64
	}{
		{"IOPS; MiB/s where I/Os have 1 MiB", func(system, load string) float64 {
			return r.median(system, load, func(s sample) float64 {
				if strings.HasPrefix(load, "1m") {
					return s.MiBps
				}
				return s.IOPS
			})
		}},
		{"Mean latency, µs", func(system, load string) float64 {
			return r.median(system, load, func(s sample) float64 { return s.MeanUs })
		}},
		{"CPU µs per I/O of the system's processes", func(system, load string) float64 {
			return r.cpu(system, load, "system")
		}},
	} {
		fmt.Fprintf(&b, "\n%s:\n\n| system | %s |\n|---|%s\n", table.title, strings.Join(loads, " | "),
			strings.Repeat("---:|", len(loads)))
		for _, system := range systems {
			fmt.Fprintf(&b, "| %s |", system)
			for _, load := range loads {
				if v := table.figure(system, load); v == 0 {
					b.WriteString(" |")
				} else {
					fmt.Fprintf(&b, " %s |", short(v))
				}
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// short prints three digits, or all before the point.
func short(v float64) string {
	switch {
	case v >= 100:
		return fmt.Sprintf("%.0f", v)
	case v >= 10:
		return fmt.Sprintf("%.1f", v)
	}
	return fmt.Sprintf("%.2f", v)
}

func (r *measured) scaleTable() string {
	var b strings.Builder
	b.WriteString("| cluster | load | IOPS | mean µs | sdc, CPU µs per I/O | all sds, CPU µs per I/O |\n" +
		"|---|---|---:|---:|---:|---:|\n")
	for _, l := range r.Loads {
		for _, system := range r.Systems {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s | %s |\n", system, l.Name,
				short(r.median(system, l.Name, func(s sample) float64 { return s.IOPS })),
				short(r.median(system, l.Name, func(s sample) float64 { return s.MeanUs })),
				short(r.cpu(system, l.Name, "sdc")), short(r.cpu(system, l.Name, "sds")))
		}
	}
	return b.String()
}
