// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/cmd/sdc/daemon"
	"braid/nbd/kernel"
)

// oneDevice is the argument check of the commands that work on one device.
func oneDevice(cmd *cobra.Command, args []string) error {
	if len(args) != 1 {
		return cli.Usagef("%s takes one DEVICE, like /dev/nbd0; got %d arguments", cmd.CommandPath(), len(args))
	}
	if _, _, err := kernel.ParseDevice(args[0]); err != nil {
		return cli.UsageError{Err: err}
	}
	return nil
}

func newAttach(s *shared) *cobra.Command {
	var r daemon.AttachRequest
	var memory string
	cmd := &cobra.Command{
		Use:   "attach DEVICE [--volume NAME]",
		Short: "Attach a volume as a kernel block device",
		Long: `attach connects a volume to the kernel's NBD driver as DEVICE (/dev/nbd0,
/dev/nbd1, …; sdc list shows which are taken) and makes a link to it,
/dev/braid/VOLUME. Without --volume it takes the cluster's only volume.

A volume can be attached in one place at a time. Where another client holds it,
attach fails and says who; --force takes it from that client, which from then on
can neither read nor write it.

The kernel sends a request again when it was not answered within --timeout. That
is no error: while servers are away requests wait, for as long as it takes.

Writes that need space where a device of the cluster is full wait, too, and go on by
themselves as soon as there is some; reads and all other writes go on meanwhile.
With --on-full=error they fail instead, with ENOSPC.

attach needs root, and the kernel's nbd module, which it loads.`,
		Example: `  sdc attach /dev/nbd0 --volume db
  mkfs.ext4 /dev/braid/db && mount /dev/braid/db /mnt`,
		Args: oneDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			_, path, err := kernel.ParseDevice(args[0])
			if err != nil {
				return err
			}
			r.Device, r.Mdm = path, s.mdm
			if r.Connections < 1 || r.Connections > kernel.MaxConnections {
				return cli.Usagef("--connections %d: it takes 1 to %d", r.Connections, kernel.MaxConnections)
			}
			if err := r.OnFull.Check(); err != nil {
				return cli.UsageError{Err: err}
			}
			if r.Timeout < time.Second {
				return cli.Usagef("--timeout %v: the kernel counts in seconds; the least is 1s", r.Timeout)
			}
			if memory != "" {
				if r.Memory, err = cluster.ParseSize(memory); err != nil {
					return cli.Usagef("--memory: %v", err)
				}
			}
			return runAttach(cmd, r)
		},
	}
	fs := cmd.Flags()
	fs.StringVar(&r.Volume, "volume", "", "the volume (default: the cluster's only one)")
	fs.IntVar(&r.Connections, "connections", kernel.DefaultConnections,
		"sockets to the kernel; each is a hardware queue")
	fs.DurationVar(&r.Timeout, "timeout", kernel.DefaultTimeout, "after which the kernel sends a request again")
	fs.DurationVar(&r.DeadTimeout, "dead-timeout", kernel.DefaultDeadTimeout,
		"how long requests wait for a new daemon when this one has died")
	fs.BoolVar(&r.Force, "force", false, "take the volume from another client that holds it, and fence that client")
	fs.BoolVar(&r.ReadOnly, "read-only", false, "make the device read-only")
	fs.StringVar((*string)(&r.OnFull), "on-full", string(daemon.OnFullWait),
		"what writes do that need space where there is none: wait, or error")
	fs.BoolVar(&r.Ioctl, "ioctl", false, "use the kernel's old interface")
	fs.StringVar(&memory, "memory", "", "attach this much memory instead of a volume (for tests)")
	fs.IntVar(&r.BlockSize, "memory-block-size", 4096, "logical block size with --memory")
	for _, name := range []string{"ioctl", "memory", "memory-block-size"} {
		_ = fs.MarkHidden(name)
	}
	return cmd
}

func runAttach(cmd *cobra.Command, r daemon.AttachRequest) error {
	if os.Geteuid() != 0 {
		return fmt.Errorf("attach %s: %w; `sdc serve` works without", r.Device, kernel.ErrNotRoot)
	}
	soft, _, stop := signalContexts(cmd.Context())
	defer stop()
	a, err := daemon.NewClient(daemon.RunDir()).AttachStarting(soft, r)
	if err != nil {
		if soft.Err() != nil {
			return fmt.Errorf("attach %s: interrupted", r.Device)
		}
		return err
	}
	fmt.Fprintf(cmd.OutOrStdout(), "%s is volume %s, %s, also %s\n", a.Device, a.Volume,
		cluster.FormatSize(a.Size), a.Link)
	return nil
}

func newDetach() *cobra.Command {
	var r daemon.DetachRequest
	cmd := &cobra.Command{
		Use:   "detach DEVICE",
		Short: "Detach a kernel block device",
		Long: `detach flushes DEVICE, disconnects it from the kernel and ends the volume's
session. It refuses while DEVICE or a partition of it is mounted, is swap space,
or is held by another block device, and says by what.

It refuses as well while writes wait for space on a full device, and says on which;
with --force they fail.

It always ends within seconds. If the servers are away, so that the flush cannot
succeed, the device goes all the same, and a warning says so.`,
		Args: oneDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Device = args[0]
			return runDetach(cmd, r)
		},
	}
	cmd.Flags().BoolVar(&r.Force, "force", false,
		"detach even if it is in use, or writes wait for space: its user gets I/O errors")
	return cmd
}

func runDetach(cmd *cobra.Command, r daemon.DetachRequest) error {
	_, path, err := kernel.ParseDevice(r.Device)
	if err != nil {
		return err
	}
	// Not stopped by a signal: half a detach is of no use, and it ends soon.
	done, err := daemon.NewClient(daemon.RunDir()).Detach(cmd.Context(), r)
	if errors.Is(err, daemon.ErrNotRunning) {
		// The daemon has died: its device may still be there.
		if os.Geteuid() != 0 {
			return fmt.Errorf("detach %s: %w", path, kernel.ErrNotRoot)
		}
		done, err = daemon.DetachOrphan(cmd.Context(), daemon.RunDir(), path, r.Force)
	}
	if err != nil {
		return err
	}
	if done.Warning != "" {
		fmt.Fprintf(cmd.ErrOrStderr(), "sdc: warning: %s is detached, but %s\n", path, done.Warning)
	}
	return nil
}
