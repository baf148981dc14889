// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// targetRow is one of the aims that Braid has set itself, and what came of it.
type targetRow struct {
	Name    string  `json:"name"`
	Value   float64 `json:"value"`
	Unit    string  `json:"unit"`
	AtMost  bool    `json:"at_most"` // else at least
	Target  float64 `json:"target"`
	Aim     float64 `json:"aim,omitempty"` // what comes after the target
	Verdict string  `json:"verdict"`
	Note    string  `json:"note,omitempty"`
}

const (
	verdictAim    = "beyond the aim"
	verdictMet    = "met"
	verdictMissed = "missed"
)

func (t *targetRow) judge() {
	beyond := func(limit float64) bool {
		if t.AtMost {
			return t.Value <= limit
		}
		return t.Value >= limit
	}
	switch {
	case t.Aim > 0 && beyond(t.Aim):
		t.Verdict = verdictAim
	case beyond(t.Target):
		t.Verdict = verdictMet
	default:
		t.Verdict = verdictMissed
	}
}

// The system that all targets are about, and those that it is measured by.
const (
	ours       = "braid-r2"
	qemuUring  = "qemu-nbd-uring"
	qemuNative = "qemu-nbd-native"
	goNBDPeer  = "go-nbd"
	cephQemu   = "ceph-qemu-nbd"
)

// What Vitastor 3.0.8 needs through its NBD proxy, servers and proxy together, in
// CPU µs per 4 KiB I/O, with 3 servers and 2 copies on loop devices over tmpfs on
// 2 cores. It was measured elsewhere on a like machine; CPU time carries over.
var vitastorCPU = map[string]float64{
	"4k-randread-qd1": 112, "4k-randread-qd32": 35, "4k-randwrite-qd1": 293, "4k-randwrite-qd32": 109,
}

// scorer computes rows from medians; rows for which a figure is missing are left out.
type scorer struct {
	r    *result
	rows []targetRow
}

func (c *scorer) figure(system, load, kind string) float64 {
	return c.r.of(system, load, func(s sample) float64 {
		switch kind {
		case "iops":
			return s.IOPS
		case "mib":
			return s.MiBps
		case "mean":
			return s.MeanUs
		case cpuSystem:
			return s.CPUUs[cpuSystem]
		}
		// Of the volume's own path; mdm takes no part in it.
		return s.CPUUs["sdc"] + s.CPUUs["sds"]
	}).Median
}

// ratio adds our figure divided by a peer's.
func (c *scorer) ratio(name, load, kind, peer string, atMost bool, target, aim float64) *targetRow {
	a, b := c.figure(ours, load, kind), c.figure(peer, load, kind)
	if a == 0 || b == 0 {
		return &targetRow{}
	}
	return c.add(targetRow{Name: name, Value: a / b, Unit: "x " + peer, AtMost: atMost, Target: target, Aim: aim})
}

func (c *scorer) cpu(name, load string, divisor float64, unit string, target, aim float64) {
	if v := c.figure(ours, load, "sdc+sds"); v > 0 {
		c.add(targetRow{Name: name, Value: v / divisor, Unit: unit, AtMost: true, Target: target, Aim: aim})
	}
}

func (c *scorer) add(t targetRow) *targetRow {
	t.judge()
	c.rows = append(c.rows, t)
	return &c.rows[len(c.rows)-1]
}

func targets(r *result) []targetRow {
	c := &scorer{r: r}
	const (
		rd1, rd32 = "4k-randread-qd1", "4k-randread-qd32"
		wr1, wr32 = "4k-randwrite-qd1", "4k-randwrite-qd32"
	)
	c.ratio("4 KiB read, QD32, IOPS", rd32, "iops", qemuUring, false, 1, 1.5)
	c.ratio("the same, against aio=native", rd32, "iops", qemuNative, false, 1, 1.5)
	c.cpu("4 KiB read, QD32, CPU of sdc and sds", rd32, 1, "µs per I/O", 20, 10)
	c.ratio("4 KiB write, QD32, IOPS", wr32, "iops", qemuUring, false, 0.6, 1)
	c.ratio("the same, against aio=native", wr32, "iops", qemuNative, false, 0.6, 1)
	c.cpu("4 KiB write, QD32, CPU of sdc and sds", wr32, 1, "µs per I/O", 35, 18)
	c.latency("4 KiB read, QD1, mean latency", rd1, 2, 1.4)
	c.latency("4 KiB write, QD1, mean latency", wr1, 2.2, 1.4)
	c.ratio("1 MiB read, QD8, MiB/s", "1m-read-qd8", "mib", qemuNative, false, 0.55, 0.9)
	c.ratio("1 MiB write, QD8, MiB/s", "1m-write-qd8", "mib", qemuNative, false, 0.45, 0.7)
	c.ratio("4 KiB read, QD32, IOPS", rd32, "iops", goNBDPeer, false, 1.8, 2.7)
	c.ratio("4 KiB write, QD32, IOPS", wr32, "iops", goNBDPeer, false, 1.7, 2.9)
	for _, load := range []string{rd1, rd32} {
		c.cpu(load+", CPU", load, vitastorCPU[load], "x Vitastor (measured elsewhere)", 0.6, 0.35)
	}
	for _, load := range []string{wr1, wr32} {
		c.cpu(load+", CPU", load, vitastorCPU[load], "x Vitastor (measured elsewhere)", 0.35, 0.2)
	}
	c.ratio("4 KiB read, QD32, IOPS", rd32, "iops", cephQemu, false, 8, 13)
	c.ratio("4 KiB write, QD32, IOPS", wr32, "iops", cephQemu, false, 25, 40)
	c.ratio("4 KiB read, QD32, CPU per I/O", rd32, cpuSystem, cephQemu, true, 1.0/12, 0)
	c.ratio("4 KiB write, QD32, CPU per I/O", wr32, cpuSystem, cephQemu, true, 1.0/35, 0)
	c.idle()
	return c.rows
}

// latency counts only when it was not bought by spinning: CPU per I/O of all of
// Braid's processes at most 2.5 times the peer's.
func (c *scorer) latency(name, load string, target, aim float64) {
	const cpuLimit = 2.5
	row := c.ratio(name, load, "mean", qemuUring, true, target, aim)
	peer := c.figure(qemuUring, load, cpuSystem)
	if row.Name == "" || peer == 0 {
		return
	}
	spent := c.figure(ours, load, cpuSystem) / peer
	row.Note = fmt.Sprintf("with %.1f times its CPU per I/O, %.1f allowed", spent, cpuLimit)
	if spent > cpuLimit {
		row.Verdict = verdictMissed
	}
}

func (c *scorer) idle() {
	cpu := map[string]float64{"sdc": 0.3, "sds": 0.3, "mdm": 1.5}
	rss := map[string]float64{"sdc": 100, "sds": 150}
	for _, f := range c.r.Idle {
		if f.System != ours {
			continue
		}
		if limit, ok := cpu[f.Process]; ok {
			c.add(targetRow{Name: "idle, CPU of " + f.Process, Value: f.CPU, Unit: "% of a core", AtMost: true,
				Target: limit})
		}
		if limit, ok := rss[f.Process]; ok {
			c.add(targetRow{Name: "idle, memory of " + f.Process, Value: f.RSS, Unit: "MiB RSS", AtMost: true,
				Target: limit})
		}
	}
}
