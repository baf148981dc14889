// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
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
		return usagef("-o %s: it is table or json", *o)
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
		Args: noArgs,
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
	cmd := &cobra.Command{
		Use:   "why DEVICE",
		Short: "Say what an attached device waits for",
		Long: `why says whether requests of DEVICE wait, since when, and for which server.
A server that is away is no I/O error: requests wait until it is back, or until
the cluster goes on without it.`,
		Args: oneDevice,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := o.check(); err != nil {
				return err
			}
			reply, err := daemon.NewClient(daemon.RunDir()).Why(cmd.Context(), args[0])
			if errors.Is(err, daemon.ErrNotRunning) {
				return fmt.Errorf("%s: %w: no sdc daemon runs here", args[0], kernel.ErrNotAttached)
			}
			if err != nil {
				return err
			}
			if o == "json" {
				return writeJSON(cmd.OutOrStdout(), reply)
			}
			printWhy(cmd.OutOrStdout(), reply)
			return nil
		},
	}
	o.add(cmd)
	return cmd
}

func printWhy(w io.Writer, r daemon.WhyReply) {
	a := r.Attachment
	fmt.Fprintf(w, "%s, volume %s: %s", a.Device, a.Volume, a.State)
	if a.Reason != "" {
		fmt.Fprintf(w, ": %s", a.Reason)
	}
	fmt.Fprintln(w)
	if a.InFlight == 0 {
		fmt.Fprintln(w, "no request is in flight")
	} else {
		fmt.Fprintf(w, "%d request(s) in flight, the oldest for %v\n", a.InFlight,
			(time.Duration(a.OldestMS) * time.Millisecond).Round(time.Millisecond))
	}
	for _, x := range r.Waits {
		whom := x.Server
		if x.Device != 0 {
			whom = fmt.Sprintf("device %d of %s", x.Device, x.Server)
		}
		if x.Addr != "" {
			whom += " (" + x.Addr + ")"
		}
		fmt.Fprintf(w, "  %d request(s)", x.Requests)
		if whom != "" {
			fmt.Fprintf(w, " wait for %s", whom)
		}
		fmt.Fprintf(w, ": %s", x.Why)
		if !x.Since.IsZero() {
			fmt.Fprintf(w, ", for %v", time.Since(x.Since).Round(100*time.Millisecond))
		}
		fmt.Fprintln(w)
	}
	if a.Reconnects > 0 {
		fmt.Fprintf(w, "the kernel dropped a socket and was given a new one %d time(s)\n", a.Reconnects)
	}
}
