// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// autopilot is what -o json prints of it.
type autopilot struct {
	Mode       string      `json:"mode"`
	Threshold  uint32      `json:"threshold"` // percent
	Ceiling    uint32      `json:"ceiling"`   // devices in use
	CooldownMS uint64      `json:"cooldown_ms"`
	Fill       uint32      `json:"fill"` // percent
	Devices    uint32      `json:"devices"`
	Spares     uint32      `json:"spares"`
	Hook       bool        `json:"hook"`
	Doing      string      `json:"doing"`
	Stuck      bool        `json:"stuck"`
	History    []expansion `json:"history"`
}

type expansion struct {
	At     time.Time `json:"at"`
	Device uint32    `json:"device"` // 0: the hook
	What   string    `json:"what"`
	Fill   uint32    `json:"fill"`
}

func toAutopilot(m *pb.Autopilot) autopilot {
	out := autopilot{Mode: m.Mode, Threshold: m.Threshold, Ceiling: m.Ceiling, CooldownMS: m.CooldownMs, Fill: m.Fill,
		Devices: m.Devices, Spares: m.Spares, Hook: m.Hook, Doing: m.Doing, Stuck: m.Stuck, History: []expansion{}}
	for _, e := range m.History {
		out.History = append(out.History, expansion{time.UnixMilli(e.AtMs).UTC(), e.Device, e.What, e.Fill})
	}
	return out
}

func (a *app) showAutopilot(p autopilot) error {
	if a.json() {
		return a.printJSON(p)
	}
	does := p.Doing
	switch {
	case p.Mode == "off":
		does = "nothing: it is off"
	case does == "":
		does = "nothing: there is room"
	}
	ceiling := "none set"
	if p.Ceiling > 0 {
		ceiling = fmt.Sprintf("%d devices in use at most, %d are", p.Ceiling, p.Devices)
	}
	help := fmt.Sprintf("%d spare devices", p.Spares)
	if p.Hook {
		help += ", then the hook"
	}
	printPairs(a.out, [][2]string{
		{"mode", p.Mode},
		{"threshold", fmt.Sprintf("%d%% full, it is %d%%", p.Threshold, p.Fill)},
		{"ceiling", ceiling},
		{"cooldown", fmt.Sprintf("%v between two expansions", time.Duration(p.CooldownMS)*time.Millisecond)},
		{"has", help},
		{"does", does},
	})
	return nil
}

func (a *app) showExpansions(p autopilot) error {
	if a.json() {
		return a.printJSON(p.History)
	}
	if len(p.History) == 0 {
		fmt.Fprintln(a.out, "the autopilot has not added anything yet")
		return nil
	}
	rows := [][]string{}
	for _, e := range p.History {
		rows = append(rows, []string{e.At.Format("2006-01-02 15:04:05"), fmt.Sprintf("%d%%", e.Fill), e.What})
	}
	printTable(a.out, []string{"AT (UTC)", ">FILL", "DID"}, rows)
	return nil
}

// parseAutopilot reads KEY=VALUE….
func parseAutopilot(args []string) (*pb.SetAutopilotRequest, error) {
	r := &pb.SetAutopilotRequest{}
	number := func(text string) (*uint32, error) {
		n, err := strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 32)
		out := uint32(n)
		return &out, err
	}
	for _, arg := range args {
		key, text, _ := strings.Cut(arg, "=")
		var err error
		want := ""
		switch key {
		case "mode":
			r.Mode = &text
		case "threshold":
			want = "percent, as 80%"
			r.Threshold, err = number(text)
		case "ceiling":
			want = "a number of devices"
			r.Ceiling, err = number(text)
		case "cooldown":
			want = "a time, as 10m or 1h"
			var d time.Duration
			d, err = time.ParseDuration(text)
			ms := uint64(max(d, 0).Milliseconds())
			r.CooldownMs = &ms
		default:
			return nil, cli.Usagef("autopilot set %s: there are mode=, threshold=, ceiling= and cooldown=", arg)
		}
		if err != nil {
			return nil, cli.Usagef("autopilot set %s: give %s", arg, want)
		}
	}
	return r, nil
}

const autopilotHelp = `The autopilot adds devices before the cluster is full: when the devices in use are
fuller than the threshold, or writes wait for space, it puts a spare device to use
(` + "`sds serve --spare`, `scli device spare`" + `), the one whose fault set has the least space.
Data then spreads by itself. When no spare is left, it runs the hook that mdm was
started with (` + "`mdm serve --autopilot-hook PROGRAM`" + `), which is to bring another sds; the
program gets BRAID_MDM, BRAID_FILL (percent) and BRAID_DEVICES (in use).

It never goes beyond the ceiling, adds one device at a time, waits until data has
moved and for the cooldown after each, and decides nothing while it does not know how
full a device is. With mode=dry-run it only says what it would do, as an event.`

func (a *app) autopilotCommand() *cobra.Command {
	show := func(use, short string, how func(autopilot) error) *cobra.Command {
		return &cobra.Command{Use: use, Short: short, Args: cli.NoArgs,
			RunE: func(c *cobra.Command, _ []string) error {
				return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
					m, err := mdm.Autopilot(ctx)
					if err != nil {
						return err
					}
					return how(toAutopilot(m))
				})
			}}
	}
	set := &cobra.Command{
		Use:   "set KEY=VALUE…",
		Short: "Change the autopilot's terms: mode, threshold, ceiling, cooldown",
		Long: `Change the autopilot's terms.

  mode        off, dry-run (only says what it would do) or on; not off needs a ceiling
  threshold   percent of the space of the devices in use, 1 to 99; at first 80
  ceiling     devices in use at most
  cooldown    between two expansions, at least; at first 10m`,
		Example: `  scli autopilot set mode=dry-run ceiling=12
  scli autopilot set mode=on threshold=75% ceiling=12 cooldown=30m
  scli autopilot set mode=off`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usagef("%s: what? Usage: %s", c.CommandPath(), c.UseLine())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			r, err := parseAutopilot(args)
			if err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				m, err := mdm.SetAutopilot(ctx, r)
				if err != nil {
					return err
				}
				return a.showAutopilot(toAutopilot(m))
			})
		},
	}
	g := group("autopilot", "Have devices added before the cluster is full",
		show("show", "Show its terms and what it does", a.showAutopilot), set,
		show("history", "Show what it has added", a.showExpansions))
	g.Long = autopilotHelp
	return g
}

func (a *app) deviceSpareCommand() *cobra.Command {
	var off, dryRun, yes bool
	c := &cobra.Command{
		Use:   "spare ID…",
		Short: "Keep devices in reserve, or put spares to use",
		Long: `Keep devices in reserve: they stay in the cluster and take no copies. Copies that
they have move to other devices first, so redundancy is never less than before.
With --off spares are put to use, and data spreads to them. The plan is shown, and
on a terminal you are asked. The autopilot takes from the spares (scli autopilot).`,
		Example: `  scli device spare 4 --dry-run
  scli device spare 4 5 --yes
  scli device spare 4 --off`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usagef("%s: which device? Usage: %s", c.CommandPath(), c.UseLine())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			r := &pb.SpareDevicesRequest{Spare: !off, DryRun: true}
			for _, arg := range args {
				id, err := strconv.ParseUint(arg, 10, 32)
				if err != nil || id == 0 {
					return cli.Usagef("device spare %s: give the number that `scli device list` shows", arg)
				}
				r.Devices = append(r.Devices, uint32(id))
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				return a.spare(ctx, mdm, r, dryRun, yes)
			})
		},
	}
	f := c.Flags()
	f.BoolVar(&off, "off", false, "put them to use")
	f.BoolVar(&dryRun, "dry-run", false, "show what would move, and change nothing")
	f.BoolVarP(&yes, "yes", "y", false, "do not ask")
	return c
}

// spare shows the plan, asks on a terminal, and changes which devices are spare.
func (a *app) spare(ctx context.Context, mdm *client.Client, r *pb.SpareDevicesRequest, dryRun, yes bool) error {
	p, err := mdm.SpareDevices(ctx, r)
	if err != nil {
		return err
	}
	what := "device " + strings.Trim(fmt.Sprint(r.Devices), "[]")
	switch {
	case a.json() && dryRun:
		return a.printJSON(toMovePlan(p))
	case !a.json() && (dryRun || p.Groups > 0):
		a.showPlan(toMovePlan(p))
	}
	if dryRun {
		return nil
	}
	question, state := "put "+what+" to use?", "in use; data spreads by itself"
	if r.Spare {
		question, state = "keep "+what+" in reserve?", "spare"
	}
	if !yes && p.Groups > 0 && !a.json() && isTerminal(os.Stdin) && !a.confirm(question) {
		return fmt.Errorf("%s stays as it is: the answer was not yes", what)
	}
	r.DryRun = false
	if _, err := mdm.SpareDevices(ctx, r); err != nil {
		return err
	}
	return a.told(what, state)
}
