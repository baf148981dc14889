// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	set, only, out, dir, backing, loads, peers, scale string
	rounds, sds                                       int
	runtime, idle, limit                              time.Duration
	sizeMiB                                           uint64
	again                                             bool
}

func main() {
	var o options
	flag.StringVar(&o.set, "set", "short", "loads to run: short, full, sweep, disk or smoke")
	flag.StringVar(&o.loads, "loads", "", "only loads whose names contain one of these, comma separated")
	flag.StringVar(&o.only, "only", "", "only systems whose names contain one of these, comma separated")
	flag.StringVar(&o.peers, "peers", "", "ceph: Ceph RBD, too (installs it: scripts/deps bench-ceph)")
	flag.StringVar(&o.scale, "scale", "", "instead: Braid alone, with so many servers, e.g. 1,2,4,8")
	flag.StringVar(&o.out, "out", "perf/results", "folder for results.json, results.md and the plots")
	flag.StringVar(&o.dir, "dir", "", "working folder; default /dev/shm for tmpfs, the temporary folder for disk")
	flag.StringVar(&o.backing, "backing", onTmpfs, "tmpfs: loop devices over tmpfs; disk: plain files")
	flag.IntVar(&o.rounds, "rounds", 5, "rounds, each with every load on every system")
	flag.IntVar(&o.sds, "sds", 3, "servers in Braid's cluster, OSDs in Ceph's")
	flag.DurationVar(&o.runtime, "runtime", time.Second, "length of one sample")
	flag.DurationVar(&o.idle, "idle", 15*time.Second, "how long to watch the idle systems; 0: not at all")
	flag.BoolVar(&o.again, "again", false, "measure nothing; write report and plots of -out again")
	flag.DurationVar(&o.limit, "limit", 0, "about how long to measure at most; 0: as long as it takes")
	flag.Uint64Var(&o.sizeMiB, "size", 512, "size of each volume and device, MiB")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := bench
	if o.again {
		run = func(_ context.Context, o options) error {
			r, err := readResult(o.out)
			if err != nil {
				return err
			}
			return r.report(o)
		}
	}
	if o.scale != "" {
		run = scaling
	}
	if err := run(ctx, o); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// place is where a run works.
type place struct {
	root, bin string // the checkout, and the binaries
	backing   *backing
}

func newPlace(o options) (*place, error) {
	root, err := filepath.Abs(".")
	if err != nil {
		return nil, err
	}
	if _, err := os.Stat(filepath.Join(root, "scripts", "cluster")); err != nil {
		return nil, fmt.Errorf("run it in the root of a checkout: %w", err)
	}
	if o.backing != onTmpfs && o.backing != onDisk {
		return nil, fmt.Errorf("there is no backing %q; backings are %s and %s", o.backing, onTmpfs, onDisk)
	}
	bin := os.Getenv("BRAID_BIN")
	if bin == "" {
		bin = filepath.Join(root, "bin")
	}
	parent := o.dir
	if parent == "" && o.backing == onTmpfs {
		parent = "/dev/shm"
	}
	dir, err := os.MkdirTemp(parent, "braid-bench-")
	if err != nil {
		return nil, err
	}
	return &place{root, bin, &backing{Kind: o.backing, Dir: dir, Size: o.sizeMiB << 20}}, nil
}

// cluster describes a Braid cluster with room for so many bytes on each server.
// Loop devices are sparse, so there they are large enough not to matter.
func (p *place) cluster(name string, sds int, bytes uint64, env ...string) *braidCluster {
	c := &braidCluster{Root: p.root, Bin: p.bin, Dir: filepath.Join(p.backing.Dir, name), Sds: sds,
		Backed: "file", Bytes: bytes + 512<<20, Env: env}
	if p.backing.Kind == onTmpfs {
		c.Backed, c.Bytes = "loop", max(c.Bytes, 4<<30)
	}
	return c
}

// braids are the volumes with 1, 2 and 3 copies, all on one cluster, and two on
// clusters whose disks take 2 ms for a flush, one with too small an activity log.
func (p *place) braids(o options) []system {
	c := p.cluster("braid", o.sds, 6*p.backing.Size/uint64(o.sds))
	var systems []system
	for replicas := 1; replicas <= min(3, o.sds); replicas++ {
		systems = append(systems, &braid{cluster: c, name: "braid-r" + strconv.Itoa(replicas), replicas: replicas})
	}
	if o.sds < 2 {
		return systems
	}
	const slow = "BRAID_TEST_DISK=flush-delay=2ms"
	each := 2 * p.backing.Size / uint64(o.sds) // of the volume, on each server
	slots := max(16, each>>20/8)
	return append(systems,
		&braid{cluster: p.cluster("slow", o.sds, each, slow), name: slowFlush, replicas: 2,
			note: "each device flush takes 2 ms longer; blocking I/O in place of io_uring"},
		&braid{cluster: p.cluster("small", o.sds, each, slow, fmt.Sprintf("BRAID_ACTIVITY_LOG=%d", slots)),
			name: smallLog, replicas: 2,
			note: fmt.Sprintf("as %s, and an activity log of %d chunks for %d", slowFlush, slots, each>>20)})
}

func (p *place) systems(o options, goNBD string) ([]system, error) {
	systems := append([]system{raw{}}, p.braids(o)...)
	systems = append(systems, nbdPeers(goNBD, p.backing.Size)...)
	switch o.peers {
	case "":
	case "ceph":
		c := &cephCluster{Dir: filepath.Join(p.backing.Dir, "ceph"), OSDs: o.sds, Replicas: min(2, o.sds)}
		systems = append(systems, &ceph{cluster: c, direct: true}, &ceph{cluster: c})
	default:
		return nil, fmt.Errorf("there are no peers %q; ceph is the only choice", o.peers)
	}
	return slices.DeleteFunc(systems, func(s system) bool { return !matches(s.Name(), o.only) }), nil
}

func chosenLoads(o options, set string) ([]load, error) {
	loads, ok := loadSets()[set]
	if !ok {
		return nil, fmt.Errorf("there is no set %q; sets are short, full, sweep, disk and smoke", set)
	}
	loads = slices.DeleteFunc(loads, func(l load) bool { return !matches(l.Name, o.loads) })
	if len(loads) == 0 {
		return nil, errors.New("no load is left to run")
	}
	return loads, nil
}

func bench(ctx context.Context, o options) error {
	loads, err := chosenLoads(o, o.set)
	if err != nil {
		return err
	}
	p, err := newPlace(o)
	if err != nil {
		return err
	}
	defer p.backing.close()
	goNBD := filepath.Join(p.bin, "gonbd")
	if _, err := call(ctx, 5*time.Minute, nil, "go", "build", "-o", goNBD, "./perf/peers/gonbd"); err != nil {
		return fmt.Errorf("build the go-nbd peer: %w", err)
	}
	systems, err := p.systems(o, goNBD)
	if err != nil {
		return err
	}
	// What would run no load is not started.
	systems = slices.DeleteFunc(systems, func(s system) bool {
		return !slices.ContainsFunc(loads, func(l load) bool { return l.runsOn(s.Name(), target{}) })
	})
	r := newResult(ctx, o, loads)
	failed := r.take(ctx, o, p.backing, systems)
	if len(r.Samples) == 0 || ctx.Err() != nil {
		return failed
	}
	return errors.Join(failed, r.report(o))
}

// report judges and writes what was measured.
func (r *result) report(o options) error {
	r.Targets = targets(r)
	if err := r.write(o.out); err != nil {
		return err
	}
	r.markdown(os.Stdout)
	if o.set == "disk" {
		return nil // its few figures are in a table
	}
	return r.plots(o.out)
}

// take starts the systems, watches them idle, fills them, measures and stops them.
// A system that does not come up is left out, and so is a load that fails; the
// error tells of both.
func (r *result) take(ctx context.Context, o options, b *backing, systems []system) error {
	defer func() {
		for _, s := range systems {
			s.Stop()
		}
	}()
	var serving, filled []running
	var failed []error
	leaveOut := func(s system, err error) {
		failed = append(failed, fmt.Errorf("%s: %w", s.Name(), err))
		fmt.Fprintln(os.Stderr, "bench:", failed[len(failed)-1])
	}
	for _, s := range systems {
		fmt.Fprintln(os.Stderr, "bench: starting", s.Name())
		t, err := s.Start(ctx, b)
		if err != nil {
			leaveOut(s, err)
			continue
		}
		serving = append(serving, running{s, t})
	}
	if o.idle > 0 {
		fmt.Fprintln(os.Stderr, "bench: watching them idle for", o.idle)
		var err error
		if r.Idle, err = measureIdle(ctx, serving, o.idle); err != nil {
			failed = append(failed, err)
		}
	}
	for _, s := range serving {
		fmt.Fprintln(os.Stderr, "bench: filling", s.sys.Name())
		if err := fill(ctx, s.t); err != nil {
			leaveOut(s.sys, err)
			continue
		}
		filled = append(filled, s)
		r.Systems = append(r.Systems, s.sys.Name())
		r.Settings = append(r.Settings, s.sys.Settings())
	}
	began := time.Now()
	p := plan{Rounds: o.rounds, Runtime: o.runtime, Loads: r.Loads, Limit: o.limit}
	var err error
	r.Samples, err = measure(ctx, &p, filled)
	r.Rounds = p.Rounds
	r.Took = fmt.Sprintf("%.0f s", time.Since(began).Seconds())
	return errors.Join(append(failed, err)...)
}

// describe names the commit, and says whether its sources were changed since; what the
// run itself writes is none of them.
const describe = `echo "$(git describe --always)$(git diff --quiet HEAD -- . ':!perf/results' ':!docs' || echo -dirty)"`

func versions(ctx context.Context) map[string]string {
	v := map[string]string{}
	for name, argv := range map[string][]string{
		"fio": {"fio", "--version"}, "qemu-nbd": {"qemu-nbd", "--version"}, "nbdkit": {"nbdkit", "--version"},
		"braid": {"sh", "-c", describe}, "nbd-server": {"nbd-server", "-V"},
		"go": {"go", "env", "GOVERSION"}, "ceph": {"ceph", "--version"},
		"go-nbd": {"go", "list", "-m", "github.com/pojntfx/go-nbd"},
	} {
		if out, err := exec.CommandContext(ctx, argv[0], argv[1:]...).CombinedOutput(); err == nil {
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
