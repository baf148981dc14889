// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"image/color"
	"path/filepath"
	"slices"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"
)

// palette is Okabe and Ito's, which colour-blind readers can tell apart.
func palette(i int) color.Color {
	colors := []color.RGBA{
		{0x00, 0x72, 0xB2, 0xFF}, {0xE6, 0x9F, 0x00, 0xFF}, {0x00, 0x9E, 0x73, 0xFF}, {0xCC, 0x79, 0xA7, 0xFF},
		{0x56, 0xB4, 0xE9, 0xFF}, {0xD5, 0x5E, 0x00, 0xFF}, {0xF0, 0xE4, 0x42, 0xFF}, {0x55, 0x55, 0x55, 0xFF},
		{0x99, 0x99, 0x99, 0xFF}, {0x00, 0x44, 0x66, 0xFF}, {0x88, 0x22, 0x55, 0xFF}, {0x22, 0x88, 0x33, 0xFF},
	}
	return colors[i%len(colors)]
}

// Size of the figures: two fit on a page beside each other.
const (
	figureWidth  = 8 * vg.Inch
	figureHeight = 4.5 * vg.Inch
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
	p := plot.New()
	p.Title.Text = prefix + ": mean latency over throughput, queue depths from left to right"
	p.X.Label.Text, p.Y.Label.Text = "IOPS", "µs"
	p.X.Scale, p.Y.Scale = plot.LogScale{}, plot.LogScale{}
	p.X.Tick.Marker, p.Y.Tick.Marker = plot.LogTicks{Prec: -1}, plot.LogTicks{Prec: -1}
	p.Legend.Top, p.Legend.Left = true, true
	p.Add(plotter.NewGrid())
	lines := 0
	for i, name := range r.Systems {
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
		line.Color, dots.Color, dots.Shape = palette(i), palette(i), draw.CircleGlyph{}
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
	return p.Save(figureWidth, figureWidth*3/4, path)
}

func (r *result) plotIOPS(path, load string) error {
	p := plot.New()
	p.Title.Text = load + ": I/O per second, median and spread"
	p.X.Label.Text = "IOPS"
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
	chart.Horizontal, chart.Color, chart.LineStyle.Width = true, palette(0), 0
	spread, err := plotter.NewXErrorBars(bars)
	if err != nil {
		return err
	}
	p.Add(plotter.NewGrid(), chart, spread)
	p.NominalY(systems...)
	return p.Save(figureWidth, figureHeight, path)
}

type errorBars struct {
	plotter.XYs
	plotter.XErrors
}

func (r *result) plotCPU(path, load string) error {
	p := plot.New()
	p.Title.Text = load + ": CPU time per I/O by process"
	p.X.Label.Text = "µs"
	p.X.Min = 0
	p.Legend.Top = true
	systems := r.having(load)
	var names []string // in order of appearance
	for _, name := range systems {
		for _, process := range r.processes(name, load) {
			if !slices.Contains(names, process) {
				names = append(names, process)
			}
		}
	}
	slices.Reverse(systems)
	var below *plotter.BarChart
	for i, process := range append(names, cpuKernel, cpuFio) {
		values := make(plotter.Values, len(systems))
		for k, name := range systems {
			values[k] = r.of(name, load, func(s sample) float64 { return s.CPUUs[process] }).Median
		}
		chart, err := plotter.NewBarChart(values, vg.Points(14))
		if err != nil {
			return err
		}
		chart.Horizontal, chart.Color, chart.LineStyle.Width = true, palette(i), 0
		if below != nil {
			chart.StackOn(below)
		}
		below = chart
		p.Add(chart)
		p.Legend.Add(process, chart)
	}
	p.NominalY(systems...)
	return p.Save(figureWidth, figureHeight, path)
}
