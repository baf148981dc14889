// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/mdm/client"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes one command line and returns its exit code.
func run(args []string, stdout, stderr io.Writer) int {
	return cli.Run(context.Background(), newRoot(), args, stdout, stderr)
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
		Version: cluster.Version,
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	root.PersistentFlags().StringSliceVar(&s.mdm, "mdm", cli.EnvList("BRAID_MDM", client.DefaultAddr),
		"metadata managers, HOST:PORT[,...] ($BRAID_MDM)")
	root.AddCommand(newAttach(s), newDetach(), newList(), newWhy(), newTop(), newTrace(), newServe(s),
		newDaemon(), newStop())
	return root
}
