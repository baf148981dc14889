// SPDX-License-Identifier: Apache-2.0

//go:build interop

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// inRoot lets the harness run where it expects to be: in the project's root. It
// returns a folder for its results and the options of a run of seconds.
func inRoot(t *testing.T) options {
	t.Helper()
	out := t.TempDir()
	t.Chdir("../..")
	backing := onTmpfs
	if os.Geteuid() != 0 {
		backing = onDisk // loop devices need root
	}
	return options{out: out, backing: backing, rounds: 2, sds: 2, runtime: 200 * time.Millisecond,
		idle: 200 * time.Millisecond, sizeMiB: 16}
}

// Goal: the harness measures what it says. Method: two rounds of the smoke set on
// a tiny Braid, a peer and the device itself; every figure must be plausible, and
// none is held against a limit.
func TestSmoke(t *testing.T) {
	o := inRoot(t)
	o.set, o.only = "smoke", "raw,braid-r2,qemu-nbd-uring"
	if err := bench(t.Context(), o); err != nil { // also when something was left out
		t.Fatal(err)
	}
	r, err := readResult(o.out)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"raw", "braid-r2", "qemu-nbd-uring"}; !slices.Equal(r.Systems, want) {
		t.Fatalf("it measured %v, expected %v", r.Systems, want)
	}
	if want := len(r.Systems) * len(r.Loads) * r.Rounds; len(r.Samples) != want {
		t.Fatalf("there are %d samples, expected %d", len(r.Samples), want)
	}
	for _, s := range r.Samples {
		checkSample(t, s)
	}
	if len(r.Targets) == 0 || len(r.Idle) != 4 { // sdc, sds, mdm, qemu-nbd
		t.Errorf("%d targets and %d idle figures", len(r.Targets), len(r.Idle))
	}
	report, err := os.ReadFile(filepath.Join(o.out, "results.md"))
	if err != nil || !strings.Contains(string(report), "## 4k-randwrite-fsync-qd1") {
		t.Errorf("the report (%v) misses a load:\n%s", err, report)
	}
	for _, name := range []string{"cpu-4k-randread-qd32.svg", "iops-4k-randwrite-qd32.svg"} {
		plot, err := os.ReadFile(filepath.Join(o.out, name))
		if err != nil || !strings.Contains(string(plot), "</svg>") {
			t.Errorf("%s is no figure: %v", name, err)
		}
	}
}

func checkSample(t *testing.T, s sample) {
	t.Helper()
	if s.IOPS <= 0 || s.MiBps <= 0 || s.MeanUs <= 0 || s.P50Us <= 0 || s.P99Us < s.P50Us || s.P999Us < s.P99Us {
		t.Errorf("%s, %s: implausible: %+v", s.System, s.Load, s)
	}
	if s.CPUUs[cpuFio] <= 0 || s.CPUUs[cpuMachine] < 0 || s.Steal < 0 || s.Steal > 1 || s.Foreign > 1 {
		t.Errorf("%s, %s: implausible CPU time: %+v", s.System, s.Load, s)
	}
	switch s.System {
	case "braid-r2":
		if s.CPUUs["sdc"] <= 0 || s.CPUUs["sds"] <= 0 || s.CPUUs[cpuSystem] < s.CPUUs["sdc"] {
			t.Errorf("%s: Braid's processes used nothing: %v", s.Load, s.CPUUs)
		}
	case "qemu-nbd-uring":
		if s.CPUUs["qemu-nbd"] <= 0 {
			t.Errorf("%s: qemu-nbd used nothing: %v", s.Load, s.CPUUs)
		}
	}
}

// Goal: a scaling run starts clusters of several sizes and reports each. Method:
// one and two servers, a single round.
func TestScalingSmoke(t *testing.T) {
	o := inRoot(t)
	o.scale, o.rounds = "1,2", 1
	if err := scaling(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	for _, pass := range []string{"fast", "slow"} {
		r, err := readResult(filepath.Join(o.out, pass))
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"braid-1-sds", "braid-2-sds"}; !slices.Equal(r.Systems, want) || len(r.Samples) != 4 {
			t.Errorf("%s: %d samples of %v", pass, len(r.Samples), r.Systems)
		}
		for _, s := range r.Samples {
			if s.IOPS <= 0 || s.CPUUs["sds"] <= 0 {
				t.Errorf("%s: implausible: %+v", pass, s)
			}
		}
	}
}
