// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/plotter"

	"braid/perf/figure"
)

// diskDelay is what one I/O takes on the slow disks of a scaling run: they, and
// not the two cores that all servers share, are to be the limit.
const diskDelay = "2ms"

// scaling measures clusters of several sizes beside each other. First on disks in
// memory: whether CPU time per I/O stays the same when requests are spread over
// more servers. Then on slow disks, one I/O at a time each: whether throughput
// grows with the number of disks.
func scaling(ctx context.Context, o options) error {
	var sizes []int
	for word := range strings.SplitSeq(o.scale, ",") {
		n, err := strconv.Atoi(word)
		if err != nil || n < 1 {
			return fmt.Errorf("-scale %s: want numbers of servers, as in 1,2,4,8", o.scale)
		}
		sizes = append(sizes, n)
	}
	loads, err := chosenLoads(o, "scale")
	if err != nil {
		return err
	}
	for _, pass := range []struct {
		name   string
		env    []string
		note   string
		volume uint64
	}{
		{"fast", nil, "", o.sizeMiB << 20},
		{"slow", []string{"BRAID_TEST_DISK=io-delay=" + diskDelay},
			"disks that take " + diskDelay + " for each I/O, one at a time", min(o.sizeMiB, 64) << 20},
	} {
		r, err := scalePass(ctx, o, loads, sizes, pass.env, pass.note, pass.volume)
		if err != nil { // clusters of all sizes, or no comparison
			return err
		}
		dir := filepath.Join(o.out, pass.name)
		if err := r.write(dir); err != nil {
			return err
		}
		if err := r.plotScaling(filepath.Join(dir, "scaling.svg"), sizes); err != nil {
			return err
		}
		r.markdown(os.Stdout)
	}
	return nil
}

func scaleName(servers int) string { return fmt.Sprintf("braid-%d-sds", servers) }

func scalePass(ctx context.Context, o options, loads []load, sizes []int, env []string, note string, volume uint64) (
	*result, error) {
	p, err := newPlace(o)
	if err != nil {
		return nil, err
	}
	defer p.backing.close()
	var systems []system
	for _, n := range sizes {
		replicas := min(2, n)
		c := p.cluster(scaleName(n), n, volume*uint64(replicas)/uint64(n), env...)
		systems = append(systems, &braid{cluster: c, name: scaleName(n), replicas: replicas, size: volume, note: note})
	}
	o.idle = 0
	r := newResult(ctx, o, loads)
	r.SizeMiB = volume >> 20
	return r, r.take(ctx, o, p.backing, systems)
}

// plotScaling draws throughput and CPU time per I/O over the number of servers.
func (r *result) plotScaling(path string, sizes []int) error {
	p := figure.NewLogLog("IOPS, and CPU µs per I/O of sdc and sds (dashed)", "servers", "")
	var ticks plot.ConstantTicks
	for _, n := range sizes {
		ticks = append(ticks, plot.Tick{Value: float64(n), Label: strconv.Itoa(n)})
	}
	p.X.Tick.Marker = ticks
	for i, l := range r.Loads {
		for k, value := range []func(sample) float64{
			func(s sample) float64 { return s.IOPS },
			func(s sample) float64 { return s.CPUUs["sdc"] + s.CPUUs["sds"] },
		} {
			var points plotter.XYs
			for _, n := range sizes {
				if v := r.of(scaleName(n), l.Name, value).Median; v > 0 {
					points = append(points, plotter.XY{X: float64(n), Y: v})
				}
			}
			line, dots, err := plotter.NewLinePoints(points)
			if err != nil {
				return err
			}
			line.Color, dots.Color = figure.Color(i), figure.Color(i)
			if k == 1 {
				line.Dashes = figure.Dashes()
			}
			p.Add(line, dots)
			p.Legend.Add(l.Name+map[int]string{0: ", IOPS", 1: ", CPU µs"}[k], line)
		}
	}
	return p.Save(figure.Width, figure.Height, path)
}
