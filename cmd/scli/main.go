// SPDX-License-Identifier: Apache-2.0

// Command scli administers a Braid cluster: it asks the metadata manager and
// prints what it says.
package main

import (
	"context"
	"io"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/mdm/client"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	code := run(ctx, os.Args[1:], os.Getenv("BRAID_MDM"), os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

// app is what all commands share.
type app struct {
	mdm     string
	output  string
	timeout time.Duration
	out     io.Writer
	warn    io.Writer
}

func run(ctx context.Context, args []string, mdm string, stdout, stderr io.Writer) int {
	a := &app{out: stdout, warn: stderr}
	if mdm == "" {
		mdm = client.DefaultAddr
	}
	return cli.Run(ctx, a.rootCommand(mdm), args, stdout, stderr)
}

func (a *app) rootCommand(mdm string) *cobra.Command {
	root := &cobra.Command{
		Use:   "scli",
		Short: "Administer a Braid cluster",
		Long: `scli shows and changes a Braid cluster: its volumes, servers, devices and events.

It talks to the metadata manager at --mdm or $BRAID_MDM. With -o json, lists are
arrays, sizes are bytes, and field names stay the same from version to version.
Sizes are binary: 64K, 10G, 1.5T. Exit codes: 0 done, 1 failed, 2 wrong usage.`,
		Example: `  scli status
  scli volume create db --size 100G
  scli volume list -o json
  scli events --follow`,
		Version: cluster.Version,
		Args:    cli.NoArgs,
		RunE:    func(c *cobra.Command, _ []string) error { return c.Help() },
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return cli.Usagef("-o %s: there are table and json", a.output)
			}
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.mdm, "mdm", mdm, "metadata managers, HOST:PORT[,…]; also $BRAID_MDM")
	f.StringVarP(&a.output, "output", "o", "table", "table or json")
	f.DurationVar(&a.timeout, "timeout", 5*time.Second, "how long to look for a metadata manager that answers")
	root.AddCommand(a.statusCommand(), a.topCommand(), a.volumeCommand(), a.sdsCommand(), a.deviceCommand(),
		a.clusterCommand(), a.rebalanceCommand(), a.autopilotCommand(), a.drillCommand(),
		a.scrubCommand(), a.eventsCommand(), a.backupCommand(),
		a.restoreCommand())
	return root
}

// named wants the name of the thing a command works on.
func named(what string) cobra.PositionalArgs {
	return func(c *cobra.Command, args []string) error {
		switch {
		case len(args) == 0:
			return cli.Usagef("%s: which %s? Usage: %s", c.CommandPath(), what, c.UseLine())
		case len(args) > 1:
			return cli.Usagef("%s: %q is too much; usage: %s", c.CommandPath(), args[1], c.UseLine())
		}
		return nil
	}
}

// group is a command that only has subcommands.
func group(use, short string, commands ...*cobra.Command) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error { return c.Help() }}
	c.AddCommand(commands...)
	return c
}

// ask connects, calls f and closes.
func (a *app) ask(c *cobra.Command, f func(context.Context, *client.Client) error) error {
	mdm, err := client.New([]string{a.mdm}, client.Options{Patience: a.timeout})
	if err != nil {
		return cli.UsageError{Err: err}
	}
	defer mdm.Close()
	return f(c.Context(), mdm)
}

func parseSize(flag, text string) (uint64, error) {
	n, err := cluster.ParseSize(text)
	if err != nil {
		return 0, cli.Usagef("%s: %w", flag, err)
	}
	return n, nil
}
