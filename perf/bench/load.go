// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"slices"
	"strings"
)

// load is one way to press on a system; it becomes one fio job.
type load struct {
	Name  string `json:"name"`
	RW    string `json:"rw"` // fio's rw=
	BS    string `json:"bs"`
	Depth int    `json:"depth"`           // requests in flight, over all connections
	Conns int    `json:"conns"`           // fio jobs, one connection each
	Mix   int    `json:"mix,omitempty"`   // per cent of reads for randrw
	Fsync int    `json:"fsync,omitempty"` // a flush after so many writes
	// Few: only the systems in `few` run it, to keep the run short.
	Few bool `json:"few,omitempty"`
	// Overflow: random writes over eight times the activity log, on disks with
	// slow flushes. Only the systems made for it run it.
	Overflow bool `json:"overflow,omitempty"`
}

// few systems run every load: Braid with two copies and what it is measured by.
var few = []string{"braid-r2", "qemu-nbd-uring", "qemu-nbd-native"}

// Systems with slow flushes, which run only the load that asks for them.
const (
	slowFlush = "braid-r2-slow-flush"
	smallLog  = "braid-r2-small-log"
)

// runsOn reports whether a system that serves t is to run the load.
func (l load) runsOn(name string, t target) bool {
	switch {
	case l.Fsync > 0 && t.NoFlush:
		return false
	case name == slowFlush || name == smallLog || l.Overflow:
		return (name == slowFlush || name == smallLog) && l.Overflow
	}
	return !l.Few || slices.Contains(few, name)
}

func rand4k(rw string, depth, conns int) load {
	name := map[string]string{"randread": "4k-randread", "randwrite": "4k-randwrite", "randrw": "4k-rand70r"}[rw]
	l := load{Name: fmt.Sprintf("%s-qd%d", name, depth), RW: rw, BS: "4k", Depth: depth, Conns: conns}
	if rw == "randrw" {
		l.Mix = 70
	}
	if conns > 1 {
		l.Name += fmt.Sprintf("-c%d", conns)
	}
	return l
}

func seq(rw, bs string, depth int) load {
	return load{Name: fmt.Sprintf("%s-%s-qd%d", bs, rw, depth), RW: rw, BS: bs, Depth: depth, Conns: 1}
}

// allLoads is everything there is to measure. Those of the core run on every
// system, in the short set too.
func allLoads() []load {
	var loads []load
	for _, rw := range []string{"randread", "randwrite", "randrw"} {
		for _, depth := range []int{1, 8, 32, 128} {
			loads = append(loads, rand4k(rw, depth, 1))
			if depth >= 32 {
				loads = append(loads, rand4k(rw, depth, 4))
			}
		}
	}
	loads = append(loads,
		load{Name: "4k-randwrite-fsync-qd1", RW: "randwrite", BS: "4k", Depth: 1, Conns: 1, Fsync: 1},
		load{Name: "4k-randwrite-overflow-qd32", RW: "randwrite", BS: "4k", Depth: 32, Conns: 1, Overflow: true})
	for _, bs := range []string{"64k", "1m"} {
		for _, depth := range []int{1, 8} {
			loads = append(loads, seq("read", bs, depth), seq("write", bs, depth))
		}
	}
	return loads
}

// core: what every system runs in the short set; further: what few systems run in it.
var (
	core = []string{"4k-randread-qd1", "4k-randread-qd32", "4k-randwrite-qd1", "4k-randwrite-qd32",
		"4k-rand70r-qd32", "4k-randwrite-fsync-qd1", "1m-read-qd8", "1m-write-qd8", "4k-randwrite-overflow-qd32"}
	further = []string{"4k-randread-qd8", "4k-randwrite-qd8", "4k-randread-qd128", "4k-randwrite-qd128",
		"4k-randread-qd32-c4", "4k-randwrite-qd32-c4", "64k-read-qd8", "64k-write-qd8", "1m-read-qd1", "1m-write-qd1"}
)

// loadSets are the named sets. short is what `make bench` runs: the core on every
// system, some more on few. full is everything on every system. sweep is latency
// over load, scale what a cluster of each size runs, disk what is worth asking of
// a real disk; smoke proves in seconds that the harness works.
func loadSets() map[string][]load {
	full := allLoads()
	var short []load
	for _, l := range full {
		l.Few = slices.Contains(further, l.Name)
		if l.Few || slices.Contains(core, l.Name) {
			short = append(short, l)
		}
	}
	pick := func(names ...string) (out []load) {
		for _, l := range full {
			if slices.Contains(names, l.Name) {
				out = append(out, l)
			}
		}
		return out
	}
	var sweep []load
	for _, rw := range []string{"randread", "randwrite"} {
		for depth := 1; depth <= 128; depth *= 2 {
			sweep = append(sweep, rand4k(rw, depth, 1))
		}
	}
	return map[string][]load{
		"short": short, "full": full, "sweep": sweep,
		"smoke": pick("4k-randread-qd32", "4k-randwrite-qd32", "4k-randwrite-fsync-qd1"),
		"scale": {rand4k("randread", 64, 1), rand4k("randwrite", 64, 1)},
		"disk": pick("4k-randread-qd1", "4k-randread-qd32", "4k-randwrite-qd1", "4k-randwrite-qd32",
			"4k-randwrite-fsync-qd1", "1m-read-qd8", "1m-write-qd8"),
	}
}

func matches(name, list string) bool {
	if list == "" {
		return true
	}
	return slices.ContainsFunc(strings.Split(list, ","), func(s string) bool { return strings.Contains(name, s) })
}
