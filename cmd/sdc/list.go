// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/cmd/sdc/daemon"
	"braid/nbd/kernel"
)

// output is the -o flag.
type output string

func (o *output) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP((*string)(o), "output", "o", "table", "table or json")
}

func (o *output) check() error {
	if *o != "table" && *o != "json" {
		return cli.Usagef("-o %s: it is table or json", *o)
	}
	return nil
}

func writeJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

func newList() *cobra.Command {
	var o output
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List the volumes attached on this machine",
		Long: `list shows each attached device with its volume. States: attached; waiting (a
request is older than a second: see sdc why); failed (the volume can serve no
longer, for example because another client has taken it); attaching; detaching;
orphan (the daemon has died and the kernel still holds the device: sdc detach
removes it).`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			list, err := daemon.NewClient(daemon.RunDir()).List(cmd.Context())
			if err != nil && !errors.Is(err, daemon.ErrNotRunning) {
				return err
			}
			list = addOrphans(list)
			if o == "json" {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			return printList(cmd.OutOrStdout(), list)
		},
	}
	o.add(cmd)
	return cmd
}

// addOrphans adds the kernel's devices of ours that no daemon serves.
func addOrphans(list []daemon.Attachment) []daemon.Attachment {
	known := map[string]bool{}
	for _, a := range list {
		known[a.Device] = true
	}
	out := append([]daemon.Attachment{}, list...)
	for _, c := range kernel.List() {
		if !known[c.Path] {
			a := daemon.Attachment{Device: c.Path, Volume: c.Volume, State: daemon.StateOrphan}
			if use := kernel.Use(c.Index); use != nil {
				a.Use = use.Error()
			}
			out = append(out, a)
		}
	}
	return out
}

func printList(w io.Writer, list []daemon.Attachment) error {
	if len(list) == 0 {
		_, err := fmt.Fprintln(w, "nothing is attached here")
		return err
	}
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprintln(t, "DEVICE\tVOLUME\tSIZE\tSTATE\tSOCKETS\tIN FLIGHT\tREAD\tWRITTEN\tUSE")
	for _, a := range list {
		state, use := string(a.State), useOf(a)
		if a.Reason != "" {
			state += ": " + a.Reason
		}
		if use == "" {
			use = "-"
		}
		fmt.Fprintf(t, "%s\t%s\t%s\t%s\t%d\t%d\t%s\t%s\t%s\n", a.Device, a.Volume,
			cluster.FormatSize(a.Size), state, a.Connections, a.InFlight,
			rounded(a.ReadBytes), rounded(a.WriteBytes), use)
	}
	return t.Flush()
}

// useOf shortens who uses a device: the table's line names it already.
func useOf(a daemon.Attachment) string {
	use := strings.TrimPrefix(a.Use, a.Device+" is ")
	return strings.TrimPrefix(use, "in use: ")
}

// rounded is a size for people.
func rounded(n uint64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"}
	x, i := float64(n), 0
	for x >= 1024 && i < len(units)-1 {
		x, i = x/1024, i+1
	}
	if i == 0 {
		return fmt.Sprintf("%d B", n)
	}
	return fmt.Sprintf("%.1f %s", x, units[i])
}

func newWhy() *cobra.Command {
	var o output
	var volume string
	cmd := &cobra.Command{
		Use:   "why DEVICE | why VOLUME",
		Short: "Say what a volume's requests wait for",
		Long: `why says whether requests of DEVICE, or of a volume that is attached or that
sdc serve exports, wait: how many, for which server, for what reason, since when, and what happens
next. A server that is away is no I/O error: requests wait until it is back, or
until the cluster goes on without it. A device that is full is none either: writes
that need space on it wait until there is some.

Reasons (-o json): not-connected, broken, no-in-sync, answer, retry, read-lease,
range-lock, fence, activity-logs, resolve, resync, activity-log-full, slots,
space, flush.`,
		Example: `  sdc why /dev/nbd0
  sdc why db -o json`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 1 && volume == "" && !strings.Contains(args[0], "/") && !strings.HasPrefix(args[0], "nbd") {
				volume = args[0] // as --volume
				return nil
			}
			if volume != "" {
				return cli.NoArgs(cmd, args)
			}
			return oneDevice(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			client := daemon.NewClient(daemon.RunDir())
			var reply daemon.WhyReply
			var err error
			if volume != "" {
				reply, err = client.WhyVolume(cmd.Context(), volume)
			} else {
				reply, err = client.Why(cmd.Context(), args[0])
			}
			if errors.Is(err, daemon.ErrNotRunning) {
				return fmt.Errorf("%s: %w: no sdc daemon runs here", cmp.Or(volume, args[0]), kernel.ErrNotAttached)
			}
			if err != nil {
				return err
			}
			if o == "json" {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			printWhy(cmd.OutOrStdout(), reply, time.Now())
			return nil
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&volume, "volume", "", "a volume instead of a device")
	return cmd
}
