// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"braid/mdm/client"
	"braid/mdm/pb"
)

func (a *app) maintenanceCommand() *cobra.Command {
	protected := false
	enter := &cobra.Command{
		Use:   "enter NAME",
		Short: "Prepare for stopping a server",
		Args:  named("server"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				r := &pb.MaintainRequest{Server: args[0], Enter: true, Protected: protected}
				if protected {
					return a.awaitProtected(ctx, mdm, r)
				}
				if _, err := mdm.Maintain(ctx, r); err != nil {
					return err
				}
				return a.maintained(r, "in maintenance: its copies stay, and catch up when it is back")
			})
		},
	}
	enter.Flags().BoolVar(&protected, "protected", false, "move its copies elsewhere first, and wait for that")
	exit := &cobra.Command{
		Use:   "exit NAME",
		Short: "End it: copies are made anew, or come back, as usual",
		Args:  named("server"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				r := &pb.MaintainRequest{Server: args[0]}
				if _, err := mdm.Maintain(ctx, r); err != nil {
					return err
				}
				return a.maintained(r, "no longer in maintenance")
			})
		},
	}
	g := group("maintenance", "Begin and end a server's maintenance", enter, exit)
	g.Long = `In maintenance a server may be stopped and started: its copies are not made anew
elsewhere, and catch up when it is back. Entering is refused while the server holds
the only in-sync copy of something.

With --protected its copies move elsewhere first, as far as there is room and fault
sets are enough, and the command returns when the server holds nothing: redundancy is
never less than before. After exit data moves back.`
	g.Example = `  scli sds maintenance enter node3
  scli sds maintenance enter node3 --protected
  scli sds maintenance exit node3`
	return g
}

func (a *app) maintained(r *pb.MaintainRequest, state string) error {
	if a.json() {
		return a.printJSON(map[string]any{"server": r.Server, "maintenance": r.Enter})
	}
	fmt.Fprintf(a.out, "server %s is %s\n", r.Server, state)
	return nil
}

// awaitProtected returns when the server holds nothing any more.
func (a *app) awaitProtected(ctx context.Context, mdm *client.Client, r *pb.MaintainRequest) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for last := uint32(0); ; {
		left, err := mdm.Maintain(ctx, r)
		if err != nil {
			return err
		}
		if left == 0 {
			return a.maintained(r, "in protected maintenance: it holds nothing, and may be stopped")
		}
		m, err := mdm.Moves(ctx)
		switch {
		case err != nil:
			return err
		case m.Refused != "":
			return fmt.Errorf("protected maintenance of %s: %s; `scli sds maintenance exit %s` takes it back", r.Server,
				m.Refused, r.Server)
		case m.Paused:
			return fmt.Errorf("protected maintenance of %s: moves are paused; go on with `scli rebalance resume`, or "+
				"take it back with `scli sds maintenance exit %s`", r.Server, r.Server)
		}
		if left != last {
			last = left
			fmt.Fprintf(a.warn, "%d groups to move off %s\n", left, r.Server)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
