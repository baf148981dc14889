// SPDX-License-Identifier: Apache-2.0

package main

import (
	"image/color"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// palette is Okabe and Ito's, which colour-blind readers can tell apart.
func palette(i int) color.Color {
	colors := []color.RGBA{
		{0x00, 0x72, 0xB2, 0xFF}, {0xE6, 0x9F, 0x00, 0xFF}, {0x00, 0x9E, 0x73, 0xFF}, {0xCC, 0x79, 0xA7, 0xFF},
		{0x56, 0xB4, 0xE9, 0xFF}, {0xD5, 0x5E, 0x00, 0xFF}, {0xF0, 0xE4, 0x42, 0xFF}, {0x55, 0x55, 0x55, 0xFF},
	}
	return colors[i%len(colors)]
}

// plots draws, for each load, throughput and CPU per I/O stacked by process.
func (r *result) plots(dir string) error {
	for _, l := range r.Loads {
		if err := r.plotIOPS(filepath.Join(dir, "iops-"+l.Name+".svg"), l); err != nil {
			return err
		}
		if err := r.plotCPU(filepath.Join(dir, "cpu-"+l.Name+".svg"), l); err != nil {
			return err
		}
	}
	return nil
}

func (r *result) plotIOPS(path string, l load) error {
	p := plot.New()
	p.Title.Text = l.Name + ": I/O per second, median and spread"
	p.Y.Label.Text = "IOPS"
	p.Y.Min = 0
	values := make(plotter.Values, len(r.Systems))
	bars := errorBars{make(plotter.XYs, len(r.Systems)), make(plotter.YErrors, len(r.Systems))}
	for i, name := range r.Systems {
		st := r.of(name, l.Name, func(s sample) float64 { return s.IOPS })
		values[i] = st.Median
		bars.XYs[i] = plotter.XY{X: float64(i), Y: st.Median}
		bars.YErrors[i].Low, bars.YErrors[i].High = st.Median-st.Min, st.Max-st.Median
	}
	chart, err := plotter.NewBarChart(values, vg.Points(28))
	if err != nil {
		return err
	}
	chart.Color, chart.LineStyle.Width = palette(0), 0
	spread, err := plotter.NewYErrorBars(bars)
	if err != nil {
		return err
	}
	p.Add(plotter.NewGrid(), chart, spread)
	p.NominalX(r.Systems...)
	return p.Save(vg.Length(len(r.Systems)+2)*vg.Inch, 4*vg.Inch, path)
}

type errorBars struct {
	plotter.XYs
	plotter.YErrors
}

func (r *result) plotCPU(path string, l load) error {
	p := plot.New()
	p.Title.Text = l.Name + ": CPU time per I/O by process"
	p.Y.Label.Text = "µs"
	p.Y.Min = 0
	p.Legend.Top = true
	names := r.processes(l.Name)
	var below *plotter.BarChart
	for i, proc := range names {
		values := make(plotter.Values, len(r.Systems))
		for k, name := range r.Systems {
			values[k] = r.of(name, l.Name, func(s sample) float64 { return s.CPUUs[proc] }).Median
		}
		chart, err := plotter.NewBarChart(values, vg.Points(28))
		if err != nil {
			return err
		}
		chart.Color, chart.LineStyle.Width = palette(i), 0
		if below != nil {
			chart.StackOn(below)
		}
		below = chart
		p.Add(chart)
		p.Legend.Add(proc, chart)
	}
	p.NominalX(r.Systems...)
	return p.Save(vg.Length(len(r.Systems)+2)*vg.Inch, 4*vg.Inch, path)
}

// processes lists every process measured under a load, in order of appearance
// by system, fio last.
func (r *result) processes(load string) []string {
	var names []string
	seen := map[string]bool{"system": true, "machine": true, "fio": true}
	for _, sys := range r.Systems {
		for _, s := range r.Samples {
			if s.System != sys || s.Load != load {
				continue
			}
			for _, k := range []string{"sdc", "sds", "mdm", sys} {
				if _, ok := s.CPUUs[k]; ok && !seen[k] {
					seen[k] = true
					names = append(names, k)
				}
			}
		}
	}
	return append(names, "fio")
}
