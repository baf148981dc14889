// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/server/store"
)

func newFormat() *cobra.Command {
	var force bool
	var size string
	cmd := &cobra.Command{
		Use:   "format PATH [--size SIZE] [--force]",
		Short: "Prepare a block device or a file for sds serve",
		Long: `format writes an empty store to a block device or a file. Everything that was on
it is lost, so a device that holds a file system, a partition table, another
program's data or a Braid store is refused unless --force is given.

For trials a file will do: with --size it is made, with its space allocated, so
that it cannot run out later. Sizes are binary: 512M, 10G, 1.5T.

The device belongs to no cluster yet; it joins that of the first metadata
manager that sds serve registers it with.`,
		Example: `  sds format /dev/sdb
  sds format /var/lib/braid/disk0 --size 10G
  sds format /dev/sdc --force        # whatever is on it is lost`,
		Args: onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			return runFormat(cmd, args[0], size, force)
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "format it although it holds something; that is lost")
	cmd.Flags().StringVar(&size, "size", "", "make a file of this size; only for files that do not exist")
	return cmd
}

func runFormat(cmd *cobra.Command, path, size string, force bool) (err error) {
	if size != "" {
		bytes, perr := cluster.ParseSize(size)
		if perr != nil {
			return cli.Usagef("--size: %v", perr)
		}
		if bytes == 0 || bytes%cluster.BlockSize != 0 || bytes > 1<<62 {
			return cli.Usagef("--size %s: want a multiple of 4096 bytes above 0", size)
		}
		if err = makeFile(path, int64(bytes)); err != nil {
			return err
		}
		defer func() {
			if err != nil {
				_ = os.Remove(path) // it was made for nothing
			}
		}()
	}
	b, err := openFresh(path, force)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	var id cluster.UUID
	_, _ = rand.Read(id[:]) // never fails
	id[6], id[8] = id[6]&0x0f|0x40, id[8]&0x3f|0x80
	bar := newProgress(cmd.ErrOrStderr(), "formatting "+path)
	got, err := store.Format(b, id, cluster.UUID{}, bar.set)
	bar.end()
	if err != nil {
		return fmt.Errorf("format %s: %w", path, err)
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s: formatted, %s for data, device %v\n", path,
		cluster.FormatSize(uint64(got.Capacity)), got.Device)
	return nil
}

// makeFile makes a file with its space allocated.
func makeFile(path string, size int64) error {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("make the file %s: it exists already; leave --size away to format it as it is", path)
	}
	if err != nil {
		return fmt.Errorf("make the file %s: %w", path, err)
	}
	err = unix.Fallocate(int(f.Fd()), 0, 0, size)
	switch {
	case errors.Is(err, unix.EOPNOTSUPP):
		err = errors.New("the file system cannot allocate space in advance; use ext4, xfs, btrfs or tmpfs")
	case errors.Is(err, unix.ENOSPC):
		err = fmt.Errorf("the file system has no room for %s", cluster.FormatSize(uint64(size)))
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		_ = os.Remove(path)
		return fmt.Errorf("allocate %s for %s: %w", cluster.FormatSize(uint64(size)), path, err)
	}
	return nil
}
