// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"braid/perf/model"
)

// ours is the system whose costs the model is fed with.
const ours = "braid-r2"

// costs takes the model's costs from the medians. Kernel threads are left out:
// here they are the loop devices, in place of which a server has disks.
func (r *measured) costs() (model.Costs, error) {
	const small, large = 4096, 1 << 20
	line := func(process string, rw string, copies float64) model.Line {
		return model.Through(small, r.cpu(ours, "4k-rand"+rw+"-qd32", process)/copies,
			large, r.cpu(ours, "1m-"+rw+"-qd8", process)/copies)
	}
	mean := func(s sample) float64 { return s.MeanUs }
	extra := func(load string) float64 { return max(0, r.median(ours, load, mean)-r.median("raw", load, mean)) }
	k := model.Costs{
		ClientRead: line("sdc", "read", 1), ClientWrite: line("sdc", "write", 1),
		ServerRead: line("sds", "read", 1), ServerWrite: line("sds", "write", 2),
		ReadLatency: extra("4k-randread-qd1"), WriteLatency: extra("4k-randwrite-qd1"),
	}
	for _, l := range []model.Line{k.ClientRead, k.ClientWrite, k.ServerRead, k.ServerWrite} {
		if l.At(small) <= 0 || l.At(large) <= 0 {
			return k, fmt.Errorf("the results lack figures of %s that the model needs", ours)
		}
	}
	return k, nil
}

// networks of the reference cluster, Gbit/s.
var networks = []int{10, 25, 100}

// sizes of the reference cluster, servers.
var sizes = []int{3, 10, 30, 100, 300, 1000}

// reference is a cluster as one would buy it: ten NVMe disks and 32 cores a
// server, and a client with 8 cores and 8 volumes for each server.
func reference(servers, gigabits int) model.Cluster {
	net := float64(gigabits) * 1e9 / 8
	return model.Cluster{
		Servers: servers, DisksPerServer: 10, CoresPerServer: 32,
		Clients: servers, CoresPerClient: 8, VolumesPerClient: 8, ServerNet: net, ClientNet: net,
		RoundTripUs: 30, Replicas: 2,
		Disk: model.Disk{ReadIOPS: 500e3, WriteIOPS: 150e3, ReadBytes: 3e9, WriteBytes: 1.5e9,
			ReadLatencyUs: 80, WriteLatencyUs: 15},
	}
}

var (
	smallReads  = model.Load{Bytes: 4096, Reads: 1}
	smallWrites = model.Load{Bytes: 4096}
	smallMix    = model.Load{Bytes: 4096, Reads: 0.7}
	largeReads  = model.Load{Bytes: 1 << 20, Reads: 1}
	largeWrites = model.Load{Bytes: 1 << 20}
)

// fleet is the reference cluster as its metadata manager sees it.
func fleet(servers int) model.Fleet {
	return model.Fleet{Servers: servers, DisksPerServer: 10, Volumes: 100 * servers, Attached: 8 * servers, Replicas: 2}
}

// manyServers is how far burdens are looked at.
const manyServers = 100_000

func scalingFigures(figures map[string]string, k model.Costs) {
	figures["costs"] = costTable(k)
	figures["throughput"] = throughputTable(k)
	figures["one-client"] = oneClientTable(k)
	figures["burdens"] = burdenTable()
}

func costTable(k model.Costs) string {
	var b strings.Builder
	b.WriteString("| what | 4 KiB, CPU µs | each further KiB, CPU ns |\n|---|---:|---:|\n")
	for _, row := range []struct {
		what string
		line model.Line
	}{
		{"sdc, read", k.ClientRead}, {"sdc, write (two copies)", k.ClientWrite},
		{"sds, read", k.ServerRead}, {"sds, write, each copy", k.ServerWrite},
	} {
		fmt.Fprintf(&b, "| %s | %.1f | %.0f |\n", row.what, row.line.At(4096), row.line.PerByte*1024*1000)
	}
	fmt.Fprintf(&b, "\nAt queue depth 1 Braid adds %.0f µs to a read of the bare device and %.0f µs to a write.\n",
		k.ReadLatency, k.WriteLatency)
	return b.String()
}

func throughputTable(k model.Costs) string {
	var b strings.Builder
	b.WriteString("| servers | network | 4 KiB reads/s | ends at | 4 KiB writes/s | ends at " +
		"| knee of 70/30: IOPS, µs | 1 MiB reads, GB/s | ends at | 1 MiB writes, GB/s | ends at |\n" +
		"|---:|---:|---:|---|---:|---|---:|---:|---|---:|---|\n")
	for _, n := range sizes {
		for _, g := range networks {
			c := reference(n, g)
			fmt.Fprintf(&b, "| %d | %d Gbit/s |", n, g)
			for _, l := range []model.Load{smallReads, smallWrites} {
				t := c.Throughput(k, l)
				fmt.Fprintf(&b, " %.2f M | %s |", t.IOPS/1e6, t.Resource)
			}
			x, y := c.Knee(k, smallMix)
			fmt.Fprintf(&b, " %.2f M, %.0f |", x/1e6, y)
			for _, l := range []model.Load{largeReads, largeWrites} {
				t := c.Throughput(k, l)
				fmt.Fprintf(&b, " %.1f | %s |", t.IOPS*l.Bytes/1e9, t.Resource)
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

// oneClientTable is what a single volume, and a single machine, can have.
func oneClientTable(k model.Costs) string {
	var b strings.Builder
	b.WriteString("| one client with | load | throughput | ends at | servers from which more bring nothing |\n" +
		"|---|---|---:|---|---:|\n")
	for _, volumes := range []int{1, 8} {
		for _, row := range []struct {
			name string
			load model.Load
		}{{"4 KiB reads", smallReads}, {"4 KiB writes", smallWrites}, {"1 MiB reads", largeReads},
			{"1 MiB writes", largeWrites}} {
			c := reference(1000, 25)
			c.Clients, c.VolumesPerClient = 1, volumes
			t := c.Throughput(k, row.load)
			what := fmt.Sprintf("%.0f k/s", t.IOPS/1e3)
			if row.load.Bytes > 4096 {
				what = fmt.Sprintf("%.2f GB/s", t.IOPS*row.load.Bytes/1e9)
			}
			fmt.Fprintf(&b, "| %d volumes, 25 Gbit/s | %s | %s | %s | %d |\n", volumes, row.name, what, t.Resource,
				c.Turn(k, row.load, 1000)+1)
		}
	}
	return b.String()
}

func burdenTable() string {
	traits := model.Measured()
	var b strings.Builder
	f := fleet(1000)
	fmt.Fprintf(&b, "At 1,000 servers, 10,000 devices, %d volumes of which %d are attached, %.0f groups:\n\n",
		f.Volumes, f.Attached, f.Groups(traits))
	b.WriteString("| what | at 1,000 servers | limit | because | exceeded from |\n|---|---:|---:|---|---:|\n")
	for _, x := range f.Burdens(traits) {
		from := "not up to 100,000 servers"
		if n := f.BreaksAt(traits, x.What, manyServers); n > 0 {
			from = fmt.Sprintf("%d servers", n)
		}
		fmt.Fprintf(&b, "| %s | %s %s | %s | %s | %s |\n", x.What, short(x.Value), x.Unit, short(x.Limit), x.Why, from)
	}
	return b.String()
}
