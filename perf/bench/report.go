// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
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

// result is what one run leaves in results.json. Samples come last there, a line
// each.
type result struct {
	Started  time.Time         `json:"started"`
	Took     string            `json:"took"`
	Machine  map[string]string `json:"machine"`
	Versions map[string]string `json:"versions"`
	Backing  string            `json:"backing"`
	SizeMiB  uint64            `json:"size_mib"`
	Rounds   int               `json:"rounds"`
	Runtime  string            `json:"runtime"`
	Systems  []string          `json:"systems"`
	Settings []string          `json:"settings"` // one of each system
	Loads    []load            `json:"loads"`
	Idle     []idleFigure      `json:"idle"`
	Targets  []targetRow       `json:"targets"`
	Samples  []sample          `json:"-"`
}

func newResult(ctx context.Context, o options, loads []load) *result {
	return &result{Started: time.Now().UTC().Truncate(time.Second), Machine: machineDescription(),
		Versions: versions(ctx), Backing: o.backing, SizeMiB: o.sizeMiB, Rounds: o.rounds,
		Runtime: o.runtime.String(), Loads: loads}
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

// encode is the result as JSON, each sample on a line of its own.
func (r *result) encode() ([]byte, error) {
	head, err := json.MarshalIndent(r, "", " ")
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	out.Write(bytes.TrimSuffix(head, []byte("\n}")))
	out.WriteString(",\n \"samples\": [")
	for i, s := range r.Samples {
		line, err := json.Marshal(s)
		if err != nil {
			return nil, err
		}
		out.WriteString(map[bool]string{true: "\n  ", false: ",\n  "}[i == 0])
		out.Write(line)
	}
	out.WriteString("\n ]\n}\n")
	return out.Bytes(), nil
}

// readResult reads what write has left.
func readResult(dir string) (*result, error) {
	text, err := os.ReadFile(filepath.Join(dir, "results.json"))
	if err != nil {
		return nil, err
	}
	var r struct {
		result
		Samples []sample `json:"samples"`
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return nil, fmt.Errorf("read %s: %w", dir, err)
	}
	r.result.Samples = r.Samples
	return &r.result, nil
}

func (r *result) write(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	b, err := r.encode()
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), b, 0o644); err != nil {
		return err
	}
	var md strings.Builder
	r.markdown(&md)
	return os.WriteFile(filepath.Join(dir, "results.md"), []byte(md.String()), 0o644)
}

// markdown is the report: what was measured and how disturbed it was, targets,
// idle systems, and a table a load.
func (r *result) markdown(w io.Writer) {
	fmt.Fprintf(w, "# Benchmark of %s\n\n", r.Started.Format("2006-01-02 15:04 MST"))
	fmt.Fprintf(w, "%s, %s cores, %s, kernel %s; %s. Backing: %s, volumes of %d MiB, written in full before.\n",
		r.Machine["cpu"], r.Machine["cores"], r.Machine["memory"], r.Machine["kernel"], r.Machine["virtual"],
		r.Backing, r.SizeMiB)
	fmt.Fprintf(w, "%d rounds of %s, interleaved, in rotated order; medians. Nothing is pinned to a core.\n\n",
		r.Rounds, r.Runtime)
	r.disturbance(w)
	fmt.Fprint(w, "\n| system | settings |\n|---|---|\n")
	for i, name := range r.Systems {
		fmt.Fprintf(w, "| %s | %s |\n", name, r.Settings[i])
	}
	fmt.Fprintln(w)
	for _, k := range slices.Sorted(maps.Keys(r.Versions)) {
		fmt.Fprintf(w, "- %s: %s\n", k, r.Versions[k])
	}
	r.targetTable(w)
	r.idleTable(w)
	for _, l := range r.Loads {
		r.loadTable(w, l)
	}
}

func (r *result) disturbance(w io.Writer) {
	repeats, disturbed := 0, 0
	var steal, foreign []float64
	for _, s := range r.Samples {
		repeats += s.Repeats
		if s.Disturbed {
			disturbed++
		}
		steal, foreign = append(steal, s.Steal*100), append(foreign, s.Foreign*100)
	}
	st, fo := newStat(steal), newStat(foreign)
	fmt.Fprintf(w, "Disturbance: the hypervisor took %.1f %% of the CPU time (median; at most %.1f %%), processes"+
		" that were not measured %.1f %% (at most %.1f %%). %d samples were taken again, %d of %d count although"+
		" disturbed (over %.0f %% or %.0f %%).\n", st.Median, st.Max, fo.Median, fo.Max, repeats, disturbed,
		len(r.Samples), stealLimit*100, foreignLimit*100)
}

func (r *result) targetTable(w io.Writer) {
	if len(r.Targets) == 0 {
		return
	}
	fmt.Fprintf(w, "\n## Targets of %s\n\n| what | figure | target | then aim at | |\n|---|---:|---:|---:|---|\n", ours)
	for _, t := range r.Targets {
		sign, aim := "≥", ""
		if t.AtMost {
			sign = "≤"
		}
		if t.Aim > 0 {
			aim = fmt.Sprintf("%.3g", t.Aim)
		}
		verdict := t.Verdict
		if verdict == verdictMissed {
			verdict = "**missed**"
		}
		if t.Note != "" {
			verdict += ", " + t.Note
		}
		fmt.Fprintf(w, "| %s | %.3g %s | %s %.3g | %s | %s |\n", t.Name, t.Value, t.Unit, sign, t.Target, aim, verdict)
	}
}

func (r *result) idleTable(w io.Writer) {
	if len(r.Idle) == 0 {
		return
	}
	fmt.Fprint(w, "\n## Idle\n\nEmpty volumes, all systems started, nobody uses them: CPU of the busiest and memory"+
		" of the largest process of each name.\n\n| system | process | how many | % of a core | MiB RSS |\n"+
		"|---|---|---:|---:|---:|\n")
	for _, f := range r.Idle {
		fmt.Fprintf(w, "| %s | %s | %d | %.2f | %.0f |\n", f.System, f.Process, f.Count, f.CPU, f.RSS)
	}
}

func (r *result) loadTable(w io.Writer, l load) {
	fmt.Fprintf(w, "\n## %s\n\n| system | IOPS (min-max) | MiB/s | mean µs | p50 | p99 | p99.9 "+
		"| CPU µs per I/O, its processes | of which | kernel threads | machine |\n"+
		"|---|---:|---:|---:|---:|---:|---:|---:|---|---:|---:|\n", l.Name)
	for _, name := range r.Systems {
		iops := r.of(name, l.Name, func(s sample) float64 { return s.IOPS })
		if iops.Max == 0 {
			continue
		}
		med := func(f func(sample) float64) float64 { return r.of(name, l.Name, f).Median }
		cpu := func(k string) float64 { return med(func(s sample) float64 { return s.CPUUs[k] }) }
		fmt.Fprintf(w, "| %s | %.0f (%.0f-%.0f) | %.0f | %.0f | %.0f | %.0f | %.0f | %.1f | %s | %.1f | %.1f |\n",
			name, iops.Median, iops.Min, iops.Max, med(func(s sample) float64 { return s.MiBps }),
			med(func(s sample) float64 { return s.MeanUs }), med(func(s sample) float64 { return s.P50Us }),
			med(func(s sample) float64 { return s.P99Us }), med(func(s sample) float64 { return s.P999Us }),
			cpu(cpuSystem), r.parts(name, l.Name), cpu(cpuKernel), cpu(cpuMachine))
	}
}

// parts names what each process of a system used, largest first, and fio.
func (r *result) parts(system, load string) string {
	var out []string
	for _, k := range append(r.processes(system, load), cpuFio) {
		us := r.of(system, load, func(s sample) float64 { return s.CPUUs[k] }).Median
		out = append(out, fmt.Sprintf("%s %.1f", k, us))
	}
	return strings.Join(out, ", ")
}

// processes lists the processes of a system under a load, the costliest first.
func (r *result) processes(system, load string) []string {
	for _, s := range r.Samples {
		if s.System == system && s.Load == load {
			return s.processNames()
		}
	}
	return nil
}
