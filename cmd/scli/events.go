// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/mdm/client"
	"braid/mdm/pb"
)

type event struct {
	Seq      uint64 `json:"seq"`
	Time     string `json:"time"`
	Severity string `json:"severity"`
	Kind     string `json:"kind"`
	Subject  string `json:"subject"`
	Text     string `json:"text"`
}

func (a *app) eventsCommand() *cobra.Command {
	var follow bool
	var limit uint32
	var after uint64
	c := &cobra.Command{
		Use:   "events",
		Short: "Show what happened",
		Long: `Show what happened, the newest last. With --follow it goes on until interrupted;
with -o json it then prints one object per line instead of an array.`,
		Example: `  scli events --limit 20
  scli events --follow`,
		Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				all := []event{}
				err := mdm.Events(ctx, after, limit, follow, func(m *pb.Event) {
					e := event{m.Seq, m.Time, m.Severity, m.Kind, m.Subject, m.Text}
					if a.json() && !follow {
						all = append(all, e)
						return
					}
					a.printEvent(e)
				})
				if err == nil && a.json() && !follow {
					return a.printJSON(all)
				}
				return err
			})
		},
	}
	c.Flags().BoolVarP(&follow, "follow", "f", false, "go on with what happens from now on")
	c.Flags().Uint32Var(&limit, "limit", 100, "at most so many of those that there are; 0: all")
	c.Flags().Uint64Var(&after, "after", 0, "only those with a higher number (seq)")
	return c
}

func (a *app) printEvent(e event) {
	if a.json() {
		line, err := json.Marshal(e)
		if err == nil {
			fmt.Fprintln(a.out, string(line))
		}
		return
	}
	when := e.Time
	if t, err := time.Parse(time.RFC3339Nano, e.Time); err == nil {
		when = t.Local().Format("2006-01-02 15:04:05")
	}
	fmt.Fprintf(a.out, "%s  %-7s  %-16s  %s\n", when, e.Severity, e.Kind, e.Text)
}
