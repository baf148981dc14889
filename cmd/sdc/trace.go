// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/cmd/internal/screen"
	"braid/cmd/sdc/daemon"
	"braid/nbd"
)

func newTrace() *cobra.Command {
	var o output
	var volume, op string
	var limit int
	cmd := &cobra.Command{
		Use:   "trace [--volume NAME] [--op KIND]",
		Short: "Show the slowest requests of late, step by step",
		Long: `trace shows the slowest requests that were answered of late on this machine (of
each half minute the 16 slowest reads, writes and flushes, and 16 others, for each
volume), the slowest first, with the time of each step: receive, lock, wait, cluster, reply; and for each device that
answered when its frame was sent and answered, and how much of that the network,
the server and its store took.

A request that has not been answered yet is not here: ask sdc why.`,
		Example: `  sdc trace -n 3
  sdc trace --op write -n 3
  sdc trace --volume db -o json`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := o.check(); err != nil {
				return err
			}
			if limit < 1 {
				return cli.Usagef("-n %d: show at least one", limit)
			}
			if op != "" && !slices.Contains(nbd.KindNames[:], op) {
				return cli.Usagef("--op %s: there are %s", op, strings.Join(nbd.KindNames[:], ", "))
			}
			all, err := daemon.NewClient(daemon.RunDir()).Trace(cmd.Context())
			if err != nil {
				return err
			}
			list := []daemon.SlowRequest{}
			for _, r := range all {
				if (volume == "" || r.Volume == volume) && (op == "" || r.Kind == op) && len(list) < limit {
					list = append(list, r)
				}
			}
			if o == "json" {
				return writeJSON(cmd.OutOrStdout(), list)
			}
			printTrace(cmd.OutOrStdout(), list)
			return nil
		},
	}
	o.add(cmd)
	cmd.Flags().StringVar(&volume, "volume", "", "this volume only")
	cmd.Flags().StringVar(&op, "op", "", "this kind only: read, write, flush, other (trim, zeroes)")
	cmd.Flags().IntVarP(&limit, "number", "n", 5, "at most so many")
	return cmd
}

func printTrace(w io.Writer, list []daemon.SlowRequest) {
	if len(list) == 0 {
		fmt.Fprintln(w, "no request has been answered here of late")
		return
	}
	for i := range list {
		if i > 0 {
			fmt.Fprintln(w)
		}
		printRequest(w, &list[i])
	}
}

func printRequest(w io.Writer, r *daemon.SlowRequest) {
	what := r.Op
	if r.Length > 0 {
		what += fmt.Sprintf(" of %s at %d", cluster.FormatSize(r.Length), r.Offset)
	}
	if r.Failed {
		what += ", failed"
	}
	fmt.Fprintf(w, "%s  %s, volume %s: %s\n", r.Time.Local().Format("15:04:05.000"), what, r.Volume,
		us(r.TotalUS))
	at := int64(0)
	line := func(name string, took int64, text string) {
		fmt.Fprintf(w, "  %8s  +%-8s  %-8s %s\n", us(at), us(took), name, text)
		at += took
	}
	if r.Op == "write" {
		line("receive", r.ReceiveUS, "its bytes arrive from the NBD client")
	}
	if r.LockUS > 0 {
		line("lock", r.LockUS, "an earlier request to the same blocks ends")
	}
	line("wait", r.WaitUS, "until its first frame is sent")
	line("cluster", r.ClusterUS, fmt.Sprintf("until all that must have answered (%d answers)", r.Answers))
	rows := [][]string{}
	for _, h := range r.Hops {
		status := h.Status
		if h.Try > 1 {
			status += fmt.Sprintf(", try %d", h.Try)
		}
		rows = append(rows, []string{fmt.Sprintf("device %d", h.Device), h.Server, us(h.SentUS), us(h.AnsweredUS),
			us(h.NetworkUS), us(h.ServerUS), us(h.StoreUS), status})
	}
	if len(rows) > 0 {
		table := screen.Table("             ", []string{"", "SERVER", ">SENT", ">ANSWERED", ">NETWORK", ">SERVER",
			">STORE", "STATUS"}, rows)
		fmt.Fprint(w, table)
	}
	line("reply", r.ReplyUS, "its answer is handed to the socket")
}

func us(n int64) string {
	if n == 0 {
		return "0us"
	}
	return screen.Micros(float64(n))
}

// printWhy says what the requests of a volume wait for.
func printWhy(w io.Writer, r daemon.WhyReply, now time.Time) {
	a := r.Attachment
	fmt.Fprintf(w, "%s, volume %s: %s", a.Device, a.Volume, a.State)
	if a.Reason != "" {
		fmt.Fprintf(w, ": %s", a.Reason)
	}
	fmt.Fprintln(w)
	if a.InFlight == 0 {
		fmt.Fprintln(w, "no request is in flight")
	} else {
		fmt.Fprintf(w, "%d request(s) in flight, the oldest for %s\n", a.InFlight,
			screen.Ago(time.Duration(a.OldestMS)*time.Millisecond))
	}
	for i := range r.Waits {
		printWait(w, &r.Waits[i], now)
	}
	if a.InFlight > 0 && len(r.Waits) == 0 {
		fmt.Fprintln(w, "none of them has waited for as long as a second")
	}
	if r.MapRefused != "" {
		fmt.Fprintf(w, "changes of the cluster do not reach it: %s\n  next: it goes on by its last map and takes the "+
			"first one that it can; `scli events` says what changed\n", r.MapRefused)
	}
	if a.Reconnects > 0 {
		fmt.Fprintf(w, "the kernel dropped a socket and was given a new one %d time(s)\n", a.Reconnects)
	}
}

func printWait(w io.Writer, x *daemon.Wait, now time.Time) {
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
		fmt.Fprintf(w, ", for %s", screen.Ago(now.Sub(x.Since)))
	}
	fmt.Fprintln(w)
	if x.Op != "" {
		fmt.Fprintf(w, "    oldest: %s", x.Op)
		if x.Length > 0 {
			fmt.Fprintf(w, " of %s at %d", cluster.FormatSize(x.Length), x.Offset)
		}
		fmt.Fprintln(w)
	}
	next := x.Next
	if in := x.NextAt.Sub(now); !x.NextAt.IsZero() && in > 0 {
		if next != "" {
			next += "; "
		}
		next += "next attempt in " + screen.Ago(in)
	}
	if next != "" {
		fmt.Fprintf(w, "    next: %s\n", strings.TrimSpace(next))
	}
}
