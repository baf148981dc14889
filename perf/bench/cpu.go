// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

// ticksPerSecond is USER_HZ, which Linux fixes at 100 for what it tells user
// space (include/uapi/asm-generic/param.h).
const ticksPerSecond = 100

// machineTimes is the first line of /proc/stat, in seconds.
type machineTimes struct {
	Busy, Idle, Steal float64
}

func readMachine() (machineTimes, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTimes{}, err
	}
	line, _, _ := strings.Cut(string(b), "\n")
	f := strings.Fields(line)
	if len(f) < 9 || f[0] != "cpu" {
		return machineTimes{}, fmt.Errorf("/proc/stat begins with %q", line)
	}
	v := make([]float64, 0, 10)
	for _, s := range f[1:] {
		n, err := strconv.ParseFloat(s, 64)
		if err != nil {
			return machineTimes{}, err
		}
		v = append(v, n/ticksPerSecond)
	}
	// user nice system idle iowait irq softirq steal; guest times are in user.
	return machineTimes{Busy: v[0] + v[1] + v[2] + v[5] + v[6], Idle: v[3] + v[4], Steal: v[7]}, nil
}

// clock is the CPU time of a process so far, in seconds, by two clocks: the sum
// of its live threads in nanoseconds, which loses threads that end, and the
// kernel's own sum, which has every thread, and the children that have ended,
// but counts in ticks.
type clock struct{ threads, ticks float64 }

func (c clock) plus(d clock) clock { return clock{c.threads + d.threads, c.ticks + d.ticks} }

// since is the CPU time between two readings: the larger, because a clock can
// only have missed something.
func (c clock) since(before clock) float64 {
	return max(c.threads-before.threads, c.ticks-before.ticks)
}

// readClock reads a process and its children (nbd-server starts one a connection).
func readClock(pid int) (clock, error) {
	st, err := readStat(pid)
	if err != nil {
		return clock{}, err
	}
	c := clock{ticks: st.own + st.waited}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return c, err
	}
	for _, t := range tasks {
		c.threads += schedSeconds(fmt.Sprintf("/proc/%d/task/%s", pid, t.Name()))
		children, _ := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/children", pid, t.Name()))
		for _, child := range strings.Fields(string(children)) {
			n, _ := strconv.Atoi(child)
			if d, err := readClock(n); err == nil { // else it has ended in between
				c = c.plus(d)
			}
		}
	}
	return c, nil
}

// schedSeconds is the CPU time of a thread; 0 when it has ended in between, or
// on a kernel without schedstat.
func schedSeconds(folder string) float64 {
	b, err := os.ReadFile(folder + "/schedstat")
	if err != nil {
		return 0
	}
	first, _, _ := bytes.Cut(b, []byte(" "))
	ns, _ := strconv.ParseFloat(string(first), 64)
	return ns / 1e9
}

// procStat is what /proc/PID/stat says, in seconds.
type procStat struct {
	parent      int
	own, waited float64 // CPU time: its own, and of children that it has waited for
}

func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	// The name is in parentheses and may hold blanks.
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 15 {
		return procStat{}, fmt.Errorf("/proc/%d/stat is short", pid)
	}
	v := make([]float64, 15)
	for _, i := range []int{1, 11, 12, 13, 14} {
		if v[i], err = strconv.ParseFloat(f[i], 64); err != nil {
			return procStat{}, fmt.Errorf("/proc/%d/stat: %w", pid, err)
		}
	}
	return procStat{int(v[1]), (v[11] + v[12]) / ticksPerSecond, (v[13] + v[14]) / ticksPerSecond}, nil
}

// processRuns reports whether there is a process, and not only its exit code.
func processRuns(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return false
	}
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	return len(f) > 0 && f[0] != "Z"
}

// kthreadd is the parent of all kernel threads.
const kthreadd = 2

// readKernel is the CPU time of each kernel thread: of those that move blocks for
// loop devices, above all.
func readKernel() map[int]clock {
	entries, _ := os.ReadDir("/proc")
	out := map[int]clock{}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		if st, err := readStat(pid); err == nil && st.parent == kthreadd {
			out[pid] = clock{schedSeconds("/proc/" + e.Name()), st.own}
		}
	}
	return out
}

// kernelSince is the CPU time of all kernel threads between two readings. One
// that has begun in between counts from its beginning, one that has ended is lost.
func kernelSince(before, after map[int]clock) float64 {
	sum := 0.0
	for pid, c := range after {
		sum += c.since(before[pid])
	}
	return sum
}

// residentBytes is the memory of a process that is in RAM.
func residentBytes(pid int) uint64 {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/statm", pid))
	f := strings.Fields(string(b))
	if len(f) < 2 {
		return 0
	}
	pages, _ := strconv.ParseUint(f[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// machineDescription says on what the figures were taken.
func machineDescription() map[string]string {
	d := map[string]string{}
	if b, err := os.ReadFile("/proc/sys/kernel/osrelease"); err == nil {
		d["kernel"] = strings.TrimSpace(string(b))
	}
	if f, err := os.Open("/proc/cpuinfo"); err == nil {
		defer f.Close()
		cores := 0
		s := bufio.NewScanner(f)
		for s.Scan() {
			k, v, _ := strings.Cut(s.Text(), ":")
			switch strings.TrimSpace(k) {
			case "processor":
				cores++
			case "model name":
				d["cpu"] = strings.TrimSpace(v)
			case "flags":
				d["virtual"] = "bare metal"
				if strings.Contains(v, " hypervisor") {
					d["virtual"] = "a virtual machine"
				}
			}
		}
		d["cores"] = strconv.Itoa(cores)
	}
	if b, err := os.ReadFile("/proc/meminfo"); err == nil {
		line, _, _ := strings.Cut(string(b), "\n")
		d["memory"] = strings.TrimSpace(strings.TrimPrefix(line, "MemTotal:"))
	}
	return d
}
