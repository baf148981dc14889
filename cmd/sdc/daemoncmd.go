// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/cmd/internal/memlock"
	"braid/cmd/internal/observe"
	"braid/cmd/sdc/daemon"
)

// stopTime is how long sdc stop waits for the daemon's end.
const stopTime = 15 * time.Second

func newDaemon() *cobra.Command {
	var auto bool
	var o daemon.Options
	var insecure bool
	var engine, lock string
	cmd := &cobra.Command{
		Use:   "daemon",
		Short: "Run the daemon that serves attached volumes, in the foreground",
		Long: `daemon serves all volumes attached on this machine. attach starts one when none
runs, so it need not be started; do it to have its log, or for a service
manager. It logs to stderr.

SIGTERM detaches what is not in use and ends the daemon. While a device is
mounted the daemon goes on, because without it the mounted file system would
hang; a second SIGTERM ends it all the same.

Its socket, lock and log are in /run/braid, or in $BRAID_RUN.`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := observe.Check(o.Metrics, o.Pprof, insecure); err != nil {
				return cli.UsageError{Err: err}
			}
			o.Auto = auto
			return runDaemon(cmd, o, engine, lock)
		},
	}
	fs := cmd.Flags()
	fs.BoolVar(&auto, "auto", false, "started by attach: end after the last detach")
	fs.StringVar(&engine, "engine", cli.EnvOr("BRAID_ENGINE", "auto"), "auto, io_uring or pool ($BRAID_ENGINE)")
	fs.StringVar(&lock, "lock-memory", "auto",
		"stay out of memory reclaim (I/O flusher, mlock, OOM score): auto (if permitted), on, off")
	fs.StringVar(&o.Metrics, "metrics", os.Getenv("BRAID_SDC_METRICS"),
		"serve Prometheus metrics on HOST:PORT ($BRAID_SDC_METRICS)")
	fs.BoolVar(&o.Pprof, "pprof", false, "serve Go's profiles there, too, below /debug/pprof/")
	fs.BoolVar(&insecure, "insecure", false, "allow a non-loopback address for metrics")
	_ = fs.MarkHidden("auto")
	return cmd
}

func runDaemon(cmd *cobra.Command, o daemon.Options, engineName, lock string) error {
	engine, err := cli.ParseEngine(engineName)
	if err != nil {
		return err
	}
	if lock != "auto" && lock != "on" && lock != "off" {
		return cli.Usagef("--lock-memory %q: it is auto, on or off", lock)
	}
	log := slog.New(slog.NewTextHandler(cmd.ErrOrStderr(), nil))
	if lock != "off" {
		// Reexec does not return when it succeeds: it comes first.
		err := errors.Join(memlock.Reexec(), memlock.LockAll(), memlock.LowerOOMScore())
		if err != nil && lock == "on" {
			return sayReady(o.Auto, err)
		}
		if err != nil {
			log.Warn("memory is not locked: a file system on a volume may hang when memory runs short",
				"reason", err)
		}
	}
	soft, hard, stop := signalContexts(cmd.Context())
	defer stop()
	o.Dir, o.Engine, o.Log, o.Locked = daemon.RunDir(), engine, log, lock != "off"
	d, err := daemon.New(o)
	if err := sayReady(o.Auto, err); err != nil {
		return err
	}
	return d.Run(soft, hard)
}

// sayReady passes the outcome of the start on to whoever waits for it.
func sayReady(auto bool, err error) error {
	if auto {
		daemon.SayReady(err)
	}
	return err
}

func newStop() *cobra.Command {
	return &cobra.Command{
		Use:   "stop",
		Short: "End the daemon of this machine",
		Long: `stop ends the daemon and waits until it is gone. It refuses while volumes are
attached. There is rarely a need: a daemon that attach started ends by itself.`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), stopTime)
			defer cancel()
			err := daemon.NewClient(daemon.RunDir()).Stop(ctx)
			if errors.Is(err, daemon.ErrNotRunning) {
				return nil
			}
			if err != nil {
				return fmt.Errorf("stop the sdc daemon: %w", err)
			}
			return nil
		},
	}
}
