// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"strconv"
	"syscall"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/cmd/internal/memlock"
	"braid/cmd/internal/observe"
	"braid/mdm/client"
	"braid/server"
	"braid/server/store"
)

const (
	defaultListen  = "127.0.0.1:7420"
	minActivityLog = 16
)

// serveFlags is the command line of sds serve.
type serveFlags struct {
	mdm, devices []string
	listen       string
	advertise    string
	name         string
	faultSet     string
	spare        bool
	insecure     bool
	engine       string
	metrics      string
	pprof        bool
	logLevel     string
	lockMemory   string
	activityLog  int
	testIOPS     int
	drills       bool
}

func newServe() *cobra.Command {
	var f serveFlags
	cmd := &cobra.Command{
		Use:   "serve --mdm HOST:PORT[,...] --device PATH ...",
		Short: "Serve formatted devices to the cluster, in the foreground",
		Long: `serve opens the devices, offers them to clients and keeps itself registered with
the metadata manager. It stays in the foreground and logs to stderr; one line
says "serving" for each device and one "listening" for the address.

SIGTERM or SIGINT ends it cleanly: no new requests, those in flight finish, the
disks are flushed and marked clean. A kill -9 loses nothing that was flushed.

A device that fails is taken out of service and reported; the others go on.
Devices join the cluster of the metadata manager when they are first
registered, and from then on serve no other.`,
		Example: `  # two disks, for trials on one machine
  sds serve --mdm 127.0.0.1:7400 --device /dev/sdb --device /dev/sdc

  # reachable from other machines (there is no TLS yet, so it must be asked for)
  sds serve --mdm mdm1:7400,mdm2:7400,mdm3:7400 --listen 10.0.0.2:7420 --insecure \
      --device /dev/sdb --fault-set rack1`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return f.run(cmd)
		},
	}
	fs := cmd.Flags()
	fs.StringSliceVar(&f.mdm, "mdm", cli.EnvList("BRAID_MDM"), "metadata managers, HOST:PORT[,...] ($BRAID_MDM)")
	fs.StringArrayVar(&f.devices, "device", nil, "a formatted block device or file; may be repeated")
	fs.StringVar(&f.listen, "listen", defaultListen, "where clients connect; port 0 takes a free one")
	fs.StringVar(&f.advertise, "advertise", "",
		"HOST:PORT that others reach this server by (default: the listen address)")
	fs.StringVar(&f.name, "name", "",
		"the server's name, unique in the cluster (default: HOSTNAME:PORT)")
	fs.StringVar(&f.faultSet, "fault-set", "",
		"copies of one chunk never share a fault set (default: the name)")
	fs.BoolVar(&f.spare, "spare", false, "devices that join the cluster now are spare: they take no copies "+
		"until `scli device spare --off` or the autopilot puts them to use")
	fs.BoolVar(&f.insecure, "insecure", false, "allow a non-loopback address without TLS")
	fs.StringVar(&f.engine, "engine", cli.EnvOr("BRAID_ENGINE", "auto"), "auto, io_uring or pool ($BRAID_ENGINE)")
	fs.StringVar(&f.metrics, "metrics", "", "serve Prometheus metrics on HOST:PORT")
	fs.BoolVar(&f.pprof, "pprof", false, "serve Go's profiles there, too, below /debug/pprof/")
	fs.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	fs.StringVar(&f.lockMemory, "lock-memory", "auto",
		"stay out of memory reclaim (I/O flusher, mlock, OOM score): auto (if permitted), on, off")
	fs.IntVar(&f.activityLog, "activity-log", envInt("BRAID_ACTIVITY_LOG"),
		"chunks of a device that may have unflushed writes; 0: 16384 ($BRAID_ACTIVITY_LOG)")
	fs.BoolVar(&f.drills, "allow-drills", false,
		"take part in drills (scli drill): faults that whoever may talk to mdm can order")
	fs.IntVar(&f.testIOPS, "test-iops-limit", 0,
		"for tests: answer no more reads and writes in a second and device; 0: no limit")
	return cmd
}

// envInt is 0, the default of every number here, for what is no number.
func envInt(name string) int {
	n, _ := strconv.Atoi(os.Getenv(name))
	return n
}

// run serves until a signal or a fatal error.
func (f *serveFlags) run(cmd *cobra.Command) error {
	level, err := f.check()
	if err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), &slog.HandlerOptions{Level: level}))
	touch, err := f.protect(log)
	if err != nil {
		return err
	}
	manager, err := client.New(f.mdm, client.Options{})
	if err != nil {
		return cli.UsageError{Err: err}
	}
	defer manager.Close()
	// From here on a signal ends the server cleanly.
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer signal.Stop(signals)

	disks, err := openDisks(cmd.Context(), f.devices, log)
	if err != nil {
		return err
	}
	limitMemory(disks)
	ln, err := net.Listen("tcp", f.listen)
	if err != nil {
		return errors.Join(fmt.Errorf("listen for clients on %s: %w", f.listen, err), closeDisks(disks))
	}
	engine, _ := cli.ParseEngine(f.engine) // checked above
	srv, err := server.Start(server.Config{Name: f.name, FaultSet: f.faultSet, Spare: f.spare, Advertise: f.advertise,
		Engine: engine, Store: f.storeConfig(), Log: log, Touch: touch, TestIOPS: f.testIOPS,
		Drills: f.drills}, ln, disks, manager)
	if err != nil {
		return err
	}
	url, stopMetrics, err := observe.Serve(f.metrics, f.pprof, srv.Collector())
	if err == nil {
		if url != "" {
			log.Info("metrics", "url", url)
		}
		select {
		case sig := <-signals:
			log.Info("signal received; a second one ends at once", "signal", sig.String())
		case err = <-srv.Failed():
			log.Error("cannot go on", "error", err)
		}
		stopMetrics()
	}
	return errors.Join(err, closeServer(srv, signals))
}

// storeConfig is how sds runs its stores. Freed chunks are handed to the disk,
// which gives space back on thin-provisioned ones and files.
func (f *serveFlags) storeConfig() store.Config {
	return store.Config{Discard: true, ALSlots: f.activityLog}
}

// closeServer stops cleanly, in bounded time.
func closeServer(srv *server.Server, signals <-chan os.Signal) error {
	ctx, cancel := context.WithTimeout(context.Background(), server.CloseTimeout)
	defer cancel()
	closed := make(chan error, 1)
	go func() { closed <- srv.Close(ctx) }()
	select {
	case err := <-closed:
		return err
	case <-signals:
		return errors.New("ended by a second signal before the clean stop was done; " +
			"what clients have flushed is safe, the next start recovers")
	}
}

// check reads the flags that are not plain text.
func (f *serveFlags) check() (level slog.Level, err error) {
	if len(f.mdm) == 0 {
		return 0, cli.Usagef("where is the metadata manager? give --mdm HOST:PORT[,...] or set BRAID_MDM")
	}
	if f.testIOPS < 0 || f.testIOPS > 1_000_000 {
		return 0, cli.Usagef("--test-iops-limit %d: want 1 to 1000000, or 0 for no limit", f.testIOPS)
	}
	if len(f.devices) == 0 {
		return 0, cli.Usagef("what is to be served? give --device PATH, once for each device " +
			"(`sds format PATH` prepares one)")
	}
	for flag, addr := range map[string]string{"--listen": f.listen, "--metrics": f.metrics} {
		if addr == "" {
			continue
		}
		local, err := isLoopback(addr)
		if err != nil {
			return 0, cli.Usagef("%s %s: %v; write it as HOST:PORT", flag, addr, err)
		}
		if !local && !f.insecure {
			return 0, cli.Usagef("%s %s can be reached from other machines, and there is neither encryption nor "+
				"authentication yet: give --insecure if the network is trusted", flag, addr)
		}
	}
	if f.advertise != "" {
		if _, _, err := net.SplitHostPort(f.advertise); err != nil {
			return 0, cli.Usagef("--advertise %s: %v; write it as HOST:PORT", f.advertise, err)
		}
	}
	if _, err := cli.ParseEngine(f.engine); err != nil {
		return 0, err
	}
	if f.activityLog != 0 && f.activityLog < minActivityLog {
		return 0, cli.Usagef("--activity-log %d: want 0 or at least %d", f.activityLog, minActivityLog)
	}
	if !slices.Contains([]string{"auto", "on", "off"}, f.lockMemory) {
		return 0, cli.Usagef("--lock-memory %s: want auto, on or off", f.lockMemory)
	}
	if f.pprof && f.metrics == "" {
		return 0, cli.UsageError{Err: observe.ErrNoListener}
	}
	if err := level.UnmarshalText([]byte(f.logLevel)); err != nil {
		return 0, cli.Usagef("--log-level %s: want debug, info, warn or error", f.logLevel)
	}
	return level, nil
}

// isLoopback reports whether only this machine can reach a listener on addr.
func isLoopback(addr string) (bool, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return false, errors.New("the port is missing")
	}
	if host == "" {
		return false, nil
	}
	ips, err := net.LookupIP(host)
	if err != nil {
		return false, err
	}
	return !slices.ContainsFunc(ips, func(ip net.IP) bool { return !ip.IsLoopback() }), nil
}

// protect keeps the process out of memory reclaim, as far as it may. It returns
// what the server has to do to its buffers.
func (f *serveFlags) protect(log *slog.Logger) (touch func([]byte), err error) {
	if f.lockMemory == "off" {
		return nil, nil
	}
	steps := []struct {
		what string
		do   func() error
	}{
		{"I/O flusher", memlock.Reexec}, // first: it may replace the process image
		{"memory lock", memlock.LockAll},
		{"OOM score", memlock.LowerOOMScore},
	}
	touch = memlock.Prefault
	for _, step := range steps {
		err := step.do()
		switch {
		case err == nil:
		case f.lockMemory == "on":
			return nil, fmt.Errorf("--lock-memory on: %w", err)
		default:
			log.Debug("not protected from memory reclaim; this matters only where a Braid volume is mounted "+
				"on this very machine", "step", step.what, "error", err)
			if step.what == "memory lock" {
				touch = nil
			}
		}
	}
	return touch, nil
}

// limitMemory gives the collector a soft limit that fits the devices, unless
// GOMEMLIMIT says otherwise: a base, and for each device its caches and the
// tables that grow with its size.
func limitMemory(disks []server.Disk) {
	if os.Getenv("GOMEMLIMIT") != "" {
		return
	}
	const base, perDevice, perTiB = 256 << 20, 192 << 20, 1200 << 20
	limit := int64(base)
	for _, d := range disks {
		limit += perDevice + d.Backing.Size()>>20*perTiB>>20
	}
	debug.SetMemoryLimit(limit)
}
