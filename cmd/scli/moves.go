// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"braid/cmd/internal/cli"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// movePlan is what -o json prints of a plan.
type movePlan struct {
	Groups   uint32   `json:"groups"`
	Copies   uint32   `json:"copies"`
	Least    uint32   `json:"least_copies"`
	Rebuilt  uint32   `json:"rebuilt"`
	Bytes    uint64   `json:"bytes"`
	Devices  []fill   `json:"devices"`
	Flows    []flow   `json:"flows"`
	Warnings []string `json:"warnings"`
	Rate     uint64   `json:"assumed_rate"` // bytes per second that a device takes
	Seconds  uint64   `json:"seconds"`      // that it takes then
}

type fill struct {
	Device uint32 `json:"device"`
	Name   string `json:"name"`
	Size   uint64 `json:"size"`
	Used   uint64 `json:"used"`
	After  uint64 `json:"after"`
	Comes  uint64 `json:"comes"`
	Goes   uint64 `json:"goes"`
}

// flow is what one device reads and another one takes in, bytes.
type flow struct {
	From  uint32 `json:"from"`
	To    uint32 `json:"to"`
	Bytes uint64 `json:"bytes"`
}

// moves is what -o json prints of what is moving.
type moves struct {
	State       string   `json:"state"` // balanced | moving | paused | refused
	Groups      uint32   `json:"groups"`
	Running     uint32   `json:"running"`
	Bytes       uint64   `json:"bytes"`
	Paused      bool     `json:"paused"`
	GraceMS     uint64   `json:"grace_ms"`
	Refused     string   `json:"refused"`
	Leaving     []uint32 `json:"leaving"`
	Maintenance []string `json:"maintenance"`
}

func toMovePlan(p *pb.MovePlan) movePlan {
	out := movePlan{Groups: p.Groups, Copies: p.Copies, Least: p.Least, Rebuilt: p.Rebuilt, Bytes: p.Bytes,
		Devices: []fill{}, Flows: []flow{}, Warnings: append([]string{}, p.Warnings...),
		Rate: p.Rate, Seconds: p.Seconds}
	for _, f := range p.Fill {
		out.Devices = append(out.Devices, fill{f.Device, f.Name, f.Size, f.Used, f.After, f.Comes, f.Goes})
	}
	for _, f := range p.Flows {
		out.Flows = append(out.Flows, flow{f.From, f.To, f.Bytes})
	}
	return out
}

func toMoves(m *pb.MovesResponse) moves {
	out := moves{State: "moving", Groups: m.Groups, Running: m.Running, Bytes: m.Bytes, Paused: m.Paused,
		GraceMS: m.GraceMs, Refused: m.Refused, Leaving: append([]uint32{}, m.Leaving...),
		Maintenance: append([]string{}, m.Maintenance...)}
	switch {
	case m.Refused != "":
		out.State = "refused"
	case m.Groups == 0:
		out.State = "balanced"
	case m.Paused:
		out.State = "paused"
	}
	return out
}

func (a *app) showPlan(p movePlan) {
	if p.Groups == 0 {
		fmt.Fprintln(a.out, "nothing would move")
	} else {
		fmt.Fprintf(a.out, "%d groups get other devices: %d copies are made, about %s\n", p.Groups, p.Copies,
			size(p.Bytes))
		if p.Rebuilt > 0 {
			fmt.Fprintf(a.out, "%d of these copies are on devices that are lost; redundancy grows back\n", p.Rebuilt)
		} else {
			fmt.Fprintln(a.out, "redundancy stays as it is: a copy leaves when its successor is in sync")
		}
		if p.Seconds > 0 {
			fmt.Fprintf(a.out, "about %v if a device takes %s a second; longer where clients would notice\n",
				time.Duration(p.Seconds)*time.Second, size(p.Rate))
		}
	}
	rows := [][]string{}
	for _, f := range p.Devices {
		rows = append(rows, []string{fmt.Sprint(f.Device), f.Name, size(f.Size), size(f.Used),
			percent(f.Used, f.Size), size(f.Comes), size(f.Goes), size(f.After), percent(f.After, f.Size)})
	}
	if len(rows) > 0 {
		printTable(a.out, []string{">DEVICE", "PATH", ">SIZE", ">USED NOW", ">", ">COMES", ">GOES", ">AFTER", ">"},
			rows)
	}
	if rows, more := p.between(); len(rows) > 0 {
		fmt.Fprintln(a.out, "\nCopies are read from all that are in sync, in turn:")
		printTable(a.out, []string{"FROM", "TO", ">ABOUT"}, rows)
		if more != "" {
			fmt.Fprintln(a.out, more)
		}
	}
	for _, w := range p.Warnings {
		fmt.Fprintln(a.warn, "warning:", w)
	}
}

// maxPairs is how many pairs of servers a plan shows to people.
const maxPairs = 20

// between sums up what flows between servers, the most first; more tells of the rest.
func (p movePlan) between() (rows [][]string, more string) {
	server := map[uint32]string{}
	for _, f := range p.Devices {
		server[f.Device], _, _ = strings.Cut(f.Name, ":")
	}
	sums := map[[2]string]uint64{}
	for _, f := range p.Flows {
		sums[[2]string{server[f.From], server[f.To]}] += f.Bytes
	}
	pairs := slices.SortedFunc(maps.Keys(sums), func(a, b [2]string) int {
		return cmp.Or(cmp.Compare(sums[b], sums[a]), slices.Compare(a[:], b[:]))
	})
	rest := uint64(0)
	for i, pair := range pairs {
		if i < maxPairs {
			rows = append(rows, []string{pair[0], pair[1], size(sums[pair])})
		} else {
			rest += sums[pair]
		}
	}
	if n := len(pairs) - maxPairs; n > 0 {
		more = fmt.Sprintf("and %d more, %s together; -o json has each pair of devices", n, size(rest))
	}
	return rows, more
}

// movesText says what is moving.
func movesText(m moves) string {
	return map[string]string{
		"balanced": "all data lies where it is to lie",
		"moving":   fmt.Sprintf("%d groups to move, %d now; about %s to copy", m.Groups, m.Running, size(m.Bytes)),
		"paused": fmt.Sprintf("%d groups to move, about %s; go on with `scli rebalance resume`", m.Groups,
			size(m.Bytes)),
		"refused": m.Refused,
	}[m.State]
}

func (a *app) showMoves(m moves) error {
	if a.json() {
		return a.printJSON(m)
	}
	pairs := [][2]string{{"state", m.State + ": " + movesText(m)},
		{"grace", fmt.Sprintf("copies on a device that is away are made anew after %v",
			time.Duration(m.GraceMS)*time.Millisecond)}}
	if len(m.Leaving) > 0 {
		pairs = append(pairs, [2]string{"leaving", "devices " + strings.Trim(fmt.Sprint(m.Leaving), "[]")})
	}
	if len(m.Maintenance) > 0 {
		pairs = append(pairs, [2]string{"maintenance", strings.Join(m.Maintenance, ", ")})
	}
	printPairs(a.out, pairs)
	return nil
}

func (a *app) rebalanceCommand() *cobra.Command {
	var without []uint
	plan := &cobra.Command{
		Use:   "plan",
		Short: "Show what would move, and change nothing",
		Example: `  scli rebalance plan
  scli rebalance plan --without 3,4      as if devices 3 and 4 were removed`,
		Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			var ids []uint32
			for _, id := range without {
				ids = append(ids, uint32(id))
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				p, err := mdm.PlanMoves(ctx, ids...)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(toMovePlan(p))
				}
				a.showPlan(toMovePlan(p))
				return nil
			})
		},
	}
	plan.Flags().UintSliceVar(&without, "without", nil, "devices, as if they were removed")
	set := func(use, short string, r *pb.SetMovesRequest) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cli.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error { return a.setMoves(c, r) }}
	}
	yes, no := true, false
	grace := &cobra.Command{
		Use:   "grace DURATION",
		Short: "Set how long a device may be away before its copies are made anew",
		Example: `  scli rebalance grace 10m
  scli rebalance grace 0s               at once`,
		Args: named("duration"),
		RunE: func(c *cobra.Command, args []string) error {
			d, err := time.ParseDuration(args[0])
			if err != nil || d < 0 {
				return cli.Usagef("rebalance grace %s: give a duration as 90s, 10m or 1h", args[0])
			}
			ms := uint64(d.Milliseconds())
			return a.setMoves(c, &pb.SetMovesRequest{GraceMs: &ms})
		},
	}
	status := &cobra.Command{
		Use:   "status",
		Short: "Show what is still to move",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				m, err := mdm.Moves(ctx)
				if err != nil {
					return err
				}
				return a.showMoves(toMoves(m))
			})
		},
	}
	g := group("rebalance", "Show and steer how data moves between devices", status, plan,
		set("pause", "Begin no new moves; copies that lack redundancy go on", &pb.SetMovesRequest{Paused: &yes}),
		set("resume", "Let data move again", &pb.SetMovesRequest{Paused: &no}), grace)
	g.Long = `Data moves by itself when devices join, leave or are lost for longer than the
grace time. These commands show what would move and what does, and hold it back.`
	return g
}

func (a *app) setMoves(c *cobra.Command, r *pb.SetMovesRequest) error {
	return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
		m, err := mdm.SetMoves(ctx, r)
		if err != nil {
			return err
		}
		return a.showMoves(toMoves(m))
	})
}

// leave is what `device remove` and `sds remove` share.
type leave struct{ force, cancel, dryRun, yes, wait bool }

func (l *leave) flags(c *cobra.Command) {
	f := c.Flags()
	f.BoolVar(&l.cancel, "cancel", false, "take a removal back that has not ended")
	f.BoolVar(&l.dryRun, "dry-run", false, "show what would move, and change nothing")
	f.BoolVarP(&l.yes, "yes", "y", false, "do not ask")
	f.BoolVar(&l.wait, "wait", false, "wait until the devices are empty and gone")
}

// evacuate shows the plan, asks on a terminal, and has the devices emptied.
func (a *app) evacuate(ctx context.Context, mdm *client.Client, what string, r *pb.EvacuateRequest, l *leave) error {
	if l.cancel {
		r.Cancel = true
		if _, err := mdm.Evacuate(ctx, r); err != nil {
			return err
		}
		return a.told(what, "stays")
	}
	r.DryRun = true
	p, err := mdm.Evacuate(ctx, r)
	if err != nil {
		return err
	}
	switch {
	case a.json() && l.dryRun:
		return a.printJSON(toMovePlan(p))
	case !a.json() && (l.dryRun || p.Groups > 0):
		a.showPlan(toMovePlan(p))
	}
	if l.dryRun {
		return nil
	}
	if !l.yes && p.Groups > 0 && !a.json() && isTerminal(os.Stdin) && !a.confirm("empty and remove "+what+"?") {
		return fmt.Errorf("%s stays: the answer was not yes", what)
	}
	r.DryRun = false
	if _, err := mdm.Evacuate(ctx, r); err != nil {
		return err
	}
	if l.wait {
		return a.awaitLeave(ctx, mdm, what)
	}
	m, err := mdm.Moves(ctx)
	if err == nil && len(m.Leaving) == 0 {
		return a.told(what, "removed") // it was empty
	}
	return a.told(what, "leaving")
}

func (a *app) told(what, state string) error {
	if a.json() {
		return a.printJSON(map[string]any{"what": what, "state": state})
	}
	if state == "leaving" {
		state = "is emptied, then removed; `scli rebalance status` shows how far it is"
	}
	fmt.Fprintln(a.out, what, state)
	return nil
}

// awaitLeave waits until nothing is left that leaves.
func (a *app) awaitLeave(ctx context.Context, mdm *client.Client, what string) error {
	ticker := time.NewTicker(time.Second)
	defer ticker.Stop()
	for last := ""; ; {
		m, err := mdm.Moves(ctx)
		if err != nil {
			return err
		}
		if len(m.Leaving) == 0 {
			return a.told(what, "removed")
		}
		if m.Refused != "" {
			return fmt.Errorf("remove %s: %s", what, m.Refused)
		}
		if now := fmt.Sprintf("%d groups to move, about %s to copy", m.Groups, size(m.Bytes)); now != last {
			last = now
			fmt.Fprintln(a.warn, now)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (a *app) confirm(question string) bool {
	fmt.Fprintf(a.out, "%s [y/N] ", question)
	line, err := bufio.NewReader(os.Stdin).ReadString('\n')
	answer := strings.ToLower(strings.TrimSpace(line))
	return err == nil && (answer == "y" || answer == "yes")
}

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

func (a *app) deviceRemoveCommand() *cobra.Command {
	var l leave
	c := &cobra.Command{
		Use:   "remove ID…",
		Short: "Empty devices and take them out of the cluster for good",
		Long: `Empty devices and take them out of the cluster for good. ID is the number that
` + "`scli device list`" + ` shows. Their copies move to other devices first, so redundancy is
never less than before; the plan is shown, and on a terminal you are asked.

With --force a device's copies are given up at once, and their groups go on with
one copy less: for a disk that is broken. A device that holds the only copy of
something is always refused.`,
		Example: `  scli device remove 3 --dry-run
  scli device remove 3 4 --yes --wait
  scli device remove 3 --cancel
  scli device remove 3 --force`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usagef("%s: which device? Usage: %s", c.CommandPath(), c.UseLine())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			var ids []uint32
			for _, arg := range args {
				id, err := strconv.ParseUint(arg, 10, 32)
				if err != nil || id == 0 {
					return cli.Usagef("device remove %s: give the number that `scli device list` shows", arg)
				}
				ids = append(ids, uint32(id))
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				if l.force {
					return a.removeAtOnce(ctx, mdm, ids)
				}
				return a.evacuate(ctx, mdm, "device "+strings.Join(args, ", "), &pb.EvacuateRequest{Devices: ids}, &l)
			})
		},
	}
	l.flags(c)
	c.Flags().BoolVar(&l.force, "force", false, "give up the copies at once, without moving them")
	return c
}

func (a *app) sdsRemoveCommand() *cobra.Command {
	var l leave
	c := &cobra.Command{
		Use:   "remove NAME",
		Short: "Empty all devices of a server and take them out of the cluster",
		Example: `  scli sds remove node3 --dry-run
  scli sds remove node3 --yes --wait`,
		Args: named("server"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				return a.evacuate(ctx, mdm, "server "+args[0], &pb.EvacuateRequest{Server: args[0]}, &l)
			})
		},
	}
	l.flags(c)
	return c
}
