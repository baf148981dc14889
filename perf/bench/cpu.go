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
// kernel's own sum, which has every thread but counts in ticks.
type clock struct{ threads, ticks float64 }

// since is the CPU time between two readings: the larger, because a clock can
// only have missed something.
func (c clock) since(before clock) float64 {
	return max(c.threads-before.threads, c.ticks-before.ticks)
}

func readClock(pid int) (clock, error) {
	ticks, err := processTicks(pid)
	if err != nil {
		return clock{}, err
	}
	c := clock{ticks: ticks}
	tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
	if err != nil {
		return c, err
	}
	for _, t := range tasks {
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%s/schedstat", pid, t.Name()))
		if err != nil {
			continue // ended in between, or a kernel without schedstat
		}
		first, _, _ := bytes.Cut(b, []byte(" "))
		ns, err := strconv.ParseFloat(string(first), 64)
		if err != nil {
			return c, err
		}
		c.threads += ns / 1e9
	}
	return c, nil
}

func processTicks(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name is in parentheses and may hold blanks.
	i := bytes.LastIndexByte(b, ')')
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 13 {
		return 0, fmt.Errorf("/proc/%d/stat is short", pid)
	}
	user, err := strconv.ParseFloat(f[11], 64)
	if err != nil {
		return 0, err
	}
	sys, err := strconv.ParseFloat(f[12], 64)
	return (user + sys) / ticksPerSecond, err
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
