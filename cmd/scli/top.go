// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/cmd/internal/screen"
	"braid/mdm/client"
	"braid/mdm/pb"
	sds "braid/server"
	"braid/transport/meter"
)

// minInterval keeps top from being the load.
const minInterval = 100 * time.Millisecond

func (a *app) topCommand() *cobra.Command {
	var once bool
	interval := time.Second
	c := &cobra.Command{
		Use:   "top",
		Short: "Watch the servers and their devices",
		Long: `Watch the servers and their devices: what each did in the last second. The
counters come from the servers themselves; the metadata manager only says which
there are.

For each device: state, requests in the server, operations that the disk has,
requests and bytes per second, latencies of reads, writes and flushes (median and
99 percent, from a request's arrival at the server to its answer), those of the
disk alone, how full the activity log is, and the system calls of its loop.

In a pipe it prints one view after the other. --once prints one and ends; with
-o json, views are objects, one a line.`,
		Example: `  scli top
  scli top -o json --once | jq '.devices[].write.p99_us'`,
		Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			if interval < minInterval {
				return cli.Usagef("--interval %v: the least is %v", interval, minInterval)
			}
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				return a.top(ctx, mdm, once, interval)
			})
		},
	}
	c.Flags().BoolVar(&once, "once", false, "one view, then end")
	c.Flags().DurationVar(&interval, "interval", interval, "time between views")
	return c
}

func (a *app) top(ctx context.Context, mdm *client.Client, once bool, interval time.Duration) error {
	ask, err := newAsker()
	if err != nil {
		return err
	}
	defer ask.close()
	view := screen.New(a.out)
	text := ""
	defer func() { view.Close(text) }()
	var st *pb.StatusResponse
	var devices []*pb.Device
	var before []deviceAnswer
	first := true
	return screen.Every(ctx, interval, func() (bool, error) {
		// A metadata manager that is away takes away no view: the last list is good.
		newStatus, newDevices, trouble := overview(ctx, mdm)
		if trouble == nil {
			st, devices = newStatus, newDevices
		} else if st == nil {
			return true, trouble
		}
		now := ask.all(ctx, st.Cluster, devices)
		if ctx.Err() != nil {
			return true, nil
		}
		v := newClusterView(st, now, before, trouble, time.Now())
		wasFirst := first
		before, first = now, false
		if wasFirst && (once || !view.IsTerminal()) {
			return false, nil // rates need two
		}
		if a.json() {
			return once, json.NewEncoder(a.out).Encode(v)
		}
		text = v.text()
		return once, view.Draw(text)
	})
}

func overview(ctx context.Context, mdm *client.Client) (*pb.StatusResponse, []*pb.Device, error) {
	st, err := mdm.Status(ctx)
	if err != nil {
		return nil, nil, err
	}
	devices, err := mdm.ListDevices(ctx)
	return st, devices, err
}

// clusterView is what top shows.
type clusterView struct {
	Time    time.Time    `json:"time"`
	Health  string       `json:"health"`
	Trouble string       `json:"trouble,omitempty"` // with the metadata manager
	Reads   float64      `json:"reads_per_second"`
	Writes  float64      `json:"writes_per_second"`
	Bps     float64      `json:"bytes_per_second"`
	Devices []deviceView `json:"devices"`
	read    meter.Snapshot
	write   meter.Snapshot
}

type deviceView struct {
	ID        uint32         `json:"id"`
	Server    string         `json:"server"`
	Path      string         `json:"path"`
	State     string         `json:"state"` // up, down, silent, failed
	Trouble   string         `json:"trouble,omitempty"`
	Clients   int            `json:"connections"`
	Requests  int            `json:"requests"`
	DiskQueue int            `json:"disk_queue"`
	OldestMS  int64          `json:"oldest_ms"`
	Pressure  int            `json:"pressure"`
	ReadBps   float64        `json:"read_bytes_per_second"`
	WriteBps  float64        `json:"write_bytes_per_second"`
	Read      screen.Latency `json:"read"`
	Write     screen.Latency `json:"write"`
	Flush     screen.Latency `json:"flush"`
	Disk      diskView       `json:"disk"`
	Rot       uint64         `json:"rot_blocks"` // in all
	Enters    float64        `json:"system_calls_per_second"`
}

type diskView struct {
	Read  screen.Latency `json:"read"`
	Write screen.Latency `json:"write"`
	Flush screen.Latency `json:"flush"`
}

func newClusterView(st *pb.StatusResponse, now, before []deviceAnswer, trouble error, at time.Time) *clusterView {
	v := &clusterView{Time: at, Health: st.Health, Devices: []deviceView{}}
	if trouble != nil {
		v.Trouble = trouble.Error()
	}
	for i := range now {
		older := deviceAnswer{}
		for j := range before {
			if b := &before[j]; b.Device.Id == now[i].Device.Id && b.Stats != nil {
				older = *b
			}
		}
		v.add(&now[i], &older)
	}
	slices.SortFunc(v.Devices, func(a, b deviceView) int {
		return cmp.Or(strings.Compare(a.Server, b.Server), cmp.Compare(a.ID, b.ID))
	})
	return v
}

func (v *clusterView) add(now, older *deviceAnswer) {
	d := deviceView{ID: now.Device.Id, Server: now.Device.Server, Path: now.Device.Path, State: "up"}
	switch {
	case now.Device.Failed != "":
		d.State, d.Trouble = "failed", now.Device.Failed
	case !now.Device.Up:
		d.State = "down"
	}
	s := now.Stats
	if s == nil {
		if now.Err != nil && d.State == "up" {
			d.State, d.Trouble = "silent", now.Err.Error()
		}
		v.Devices = append(v.Devices, d)
		return
	}
	was, period := older.Stats, now.Time.Sub(older.Time)
	if was == nil {
		was, period = &sds.DeviceStats{}, 0
	}
	d.Clients, d.Requests, d.DiskQueue, d.OldestMS = s.Connections, max(s.Requests-1, 0), s.DiskQueue, s.OldestMS
	d.Pressure, d.Rot = s.Pressure, s.Store.Rot
	d.ReadBps = screen.Rate(s.Bytes["read"], was.Bytes["read"], period)
	d.WriteBps = screen.Rate(s.Bytes["write"], was.Bytes["write"], period)
	since := func(now, older map[string]meter.Snapshot, kind string) screen.Latency {
		return screen.Since(now[kind], older[kind], period)
	}
	d.Read, d.Write = since(s.Served, was.Served, "read"), since(s.Served, was.Served, "write")
	d.Flush = since(s.Served, was.Served, "flush")
	d.Disk = diskView{since(s.Disk, was.Disk, "read"), since(s.Disk, was.Disk, "write"),
		since(s.Disk, was.Disk, "flush")}
	d.Enters = screen.Rate(s.Loop.Enters, was.Loop.Enters, period)
	v.Devices = append(v.Devices, d)
	v.Reads += d.Read.PerSec
	v.Writes += d.Write.PerSec
	v.Bps += d.ReadBps + d.WriteBps
	if period > 0 {
		for kind, into := range map[string]*meter.Snapshot{"read": &v.read, "write": &v.write} {
			newer, before := s.Served[kind], was.Served[kind]
			diff := newer.Sub(&before)
			into.Add(&diff)
		}
	}
}

func (v *clusterView) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "scli top  %s  health %s, %d device(s); reads %s/s, writes %s/s (each copy counts), %s MB/s\n",
		v.Time.Format("15:04:05"), v.Health, len(v.Devices), screen.Number(v.Reads), screen.Number(v.Writes),
		screen.MB(v.Bps))
	if v.Trouble != "" {
		fmt.Fprintf(&b, "the metadata manager does not answer, so the list may be old: %s\n", v.Trouble)
	}
	fmt.Fprintf(&b, "         %s\n  reads |%s|\n  writes|%s|\n\n", screen.BarsLabel, screen.Bars(v.read),
		screen.Bars(v.write))
	rows, troubles := [][]string{}, ""
	for i := range v.Devices {
		d := &v.Devices[i]
		if d.Trouble != "" {
			troubles += fmt.Sprintf("device %d of %s is %s: %s\n", d.ID, d.Server, d.State, d.Trouble)
		}
		row := []string{fmt.Sprint(d.ID), d.Server, d.State}
		if d.State != "up" {
			for range 13 {
				row = append(row, "-")
			}
			rows = append(rows, row)
			continue
		}
		rows = append(rows, append(row, fmt.Sprint(d.Requests), fmt.Sprint(d.DiskQueue), screen.Number(d.Read.PerSec),
			screen.Number(d.Write.PerSec), screen.MB(d.ReadBps), screen.MB(d.WriteBps), screen.Micros(d.Read.P50US),
			screen.Micros(d.Read.P99US), screen.Micros(d.Write.P50US), screen.Micros(d.Write.P99US),
			screen.Micros(d.Flush.P99US), screen.Micros(d.Disk.Write.P99US), fmt.Sprintf("%d%%", d.Pressure/10)))
	}
	b.WriteString(screen.Table("", []string{">DEV", "SERVER", "STATE", ">REQS", ">DISK", ">RD/S", ">WR/S", ">RD MB/S",
		">WR MB/S", ">RD P50", ">P99", ">WR P50", ">P99", ">FL P99", ">DISK WR", ">LOG"}, rows))
	b.WriteString(troubles)
	return b.String()
}
