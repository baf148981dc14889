// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// Goal: medians and spreads are right. Method: odd, even and no values.
func TestStat(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   stat
	}{
		{nil, stat{}},
		{[]float64{3, 1, 2}, stat{1, 2, 3}},
		{[]float64{4, 1, 2, 3}, stat{1, 2.5, 4}},
	} {
		if got := newStat(c.values); got != c.want {
			t.Errorf("%v: %v, expected %v", c.values, got, c.want)
		}
	}
	for v, want := range map[float64]float64{0: 0, 1234.56: 1235, 0.0123456: 0.01235, 123456: 123500} {
		if got := fourDigits(v); got != want {
			t.Errorf("four digits of %v: %v, expected %v", v, got, want)
		}
	}
}

// made returns a result in which each system has one sample of a load.
func made(samples ...sample) *result {
	r := &result{Rounds: 1, Samples: samples}
	for _, s := range samples {
		if !slices.Contains(r.Systems, s.System) {
			r.Systems, r.Settings = append(r.Systems, s.System), append(r.Settings, "as it comes")
		}
		if !slices.ContainsFunc(r.Loads, func(l load) bool { return l.Name == s.Load }) {
			r.Loads = append(r.Loads, load{Name: s.Load, Conns: 1})
		}
	}
	return r
}

// Goal: targets are judged as they are stated. Method: results with figures on
// both sides of a limit; a latency that was bought with CPU time does not count.
func TestTargets(t *testing.T) {
	r := made(
		sample{System: ours, Load: "4k-randread-qd32", IOPS: 160, CPUUs: map[string]float64{"sdc": 5, "sds": 10}},
		sample{System: qemuUring, Load: "4k-randread-qd32", IOPS: 100},
		sample{System: qemuNative, Load: "4k-randread-qd32", IOPS: 200},
		sample{System: ours, Load: "4k-randread-qd1", MeanUs: 120, CPUUs: map[string]float64{cpuSystem: 90}},
		sample{System: qemuUring, Load: "4k-randread-qd1", MeanUs: 100, CPUUs: map[string]float64{cpuSystem: 30}},
	)
	r.Idle = []idleFigure{{System: ours, Process: "mdm", CPU: 2}, {System: qemuUring, Process: "qemu-nbd", CPU: 9}}
	got := map[string]string{}
	for _, row := range targets(r) {
		got[row.Name+" "+row.Unit] = row.Verdict
	}
	for name, want := range map[string]string{
		"4 KiB read, QD32, IOPS x qemu-nbd-uring":               verdictAim,
		"the same, against aio=native x qemu-nbd-native":        verdictMissed,
		"4 KiB read, QD32, CPU of sdc and sds µs per I/O":       verdictMet,
		"4 KiB read, QD1, mean latency x qemu-nbd-uring":        verdictMissed,
		"idle, CPU of mdm % of a core":                          verdictMissed,
		"4k-randread-qd32, CPU x Vitastor (measured elsewhere)": verdictMet,
	} {
		if got[name] != want {
			t.Errorf("%s: %q, expected %q", name, got[name], want)
		}
	}
	if len(got) != 6 {
		t.Errorf("rows without figures are to be left out: %v", got)
	}
}

// Goal: a result comes back from its JSON, and its report names all of it.
func TestReport(t *testing.T) {
	r := made(
		sample{System: ours, Load: "x", Round: 0, IOPS: 10, CPUUs: map[string]float64{"sdc": 1, "sds": 2, cpuFio: 3}},
		sample{System: ours, Load: "x", Round: 1, IOPS: 30, CPUUs: map[string]float64{"sdc": 1, "sds": 2, cpuFio: 3}},
		sample{System: "raw", Load: "x", IOPS: 99, Steal: 0.5, Disturbed: true, CPUUs: map[string]float64{cpuFio: 1}})
	text, err := r.encode()
	if err != nil {
		t.Fatal(err)
	}
	var back struct{ Samples []sample }
	if err := json.Unmarshal(text, &back); err != nil || len(back.Samples) != 3 || back.Samples[1].IOPS != 30 {
		t.Errorf("read back: %v, %+v", err, back)
	}
	var md bytes.Buffer
	r.markdown(&md)
	for _, want := range []string{"| braid-r2 | 20 (10-30) |", "sds 2.0, sdc 1.0, fio 3.0", "1 of 3 count although"} {
		if !strings.Contains(md.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, md.String())
		}
	}
}

// Goal: fio is told what the load says. Method: command lines.
func TestFioArguments(t *testing.T) {
	l := rand4k("randrw", 128, 4)
	nbd := strings.Join(fioArgs(target{URI: "nbd://x", Size: 4096}, l, 1500*time.Millisecond), " ")
	for _, want := range []string{"--ioengine=nbd", "--uri=nbd://x", "--numjobs=4", "--iodepth=32", "--runtime=1500ms",
		"--rwmixread=70"} {
		if !strings.Contains(nbd, want) {
			t.Errorf("%s lacks %s", nbd, want)
		}
	}
	rbd := target{Args: []string{"--ioengine=rbd"}}
	if args := fioArgs(rbd, seq("read", "1m", 8), time.Second); !slices.Contains(args, "--ioengine=rbd") {
		t.Errorf("%v lacks the engine", args)
	}
}

// Goal: each load runs where it means something. Method: the short set on systems
// of each kind.
func TestLoadsRunWhereTheyBelong(t *testing.T) {
	count := func(name string, t target) (n int) {
		for _, l := range loadSets()["short"] {
			if l.runsOn(name, t) {
				n++
			}
		}
		return n
	}
	all := len(loadSets()["short"])
	for name, want := range map[string]int{"braid-r2": all - 1, "braid-r3": len(core) - 1, smallLog: 1, slowFlush: 1} {
		if got := count(name, target{}); got != want {
			t.Errorf("%s runs %d loads, expected %d", name, got, want)
		}
	}
	if got := count("go-nbd", target{NoFlush: true}); got != len(core)-2 {
		t.Errorf("a server without flush runs %d loads, expected %d", got, len(core)-2)
	}
}

// Goal: CPU time is that of the process asked for, its children included. Method:
// a shell that has computed in a child; the sum can only be a lower bound.
func TestClocks(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sh -c 'i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done'; read x")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	pid := cmd.Process.Pid
	err = until(t.Context(), time.Minute, "CPU time", func() (bool, error) {
		c, err := readClock(pid)
		return c.since(clock{}) > 0, err
	})
	if err != nil || !processRuns(pid) || residentBytes(pid) == 0 {
		t.Errorf("%v, runs %v, %d bytes", err, processRuns(pid), residentBytes(pid))
	}
	if err := in.Close(); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // read fails at the end of its input: that is how it ends
	if processRuns(pid) {
		t.Error("it has ended and seems to run")
	}
	if st, err := readStat(os.Getpid()); err != nil || st.parent != os.Getppid() {
		t.Errorf("our own parent: %+v, %v", st, err)
	}
}
