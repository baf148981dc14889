// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

type options struct {
	set, only, out, dir, backing, loads string
	rounds, sds                         int
	runtime                             time.Duration
	sizeMiB                             uint64
}

func main() {
	var o options
	flag.StringVar(&o.set, "set", "short", "loads to run: short, full or smoke")
	flag.StringVar(&o.loads, "loads", "", "only loads whose names contain one of these, comma separated")
	flag.StringVar(&o.only, "only", "", "only systems whose names contain one of these, comma separated")
	flag.StringVar(&o.out, "out", "perf/results", "folder for results.json, results.md and the plots")
	flag.StringVar(&o.dir, "dir", "", "working folder; default /dev/shm for tmpfs, the temporary folder for disk")
	flag.StringVar(&o.backing, "backing", "tmpfs", "tmpfs: loop devices over tmpfs; disk: plain files")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds, each with every load on every system")
	flag.IntVar(&o.sds, "sds", 3, "servers in Braid's cluster")
	flag.DurationVar(&o.runtime, "runtime", 2*time.Second, "length of one sample")
	flag.Uint64Var(&o.sizeMiB, "size", 1024, "size of each volume and device, MiB")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, o options) (err error) {
	loads, ok := loadSets()[o.set]
	if !ok {
		return fmt.Errorf("there is no set %q; sets are short, full and smoke", o.set)
	}
	loads = slices.DeleteFunc(loads, func(l load) bool { return !matches(l.Name, o.loads) })
	root, err := os.Getwd()
	if err != nil {
		return err
	}
	parent := o.dir
	if parent == "" && o.backing == "tmpfs" {
		parent = "/dev/shm"
	}
	dir, err := os.MkdirTemp(parent, "braid-bench-")
	if err != nil {
		return err
	}
	b := &backing{Kind: o.backing, Dir: dir, Size: o.sizeMiB << 20}
	defer b.close()
	goNBD := filepath.Join(root, "bin", "gonbd")
	build := exec.CommandContext(ctx, "go", "build", "-o", goNBD, "./perf/peers/gonbd")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the go-nbd peer: %w\n%s", err, out)
	}

	r := &result{Started: time.Now(), Machine: machineDescription(), Versions: versions(ctx), Backing: o.backing,
		Rounds: o.rounds, Runtime: o.runtime.String(), Loads: loads}
	var started []running
	defer func() {
		for _, s := range started {
			s.sys.Stop()
		}
	}()
	for _, s := range allSystems(root, dir, goNBD, o) {
		if !matches(s.Name(), o.only) {
			continue
		}
		fmt.Fprintln(os.Stderr, "bench: starting", s.Name())
		t, err := s.Start(ctx, b)
		started = append(started, running{s, t})
		if err != nil {
			return fmt.Errorf("start %s: %w", s.Name(), err)
		}
		r.Systems = append(r.Systems, s.Name())
	}
	if r.Samples, err = measure(ctx, plan{o.rounds, o.runtime, loads}, started); err != nil {
		return err
	}
	if err := r.write(o.out); err != nil {
		return err
	}
	r.markdown(os.Stdout)
	return nil
}

func allSystems(root, dir, goNBD string, o options) []system {
	kind := "loop"
	if o.backing == "disk" {
		kind = "file"
	}
	// Room for volumes with 1, 2 and 3 copies, and a margin.
	c := &braidCluster{Root: root, Dir: filepath.Join(dir, "cluster"), Sds: o.sds, Backed: kind,
		Bytes: (6*o.sizeMiB/uint64(o.sds) + 512) << 20}
	systems := []system{raw{}}
	for _, replicas := range []int{1, 2, 3} {
		if replicas <= o.sds {
			systems = append(systems, &braid{cluster: c, replicas: replicas})
		}
	}
	for _, p := range nbdPeers(goNBD) {
		systems = append(systems, p)
	}
	return systems
}

func matches(name, list string) bool {
	if list == "" {
		return true
	}
	return slices.ContainsFunc(strings.Split(list, ","), func(s string) bool { return strings.Contains(name, s) })
}

func versions(ctx context.Context) map[string]string {
	v := map[string]string{}
	for name, argv := range map[string][]string{
		"fio": {"fio", "--version"}, "qemu-nbd": {"qemu-nbd", "--version"}, "nbdkit": {"nbdkit", "--version"},
		"braid": {"git", "describe", "--always", "--dirty"},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).Output(); err == nil {
			line, _, _ := strings.Cut(string(out), "\n")
			v[name] = strings.TrimSpace(line)
		}
	}
	return v
}

func stderrIsTerminal() bool {
	st, err := os.Stderr.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// childSeconds is the CPU time of all children waited for so far: of fio.
func childSeconds() float64 {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_CHILDREN, &u); err != nil {
		return 0
	}
	return float64(u.Utime.Nano()+u.Stime.Nano()) / 1e9
}
