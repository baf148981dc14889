// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"braid/perf/figure"
)

// plots draws what this run has measured: latency over load, throughput, and CPU
// time per I/O stacked by process.
func (r *result) plots(dir string) error {
	for _, rw := range []string{"read", "write"} {
		if err := r.plotLatency(filepath.Join(dir, "latency-"+rw+".svg"), "4k-rand"+rw); err != nil {
			return err
		}
	}
	for _, name := range []string{"4k-randread-qd1", "4k-randread-qd32", "4k-randwrite-qd1", "4k-randwrite-qd32",
		"4k-randwrite-fsync-qd1"} {
		if !slices.ContainsFunc(r.Loads, func(l load) bool { return l.Name == name }) {
			continue
		}
		if err := r.plotCPU(filepath.Join(dir, "cpu-"+name+".svg"), name); err != nil {
			return err
		}
		if err := r.plotIOPS(filepath.Join(dir, "iops-"+name+".svg"), name); err != nil {
			return err
		}
	}
	return nil
}

// having are the systems that were measured under a load.
func (r *result) having(load string) []string {
	return slices.DeleteFunc(slices.Clone(r.Systems), func(name string) bool {
		return r.of(name, load, func(s sample) float64 { return s.IOPS }).Max == 0
	})
}

// plotLatency draws a line a system: a point for each queue depth, its throughput
// to the right, its latency upwards. Right and low is good.
func (r *result) plotLatency(path, prefix string) error {
	p := figure.NewLogLog(prefix+": mean latency over throughput, a point for each queue depth", "IOPS", "µs")
	lines := 0
	for _, name := range r.Systems {
		var points plotter.XYs
		for _, l := range r.Loads {
			if l.Conns != 1 || l.Name != fmt.Sprintf("%s-qd%d", prefix, l.Depth) {
				continue
			}
			x := r.of(name, l.Name, func(s sample) float64 { return s.IOPS }).Median
			y := r.of(name, l.Name, func(s sample) float64 { return s.MeanUs }).Median
			if x > 0 && y > 0 {
				points = append(points, plotter.XY{X: x, Y: y})
			}
		}
		if len(points) < 2 {
			continue
		}
		line, dots, err := plotter.NewLinePoints(points)
		if err != nil {
			return err
		}
		line.Color, dots.Color, dots.Shape = figure.Color(lines), figure.Color(lines), draw.CircleGlyph{}
		if name == ours {
			line.Width = vg.Points(2.5)
		}
		p.Add(line, dots)
		p.Legend.Add(name, line)
		lines++
	}
	if lines == 0 {
		return nil
	}
	return p.Save(figure.Width, figure.Width*3/4, path)
}

func (r *result) plotIOPS(path, load string) error {
	p := figure.New(load+": I/O per second, median and spread", "IOPS", "")
	p.X.Min = 0
	systems := r.having(load)
	slices.Reverse(systems) // the first is to stand on top
	values := make(plotter.Values, len(systems))
	bars := errorBars{make(plotter.XYs, len(systems)), make(plotter.XErrors, len(systems))}
	for i, name := range systems {
		st := r.of(name, load, func(s sample) float64 { return s.IOPS })
		values[i] = st.Median
		bars.XYs[i] = plotter.XY{X: st.Median, Y: float64(i)}
		bars.XErrors[i].Low, bars.XErrors[i].High = st.Median-st.Min, st.Max-st.Median
	}
	chart, err := plotter.NewBarChart(values, vg.Points(14))
	if err != nil {
		return err
	}
	chart.Horizontal, chart.Color, chart.LineStyle.Width = true, figure.Color(0), 0
	spread, err := plotter.NewXErrorBars(bars)
	if err != nil {
		return err
	}
	p.Add(chart, spread)
	p.NominalY(padded(systems)...)
	return p.Save(figure.Width, figure.Height, path)
}

type errorBars struct {
	plotter.XYs
	plotter.XErrors
}

// padded keeps names clear of the bars, should the reader's font be a wider one.
func padded(names []string) []string {
	out := make([]string, len(names))
	for i, name := range names {
		out[i] = name + "      "
	}
	return out
}

// shown are the systems whose bars are drawn, and what is to be said of those that
// would leave the others no room.
func (r *result) shown(load string) (systems []string, hidden string) {
	total := func(name string) float64 {
		return r.of(name, load, func(s sample) float64 {
			return s.CPUUs[cpuSystem] + s.CPUUs[cpuKernel] + s.CPUUs[cpuFio]
		}).Median
	}
	most := 4 * total(ours)
	for _, name := range r.having(load) {
		if most > 0 && total(name) > most {
			hidden += fmt.Sprintf(", %s %.0f", name, total(name))
			continue
		}
		systems = append(systems, name)
	}
	if hidden != "" {
		hidden = " (not drawn: " + hidden[2:] + ")"
	}
	return systems, hidden
}

func (r *result) plotCPU(path, load string) error {
	systems, hidden := r.shown(load)
	p := figure.New(load+": CPU time per I/O by process", "µs"+hidden, "")
	p.X.Min = 0
	p.Legend.Top = true
	var names []string // in order of appearance
	for _, name := range systems {
		for _, process := range r.processes(name, load) {
			if !slices.Contains(names, process) {
				names = append(names, process)
			}
		}
	}
	slices.Reverse(systems)
	widest := 0.0
	sums := make([]float64, len(systems))
	var below *plotter.BarChart
	for i, process := range append(names, cpuKernel, cpuFio) {
		values := make(plotter.Values, len(systems))
		for k, name := range systems {
			values[k] = r.of(name, load, func(s sample) float64 { return s.CPUUs[process] }).Median
			sums[k] += values[k]
			widest = max(widest, sums[k])
		}
		chart, err := plotter.NewBarChart(values, vg.Points(14))
		if err != nil {
			return err
		}
		chart.Horizontal, chart.Color, chart.LineStyle.Width = true, figure.Color(i), 0
		if below != nil {
			chart.StackOn(below)
		}
		below = chart
		p.Add(chart)
		p.Legend.Add(process, chart)
	}
	p.NominalY(padded(systems)...)
	p.X.Max = widest * 1.2 // room for the legend
	return p.Save(figure.Width, figure.Height, path)
}
