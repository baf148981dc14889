// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
)

func main() {
	name := flag.String("name", "", "of the load, for the heading")
	us := flag.String("us", "", "CPU µs per I/O of each process, e.g. sdc=12.3,sds=24.5")
	flag.Parse()
	costs, err := parseCosts(*us)
	if err == nil {
		var p profile
		if p, err = read(os.Stdin); err == nil {
			err = p.table(os.Stdout, *name, costs)
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "profile:", err)
		os.Exit(1)
	}
}

// processes are those that have a column.
var processes = []string{"sdc", "sds"}

func parseCosts(text string) (map[string]float64, error) {
	costs := map[string]float64{}
	for _, part := range strings.Split(text, ",") {
		name, value, _ := strings.Cut(part, "=")
		us, err := strconv.ParseFloat(value, 64)
		if err != nil || !slices.Contains(processes, name) {
			return nil, fmt.Errorf("-us %q: want sdc=µs,sds=µs", text)
		}
		costs[name] = us
	}
	return costs, nil
}

// frame is one line of a stack.
type frame struct {
	symbol string
	kernel bool
}

// group is where a stack belongs that has one of the symbols, or of their
// beginnings, in it.
type group struct {
	name    string
	symbols []string
}

// anywhere are looked for in the whole of a kernel stack first: what happens to be
// done inside a call that sends belongs to what is done.
var anywhere = []group{
	{"sleeping: switches between threads", []string{"finish_task_switch", "__schedule", "schedule"}},
	{"waking others", []string{"try_to_wake_up", "ttwu_", "wake_up_process", "wake_up_q", "__wake_up",
		"sock_def_readable", "io_poll_wake"}},
}

// kernelGroups are looked for from the innermost frame outwards.
var kernelGroups = []group{
	{"TCP's soft interrupts", []string{"net_rx_action", "process_backlog"}},
	{"interrupts, timers, signals", []string{"sysvec_", "asm_sysvec", "handle_softirqs", "irqentry_exit", "futex",
		"do_futex", "get_signal", "arch_do_signal", "hrtimer_nanosleep"}},
	{"sockets: sending", []string{"io_send", "sock_sendmsg", "unix_stream_sendmsg", "tcp_sendmsg"}},
	{"sockets: receiving", []string{"io_recv", "sock_recvmsg", "unix_stream_re", "tcp_recvmsg"}},
	{"disk", []string{"io_write", "io_read", "blkdev_", "__io_prep_rw", "blk_", "__blk_", "bio_", "io_complete_rw"}},
	{"io_uring itself", []string{"io_", "__io_", "__do_sys_io_uring", "tctx_", "ctx_flush"}},
}

var userGroups = []group{
	{"checksums", []string{"github.com/cespare/xxhash"}},
	{"copying in memory", []string{"runtime.memmove", "runtime.memclr"}},
	{"NBD", []string{"braid/nbd"}},
	{"volume: replication, layout, locks", []string{"braid/stripe"}},
	{"store: index, log, metadata", []string{"braid/server/store"}},
	{"server: slots, fencing", []string{"braid/server", "braid/cluster"}},
	{"event loop", []string{"braid/transport/loop"}},
	{"frames and buffers", []string{"braid/transport"}},
	{"Go's runtime", []string{"runtime."}},
}

const (
	otherKernel = "system calls, else"
	otherUser   = "else"
)

func find(groups []group, symbol string) string {
	for _, g := range groups {
		for _, s := range g.symbols {
			if strings.HasPrefix(symbol, s) {
				return g.name
			}
		}
	}
	return ""
}

// sort finds the group of a stack, innermost frame first.
func sort(stack []frame) string {
	inner := 0
	for inner < len(stack) && stack[inner].kernel {
		inner++
	}
	kernel := stack[:inner]
	for _, f := range kernel {
		if name := find(anywhere, f.symbol); name != "" {
			return name
		}
	}
	for _, f := range kernel {
		if name := find(kernelGroups, f.symbol); name != "" {
			return name
		}
	}
	if len(kernel) > 0 {
		return otherKernel
	}
	if len(stack) > 0 {
		if name := find(userGroups, stack[0].symbol); name != "" {
			return name
		}
	}
	return otherUser
}

// profile counts stacks by process and group.
type profile map[string]map[string]int

// read takes what perf script prints: for each sample a line with the thread's
// name, a line for each frame, and an empty one.
func read(r io.Reader) (profile, error) {
	p := profile{}
	var process string
	var stack []frame
	end := func() {
		if process != "" {
			if p[process] == nil {
				p[process] = map[string]int{}
			}
			p[process][sort(stack)]++
		}
		process, stack = "", stack[:0]
	}
	lines := bufio.NewScanner(r)
	begun := false
	for lines.Scan() {
		line := strings.TrimSpace(lines.Text())
		switch {
		case line == "":
			end()
			begun = false
		case !begun:
			begun = true
			if slices.Contains(processes, line) {
				process = line
			} else if strings.HasPrefix(line, "iou-wrk") {
				process = "sds" // sdc has no disk that would need workers
			}
		default:
			address, symbol, _ := strings.Cut(line, " ")
			stack = append(stack, frame{strings.TrimSpace(symbol), strings.HasPrefix(address, "ffff")})
		}
	}
	end()
	return p, lines.Err()
}

// table prints the groups, the dearest first.
func (p profile) table(w io.Writer, name string, costs map[string]float64) error {
	us := map[string]map[string]float64{} // by group and process
	total := map[string]float64{}
	for _, process := range processes {
		samples := 0
		for _, n := range p[process] {
			samples += n
		}
		if samples == 0 {
			return fmt.Errorf("no stack is of %s", process)
		}
		for g, n := range p[process] {
			if us[g] == nil {
				us[g] = map[string]float64{}
			}
			us[g][process] = costs[process] * float64(n) / float64(samples)
			total[g] += us[g][process]
		}
	}
	var groups []string
	for g := range total {
		groups = append(groups, g)
	}
	slices.SortFunc(groups, func(a, b string) int { return cmp.Or(cmp.Compare(total[b], total[a]), cmp.Compare(a, b)) })
	fmt.Fprintf(w, "| %s, CPU µs per I/O | sdc | all sds | both |\n|---|---:|---:|---:|\n", name)
	for _, g := range groups {
		fmt.Fprintf(w, "| %s | %.1f | %.1f | %.1f |\n", g, us[g]["sdc"], us[g]["sds"], total[g])
	}
	_, err := fmt.Fprintf(w, "| **sum** | **%.1f** | **%.1f** | **%.1f** |\n", costs["sdc"], costs["sds"],
		costs["sdc"]+costs["sds"])
	return err
}
