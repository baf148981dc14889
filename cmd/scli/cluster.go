// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// settings is what -o json prints of them.
type settings struct {
	ScrubEveryMS uint64 `json:"scrub_every_ms"` // 0: on order only
	ScrubRate    uint64 `json:"scrub_rate"`     // bytes per second and device; 0: sds's own
	ResyncRate   uint64 `json:"resync_rate"`    // the same; 0: no bound but clients' latency
	ResyncP99US  uint64 `json:"resync_p99_us"`  // of clients' requests, where resyncs slow down; 0: servers' own
	Reserve      uint32 `json:"reserve"`        // percent of each device, for copies
}

func toSettings(m *pb.Settings) settings {
	return settings{m.GetScrubEveryMs(), m.GetScrubRate(), m.GetResyncRate(), m.GetResyncP99Us(), m.GetReserve()}
}

const day = 24 * time.Hour

// often is a setting as it is given: 14d, 36h, never.
func often(ms uint64) string {
	switch d := time.Duration(ms) * time.Millisecond; {
	case d == 0:
		return "never"
	case d%day == 0:
		return fmt.Sprintf("%dd", d/day)
	default:
		text := d.String()
		for _, zero := range [][2]string{{"m0s", "m"}, {"h0m", "h"}} {
			if cut, is := strings.CutSuffix(text, zero[0]); is {
				text = cut + zero[1]
			}
		}
		return text
	}
}

// parseOften takes what often gives.
func parseOften(text string) (ms uint64, err error) {
	if text == "never" {
		return 0, nil
	}
	if days, is := strings.CutSuffix(text, "d"); is {
		n, err := strconv.ParseUint(days, 10, 16)
		return n * uint64(day.Milliseconds()), err
	}
	d, err := time.ParseDuration(text)
	if err == nil && d < 0 {
		err = fmt.Errorf("negative")
	}
	return uint64(d.Milliseconds()), err
}

// atMost is a rate as it is given: 50M, none.
func atMost(rate uint64) string {
	if rate == 0 {
		return "none"
	}
	return size(rate)
}

func parseRate(text string) (uint64, error) {
	if text == "none" {
		return 0, nil
	}
	return cluster.ParseSize(text)
}

// patience is a latency as it is given: 5ms, auto.
func patience(us uint64) string {
	if us == 0 {
		return "auto"
	}
	return (time.Duration(us) * time.Microsecond).String()
}

func parsePatience(text string) (us uint64, err error) {
	if text == "auto" {
		return 0, nil
	}
	d, err := time.ParseDuration(text)
	if err == nil && d < time.Microsecond {
		err = fmt.Errorf("too short")
	}
	return uint64(d.Microseconds()), err
}

// parseSettings reads KEY=VALUE….
func parseSettings(args []string) (*pb.SetSettingsRequest, error) {
	r := &pb.SetSettingsRequest{}
	for _, arg := range args {
		key, text, _ := strings.Cut(arg, "=")
		var n uint64
		var err error
		want := "bytes per second, as 50M, or none"
		switch key {
		case "scrub-every":
			want = "a time, as 14d or 36h, or never"
			n, err = parseOften(text)
			r.ScrubEveryMs = &n
		case "scrub-rate":
			n, err = parseRate(text)
			r.ScrubRate = &n
		case "resync-rate":
			n, err = parseRate(text)
			r.ResyncRate = &n
		case "resync-p99":
			want = "a time, as 5ms, or auto"
			n, err = parsePatience(text)
			r.ResyncP99Us = &n
		case "reserve":
			want = "percent of each device, as 5% or 0"
			n, err = strconv.ParseUint(strings.TrimSuffix(text, "%"), 10, 32)
			percent := uint32(n)
			r.Reserve = &percent
		default:
			return nil, cli.Usagef("cluster set %s: there are scrub-every=, scrub-rate=, resync-rate=, "+
				"resync-p99= and reserve=", arg)
		}
		if err != nil {
			return nil, cli.Usagef("cluster set %s: give %s", arg, want)
		}
	}
	return r, nil
}

func (a *app) showSettings(m *pb.Settings) error {
	s := toSettings(m)
	if a.json() {
		return a.printJSON(s)
	}
	unset := func(rate uint64, text string) string {
		if rate == 0 {
			return fmt.Sprintf("%-5s %s", "none", text)
		}
		return fmt.Sprintf("%-5s bytes per second and device at most", size(rate))
	}
	printPairs(a.out, [][2]string{
		{"scrub-every", fmt.Sprintf("%-5s how often all that a device holds is read and compared",
			often(s.ScrubEveryMS))},
		{"scrub-rate", unset(s.ScrubRate, "a scrub reads 64M a second, a quarter while clients are served")},
		{"resync-rate", unset(s.ResyncRate, "resyncs go as fast as clients' latency allows")},
		{"resync-p99", fmt.Sprintf("%-5s of clients' reads and writes at a server; where it is more, resyncs and "+
			"moves slow down", patience(s.ResyncP99US))},
		{"reserve", fmt.Sprintf("%-5s of each device that clients' writes leave to copies",
			fmt.Sprintf("%d%%", s.Reserve))},
	})
	return nil
}

func (a *app) clusterCommand() *cobra.Command {
	show := &cobra.Command{
		Use:   "show",
		Short: "Show what is set for the whole cluster",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				m, err := mdm.Settings(ctx)
				if err != nil {
					return err
				}
				return a.showSettings(m)
			})
		},
	}
	set := &cobra.Command{
		Use:   "set KEY=VALUE…",
		Short: "Change what is set; it takes effect within seconds",
		Long: `Change what is set for the whole cluster; it takes effect within seconds.

  scrub-every   how often all that a device holds is read and compared with its
                checksums, 1h to 365d; never: on order only (scli scrub)
  scrub-rate    bytes per second and device that a scrub reads at most; none: 64M.
                Holds for scrubs that begin after it was set
  resync-rate   bytes per second and device that are compared and copied at most
                when a copy catches up or moves; none: as fast as clients' latency
                allows. A device that is far behind is long without redundancy
  resync-p99    99th percentile of clients' reads and writes, as a server measures them,
                100us to 10s: where it is above that, copies that catch up or move slow
                down, to 8M a second each if need be; auto: 5ms, or twice what it is
                without them if that is more
  reserve       percent of each device, 0 to 50, that clients' writes leave free. Copies
                that are made anew, or move, may take it: a full cluster can still mend
                itself. Writes that find no room wait (sdc attach --on-full)`,
		Example: `  scli cluster set scrub-every=7d scrub-rate=100M
  scli cluster set resync-rate=50M
  scli cluster set resync-rate=none resync-p99=3ms
  scli cluster set reserve=10%`,
		Args: func(c *cobra.Command, args []string) error {
			if len(args) == 0 {
				return cli.Usagef("%s: what? Usage: %s", c.CommandPath(), c.UseLine())
			}
			return nil
		},
		RunE: func(c *cobra.Command, args []string) error {
			r, err := parseSettings(args)
			if err != nil {
				return err
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				m, err := mdm.SetSettings(ctx, r)
				if err != nil {
					return err
				}
				return a.showSettings(m)
			})
		},
	}
	return group("cluster", "Show and change what is set for the whole cluster", show, set)
}
