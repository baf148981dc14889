// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/cmd/internal/screen"
	"braid/cmd/sdc/daemon"
	"braid/transport/meter"
)

// topFlags are the flags of sdc top.
type topFlags struct {
	output   output
	once     bool
	interval time.Duration
	volume   string
}

// minInterval keeps top from being the load.
const minInterval = 100 * time.Millisecond

func newTop() *cobra.Command {
	var f topFlags
	cmd := &cobra.Command{
		Use:   "top",
		Short: "Watch the volumes that are used on this machine",
		Long: `top shows, each second, what happened in the last one: for each volume that is
attached or served on this machine the requests and bytes per second, latencies
(median, 99 and 99.9 percent, and a histogram by powers of two), what is in
flight, and where the time goes; and for each device of the cluster that holds
it the same, split into network, server and store (log and disk).

Steps of a request: receive (a write's bytes arrive), lock (an earlier request
overlaps), wait (until the first frame is sent, lock included), cluster (until
all copies that must have answered), reply (until the answer is handed to the
socket). Of a device's answer: network, server (its queue), store (activity log
and disk).

In a pipe it prints one view after the other. --once prints one and ends; with
-o json, views are objects, one a line.`,
		Example: `  sdc top
  sdc top -o json --once | jq '.volumes[].read.p99_us'`,
		Args: cli.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := f.output.check(); err != nil {
				return err
			}
			if f.interval < minInterval {
				return cli.Usagef("--interval %v: the least is %v", f.interval, minInterval)
			}
			return f.run(cmd)
		},
	}
	f.output.add(cmd)
	cmd.Flags().BoolVar(&f.once, "once", false, "one view, then end")
	cmd.Flags().DurationVar(&f.interval, "interval", time.Second, "time between views")
	cmd.Flags().StringVar(&f.volume, "volume", "", "this volume only")
	return cmd
}

func (f *topFlags) run(cmd *cobra.Command) error {
	ctx, _, stop := signalContexts(cmd.Context())
	defer stop()
	client := daemon.NewClient(daemon.RunDir())
	view := screen.New(cmd.OutOrStdout())
	text := ""
	defer func() { view.Close(text) }()
	var before []daemon.VolumeStats
	first := true
	return screen.Every(ctx, f.interval, func() (bool, error) {
		now, err := client.Stats(ctx)
		if ctx.Err() != nil {
			return true, nil
		}
		if err != nil {
			return true, err
		}
		v := newTopView(now, before, f.volume, time.Now())
		wasFirst := first
		before, first = now, false
		if wasFirst && (f.once || !view.IsTerminal()) {
			return false, nil // rates need two
		}
		if f.output == "json" {
			return f.once, json.NewEncoder(cmd.OutOrStdout()).Encode(v)
		}
		text = v.text()
		return f.once, view.Draw(text)
	})
}

// topView is what top shows.
type topView struct {
	Time    time.Time   `json:"time"`
	Volumes []topVolume `json:"volumes"`
}

type topVolume struct {
	Volume    string                    `json:"volume"`
	Where     string                    `json:"where"`
	State     daemon.State              `json:"state"`
	InFlight  int                       `json:"in_flight"`
	OldestMS  int64                     `json:"oldest_ms"`
	ReadBps   float64                   `json:"read_bytes_per_second"`
	WriteBps  float64                   `json:"write_bytes_per_second"`
	Read      screen.Latency            `json:"read"`
	Write     screen.Latency            `json:"write"`
	Flush     screen.Latency            `json:"flush"`
	Other     screen.Latency            `json:"other"`
	Steps     map[string]screen.Latency `json:"steps"`
	Errors    uint64                    `json:"errors"` // in all, as the next three
	Retries   uint64                    `json:"retries"`
	Hedges    uint64                    `json:"hedges"`
	BadSums   uint64                    `json:"bad_sums"`
	Pressure  uint32                    `json:"pressure"`
	Resolving int                       `json:"resolve_chunks"`
	Devices   []topDevice               `json:"devices"`
	readHist  meter.Snapshot
	writeHist meter.Snapshot
}

type topDevice struct {
	ID       uint32                    `json:"id"`
	Server   string                    `json:"server"`
	State    string                    `json:"state"`
	Trouble  string                    `json:"trouble,omitempty"`
	AwayMS   int64                     `json:"away_ms"`
	InSync   bool                      `json:"in_sync"`
	InFlight int                       `json:"in_flight"`
	Queued   int                       `json:"queued"`
	ReadBps  float64                   `json:"read_bytes_per_second"`
	WriteBps float64                   `json:"write_bytes_per_second"`
	Read     screen.Latency            `json:"read"`
	Write    screen.Latency            `json:"write"`
	Flush    screen.Latency            `json:"flush"`
	Steps    map[string]screen.Latency `json:"steps"`
}

// newTopView compares two readings. A volume that is new counts from its attach.
func newTopView(now, before []daemon.VolumeStats, only string, at time.Time) *topView {
	v := &topView{Time: at, Volumes: []topVolume{}}
	for i := range now {
		s := &now[i]
		if only != "" && s.Volume != only {
			continue
		}
		older := &daemon.VolumeStats{}
		for j := range before {
			if b := &before[j]; b.Volume == s.Volume && b.PID == s.PID && b.Where == s.Where {
				older = b
			}
		}
		period := s.Time.Sub(older.Time)
		if older.Time.IsZero() {
			period = 0
		}
		v.Volumes = append(v.Volumes, newTopVolume(s, older, period))
	}
	return v
}

func newTopVolume(s, older *daemon.VolumeStats, period time.Duration) topVolume {
	x := topVolume{Volume: s.Volume, Where: s.Where, State: s.State, InFlight: s.InFlight, OldestMS: s.OldestMS,
		ReadBps:  screen.Rate(s.ReadBytes, older.ReadBytes, period),
		WriteBps: screen.Rate(s.WriteBytes, older.WriteBytes, period),
		Errors:   s.Errors, Retries: s.Retries, Hedges: s.Hedges, BadSums: s.BadSums, Pressure: s.Pressure,
		Resolving: s.ResolveChunks, Steps: sinceEach(s.Steps, older.Steps, period), Devices: []topDevice{}}
	kinds := sinceEach(s.Latency, older.Latency, period)
	x.Read, x.Write, x.Flush, x.Other = kinds["read"], kinds["write"], kinds["flush"], kinds["other"]
	x.readHist = difference(s.Latency, older.Latency, "read")
	x.writeHist = difference(s.Latency, older.Latency, "write")
	for i := range s.Devices {
		d := &s.Devices[i]
		was := &daemon.VolumeDevice{}
		for j := range older.Devices {
			if older.Devices[j].ID == d.ID {
				was = &older.Devices[j]
			}
		}
		kinds := sinceEach(d.Latency, was.Latency, period)
		x.Devices = append(x.Devices, topDevice{ID: d.ID, Server: d.Server, State: d.State, Trouble: d.Trouble,
			AwayMS: d.AwayMS, InSync: d.InSync, InFlight: d.InFlight, Queued: d.Queued,
			ReadBps:  screen.Rate(d.ReadBytes, was.ReadBytes, period),
			WriteBps: screen.Rate(d.WriteBytes, was.WriteBytes, period),
			Read:     kinds["read"], Write: kinds["write"], Flush: kinds["flush"],
			Steps: sinceEach(d.Steps, was.Steps, period)})
	}
	slices.SortFunc(x.Devices, func(a, b topDevice) int {
		return cmp.Or(strings.Compare(a.Server, b.Server), cmp.Compare(a.ID, b.ID))
	})
	return x
}

func sinceEach(now, older map[string]meter.Snapshot, period time.Duration) map[string]screen.Latency {
	out := map[string]screen.Latency{}
	for name, s := range now {
		out[name] = screen.Since(s, older[name], period)
	}
	return out
}

func difference(now, older map[string]meter.Snapshot, name string) meter.Snapshot {
	s, was := now[name], older[name]
	return s.Sub(&was)
}

// text draws the view.
func (v *topView) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "sdc top  %s  %d volume(s)\n", v.Time.Format("15:04:05"), len(v.Volumes))
	if len(v.Volumes) == 0 {
		b.WriteString("no volume is used on this machine\n")
	}
	for i := range v.Volumes {
		v.Volumes[i].text(&b)
	}
	return b.String()
}

func (x *topVolume) text(b *strings.Builder) {
	fmt.Fprintf(b, "\n%s on %s: %s, %d in flight", x.Volume, x.Where, x.State, x.InFlight)
	if x.InFlight > 0 {
		fmt.Fprintf(b, ", the oldest for %s", screen.Ago(time.Duration(x.OldestMS)*time.Millisecond))
	}
	fmt.Fprintf(b, "; activity logs %d%%", x.Pressure/10)
	if x.Resolving > 0 {
		fmt.Fprintf(b, "; %d chunks to resolve", x.Resolving)
	}
	for _, n := range []struct {
		count uint64
		name  string
	}{{x.Errors, "errors"}, {x.Retries, "retries"}, {x.Hedges, "hedged reads"}, {x.BadSums, "bad checksums"}} {
		if n.count > 0 {
			fmt.Fprintf(b, "; %d %s", n.count, n.name)
		}
	}
	b.WriteByte('\n')
	row := func(name string, l screen.Latency, bytes float64, hist meter.Snapshot) []string {
		bars, rate := "", "-"
		if name == "read" || name == "write" {
			bars, rate = "|"+screen.Bars(hist)+"|", screen.MB(bytes)
		}
		return []string{name, screen.Number(l.PerSec), rate, screen.Micros(l.P50US), screen.Micros(l.P99US),
			screen.Micros(l.P999US), bars}
	}
	b.WriteString(screen.Table("  ", []string{"OP", ">IO/S", ">MB/S", ">P50", ">P99", ">P99.9", " " + screen.BarsLabel},
		[][]string{row("read", x.Read, x.ReadBps, x.readHist), row("write", x.Write, x.WriteBps, x.writeHist),
			row("flush", x.Flush, 0, meter.Snapshot{}), row("other", x.Other, 0, meter.Snapshot{})}))
	b.WriteString("  mean")
	for _, step := range []string{"receive", "lock", "wait", "cluster", "reply"} {
		fmt.Fprintf(b, "  %s %s", step, screen.Micros(x.Steps[step].MeanUS))
	}
	b.WriteByte('\n')
	if len(x.Devices) == 0 {
		return
	}
	rows := [][]string{}
	for i := range x.Devices {
		d := &x.Devices[i]
		rows = append(rows, []string{fmt.Sprint(d.ID), d.Server, d.stateText(), fmt.Sprint(d.InFlight + d.Queued),
			screen.Number(d.Read.PerSec), screen.Number(d.Write.PerSec), screen.MB(d.ReadBps + d.WriteBps),
			screen.Micros(d.Read.P50US), screen.Micros(d.Read.P99US), screen.Micros(d.Write.P50US),
			screen.Micros(d.Write.P99US), screen.Micros(d.Steps["network"].MeanUS),
			screen.Micros(d.Steps["server"].MeanUS), screen.Micros(d.Steps["store"].MeanUS)})
	}
	b.WriteString(screen.Table("  ", []string{">DEV", "SERVER", "STATE", ">QUEUE", ">RD/S", ">WR/S", ">MB/S",
		">RD P50", ">P99", ">WR P50", ">P99", ">NETWORK", ">SERVER", ">STORE"}, rows))
}

func (d *topDevice) stateText() string {
	text := d.State
	if text == "connected" && !d.InSync {
		text = "catching up"
	}
	if d.AwayMS > 0 {
		text += " (away " + screen.Ago(time.Duration(d.AwayMS)*time.Millisecond) + ")"
	}
	return text
}
