// SPDX-License-Identifier: Apache-2.0

package main

import "fmt"

// load is one way to press on a system; it becomes one fio job.
type load struct {
	Name  string `json:"name"`
	RW    string `json:"rw"` // fio's rw=
	BS    string `json:"bs"`
	Depth int    `json:"depth"` // requests in flight, over all connections
	Conns int    `json:"conns"` // fio jobs, one connection each
	Mix   int    `json:"mix"`   // per cent of reads for randrw
	Fsync int    `json:"fsync"` // a flush after so many writes
}

func (l load) writes() bool { return l.RW != "randread" && l.RW != "read" }

func rand4k(rw string, mix, depth, conns int) load {
	name := map[string]string{"randread": "4k-randread", "randwrite": "4k-randwrite", "randrw": "4k-rand70r"}[rw]
	l := load{Name: fmt.Sprintf("%s-qd%d", name, depth), RW: rw, BS: "4k", Depth: depth, Conns: conns, Mix: mix}
	if conns > 1 {
		l.Name += fmt.Sprintf("-c%d", conns)
	}
	return l
}

func seq(rw, bs string, depth int) load {
	return load{Name: fmt.Sprintf("%s-%s-qd%d", bs, rw, depth), RW: rw, BS: bs, Depth: depth, Conns: 1}
}

// loadSets are the named sets: what `make bench` runs, everything, and the few
// seconds that prove in CI that the harness works.
func loadSets() map[string][]load {
	fsync := load{Name: "4k-randwrite-fsync-qd1", RW: "randwrite", BS: "4k", Depth: 1, Conns: 1, Fsync: 1}
	short := []load{
		rand4k("randread", 0, 1, 1), rand4k("randread", 0, 32, 1),
		rand4k("randwrite", 0, 1, 1), rand4k("randwrite", 0, 32, 1),
		rand4k("randrw", 70, 32, 1), fsync,
		seq("read", "1m", 8), seq("write", "1m", 8),
	}
	full := []load{fsync}
	for _, depth := range []int{1, 32, 128} {
		for _, rw := range []string{"randread", "randwrite", "randrw"} {
			full = append(full, rand4k(rw, 70, depth, 1))
			if depth > 1 {
				full = append(full, rand4k(rw, 70, depth, 4))
			}
		}
	}
	for _, bs := range []string{"64k", "1m"} {
		for _, depth := range []int{1, 8} {
			full = append(full, seq("read", bs, depth), seq("write", bs, depth))
		}
	}
	smoke := []load{rand4k("randread", 0, 32, 1), rand4k("randwrite", 0, 32, 1)}
	return map[string][]load{"short": short, "full": full, "smoke": smoke}
}
