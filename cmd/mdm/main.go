// SPDX-License-Identifier: Apache-2.0

// Command mdm is Braid's metadata manager.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/mdm"
	"braid/mdm/client"
	"braid/transport"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	root := &cobra.Command{
		Use:   "mdm",
		Short: "Braid's metadata manager",
		Long: `mdm keeps what a Braid cluster must agree on: servers, devices, volumes, who has
which volume attached, and which devices hold which part. It is not on the path
of I/O: volumes go on working while it is away.

Its state lives in etcd, which is built in. One mdm is enough for a trial; three
survive the loss of one.`,
		Version: cluster.Version,
		Args:    cobra.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
	}
	root.AddCommand(serveCommand())
	return cli.Run(context.Background(), root, args, stdout, stderr)
}

func serveCommand() *cobra.Command {
	var config mdm.Config
	var verbose bool
	c := &cobra.Command{
		Use:   "serve --data-dir DIR [--listen HOST:PORT]",
		Short: "Run a metadata manager until SIGTERM",
		Long: `Run a metadata manager in the foreground until SIGTERM or SIGINT. It prints one
line when it is ready.

A cluster starts with one mdm, or with three that name each other in --cluster.
The URLs there are for the mdms among themselves; clients use --listen. With
--etcd the state goes to an etcd that runs already; any number of mdms may share
it, below /braid/.

The API speaks gRPC and Connect, and JSON for curl:

  curl -H 'Content-Type: application/json' -d '{}' \
      http://127.0.0.1:7400/braid.mdm.v1.Mdm/Status

GET /healthz tells whether changes can be made, GET /metrics is for Prometheus.`,
		Example: `  mdm serve --data-dir /var/lib/braid/mdm

  # one of three; the others likewise, each with its own name
  mdm serve --data-dir /var/lib/braid/mdm --listen 10.0.0.1:7400 --insecure --name a \
      --cluster a=http://10.0.0.1:7401,b=http://10.0.0.2:7401,c=http://10.0.0.3:7401`,
		Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return serve(config, verbose, c.OutOrStdout(), c.ErrOrStderr())
		},
	}
	f := c.Flags()
	f.StringVar(&config.DataDir, "data-dir", "", "where the state is kept; one directory per mdm (required)")
	f.StringVar(&config.Listen, "listen", client.DefaultAddr, "HOST:PORT of the API; port 0 takes any")
	f.StringVar(&config.Advertise, "advertise", "",
		"HOST:PORT under which others reach the API (default: where it listens)")
	f.StringVar(&config.Name, "name", "", "name of this member (default: the host's name)")
	f.StringVar(&config.Cluster, "cluster", "",
		"all members as NAME=http://HOST:PORT,… (default: this one alone)")
	f.StringSliceVar(&config.Etcd, "etcd", nil, "URLs of an etcd to use instead of the one built in")
	f.StringVar(&config.Restore, "restore", "",
		"fill the empty store from this file, which scli backup made; then see scli restore status")
	f.BoolVar(&config.AutoEvict, "auto-evict", true,
		"take copies that are away or restarted out of their groups, and bring them back by resync")
	f.BoolVar(&config.AllowDrills, "allow-drills", false,
		"let scli drill order faults; servers that take part need the flag, too")
	f.StringVar(&config.Hook, "autopilot-hook", "",
		"program that the autopilot runs when no spare device is left, and that is to bring one; see scli autopilot")
	f.DurationVar(&config.HookTimeout, "autopilot-hook-timeout", mdm.DefaultHookTimeout, "how long that may take")
	f.BoolVar(&config.Insecure, "insecure", false,
		"allow addresses that other hosts reach; there is no authentication")
	f.BoolVar(&config.Pprof, "pprof", false, "serve Go's profiles below /debug/pprof/ of the API's port")
	f.BoolVarP(&verbose, "verbose", "v", false, "log more")
	return c
}

// gcPercent trades a little CPU, of which mdm uses next to none, for memory.
const gcPercent = 50

func serve(config mdm.Config, verbose bool, stdout, stderr io.Writer) error {
	if config.DataDir == "" {
		return cli.Usagef("serve needs --data-dir DIR, where the state is kept")
	}
	debug.SetGCPercent(gcPercent)
	level := slog.LevelInfo
	if verbose {
		level = slog.LevelDebug
	}
	config.Log = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	config.Probe = transport.Probe
	member, err := mdm.Start(ctx, config)
	if err != nil {
		return err
	}
	fmt.Fprintf(stdout, "mdm ready: API at %s, cluster %s, data in %s\n", member.Addr(), member.Cluster(),
		config.DataDir)
	select {
	case <-ctx.Done():
	case err = <-member.Failed():
	}
	stop() // a second signal ends it at once
	return errors.Join(err, member.Close())
}
