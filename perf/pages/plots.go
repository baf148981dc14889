// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
	"gonum.org/v1/plot/vg/draw"

	"braid/perf/figure"
	"braid/perf/model"
)

// plots draws the model's figures into the folder.
func plots(dir string, k model.Costs) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := plotThroughput(filepath.Join(dir, "throughput.svg"), k); err != nil {
		return err
	}
	if err := plotLatency(filepath.Join(dir, "latency.svg"), k); err != nil {
		return err
	}
	return plotBurdens(filepath.Join(dir, "burdens.svg"))
}

func addLine(p *plot.Plot, name string, points plotter.XYs, i int, dashed bool) error {
	line, err := plotter.NewLine(points)
	if err != nil {
		return err
	}
	line.Color, line.Width = figure.Color(i), vg.Points(1.5)
	if dashed {
		line.Dashes = figure.Dashes()
	}
	p.Add(line)
	p.Legend.Add(name, line)
	return nil
}

// servers from 1 to last, evenly on a logarithmic axis.
func servers(last int) (out []int) {
	for n := 1.0; int(n) <= last; n *= 1.1 {
		if len(out) == 0 || int(n) > out[len(out)-1] {
			out = append(out, int(n))
		}
	}
	return out
}

func plotThroughput(path string, k model.Costs) error {
	p := figure.NewLogLog("4 KiB writes, two copies; a client for each server, or 16 (dashed)",
		"servers", "IOPS")
	for i, g := range networks {
		var growing, fixed plotter.XYs
		for _, n := range servers(1000) {
			c := reference(n, g)
			growing = append(growing, plotter.XY{X: float64(n), Y: c.Throughput(k, smallWrites).IOPS})
			c.Clients = 16
			fixed = append(fixed, plotter.XY{X: float64(n), Y: c.Throughput(k, smallWrites).IOPS})
		}
		name := fmt.Sprintf("%d Gbit/s", g)
		if err := addLine(p, name, growing, i, false); err != nil {
			return err
		}
		if err := addLine(p, name+", 16 clients", fixed, i, true); err != nil {
			return err
		}
	}
	return p.Save(figure.Width, figure.Height, path)
}

func plotLatency(path string, k model.Costs) error {
	p := figure.NewLogLog("70/30 of 4 KiB, 25 Gbit/s: mean latency over load, and the knee", "IOPS", "µs")
	for i, n := range []int{3, 10, 100, 1000} {
		c := reference(n, 25)
		limit := c.Throughput(k, smallMix).IOPS
		var points plotter.XYs
		for step := 1; step < 100; step++ {
			x := limit * float64(step) / 100
			points = append(points, plotter.XY{X: x, Y: c.Latency(k, smallMix, x)})
		}
		if err := addLine(p, fmt.Sprintf("%d servers", n), points, i, false); err != nil {
			return err
		}
		x, y := c.Knee(k, smallMix)
		dot, err := plotter.NewScatter(plotter.XYs{{X: x, Y: y}})
		if err != nil {
			return err
		}
		dot.Color, dot.Shape, dot.Radius = figure.Color(i), draw.CircleGlyph{}, vg.Points(4)
		p.Add(dot)
	}
	return p.Save(figure.Width, figure.Height, path)
}

func plotBurdens(path string) error {
	p := figure.NewLogLog("What grows with the fleet, as a share of its limit", "servers", "share of the limit")
	traits := model.Measured()
	lines := map[string]plotter.XYs{}
	for _, n := range servers(manyServers) {
		for _, x := range fleet(n).Burdens(traits) {
			lines[x.What] = append(lines[x.What], plotter.XY{X: float64(n), Y: x.Share()})
		}
	}
	for i, x := range fleet(1).Burdens(traits) {
		if err := addLine(p, x.What, lines[x.What], i, i >= 8); err != nil {
			return err
		}
	}
	limit := plotter.NewFunction(func(float64) float64 { return 1 })
	limit.Width = vg.Points(2)
	p.Add(limit)
	p.Y.Min, p.Y.Max, p.X.Max = 1e-4, 1e6, manyServers // room for the legend
	return p.Save(figure.Width, figure.Width*3/4, path)
}
