// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"io"
	"os"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

// run executes one command line and returns its exit code.
func run(args []string, stdout, stderr io.Writer) int {
	return cli.Run(context.Background(), newRoot(), args, stdout, stderr)
}

func newRoot() *cobra.Command {
	root := &cobra.Command{
		Use:   "sds",
		Short: "The data server of Braid: gives disks to the cluster",
		Long: `sds gives the disks of this machine to a Braid cluster.

A disk is formatted once; then one sds process per machine serves all of them:

  sds format /dev/sdb
  sds serve --mdm 10.0.0.1:7400 --listen 10.0.0.2:7420 --insecure --device /dev/sdb

Data that a client has flushed is on the disk, and is there again after the
process or the machine was killed. When a disk fails only that disk goes out of
service. The metadata manager (mdm) may be away: what is served goes on.`,
		Version: cluster.Version,
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return cmd.Help()
		},
	}
	root.AddCommand(newServe(), newFormat(), newInspect(), newCheck())
	return root
}

// onePath is the argument check of the commands that work on one device.
func onePath(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return cli.Usagef("%s takes one PATH, a block device or a file; got %d arguments",
			cmd.CommandPath(), len(args))
	}
	return nil
}
