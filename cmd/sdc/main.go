// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/mdm/client"
)

// Exit codes of every command.
const (
	exitDone   = 0
	exitFailed = 1
	exitUsage  = 2
)

// usageError is a wrong command line, as opposed to a command that failed.
type usageError struct{ err error }

func (e usageError) Error() string { return e.err.Error() }
func (e usageError) Unwrap() error { return e.err }

func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes one command line and returns its exit code.
func run(args []string, stdout, stderr io.Writer) int {
	root := newRoot()
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(context.Background())
	var usage usageError
	switch {
	case err == nil:
		return exitDone
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		fmt.Fprintf(stderr, "sdc: %v\nRun `sdc --help` or `sdc COMMAND --help` for how it is used.\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "sdc: %v\n", err)
	return exitFailed
}

// shared are the flags of every command.
type shared struct {
	mdm []string
	run string
}

func newRoot() *cobra.Command {
	s := &shared{}
	root := &cobra.Command{
		Use:   "sdc",
		Short: "The data client of Braid: makes volumes usable on this machine",
		Long: `sdc makes the volumes of a Braid cluster usable on this machine, as a kernel
block device or as an NBD export:

  sdc attach /dev/nbd0 --volume db      then mkfs, mount, … /dev/nbd0 or /dev/braid/db
  sdc list                              what is attached here
  sdc why /dev/nbd0                     what its requests wait for
  sdc top                               what goes on, each second
  sdc trace                             the slowest requests, step by step
  sdc detach /dev/nbd0                  after umount

  sdc serve --volume db --socket /run/db.sock      for qemu, nbdcopy, nbdfuse, …

One daemon per machine serves all attached volumes. attach starts it when it
does not run, and it ends by itself after the last detach.`,
		Version:       cluster.Version,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args:          cobra.NoArgs,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.CompletionOptions.HiddenDefaultCmd = true
	root.PersistentFlags().StringSliceVar(&s.mdm, "mdm", envList("BRAID_MDM", client.DefaultAddr),
		"metadata managers, HOST:PORT[,...] ($BRAID_MDM)")
	root.AddCommand(newAttach(s), newDetach(), newList(), newWhy(), newTop(), newTrace(), newServe(s),
		newDaemon(), newStop())
	return root
}

func envList(name, otherwise string) []string {
	if v := os.Getenv(name); v != "" {
		return strings.Split(v, ",")
	}
	return []string{otherwise}
}

func envOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usagef("%s takes no arguments, only flags; got %q", cmd.CommandPath(), args)
	}
	return nil
}
