// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"braid/mdm/pb"
	sds "braid/server"
	"braid/transport/meter"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares a text with testdata/NAME.txt.
func golden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name+".txt")
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is not what is shown (go test -update writes it):\n%s", path, got)
	}
}

// aStatus is a cluster of three servers with two copies, in some state.
func aStatus(health string, m moves) (*status, []*pb.Server, []*pb.Device) {
	s := fromStatus(&pb.StatusResponse{Health: health, Servers: 3, ServersUp: 3, Devices: 3, DevicesUp: 3,
		Capacity: 30 << 30, Used: 6 << 30, Volumes: 2, Attached: 1, Pgs: 256, MapVersion: 40,
		Leader: "10.0.0.1:7400", Members: []string{"a 10.0.0.1:7400", "b 10.0.0.2:7400"},
		Settings: &pb.Settings{ScrubEveryMs: uint64((14 * day).Milliseconds())}, ScrubDevice: 2, ScrubbedMs: 1},
		time.UnixMilli(1).Add(9*day+5*time.Hour))
	s.Moves = &m
	var servers []*pb.Server
	var devices []*pb.Device
	for i, name := range []string{"sds1", "sds2", "sds3"} {
		servers = append(servers, &pb.Server{Name: name, Up: true})
		devices = append(devices, &pb.Device{Id: uint32(i + 1), Server: name, Path: "/dev/sdb", Up: true})
	}
	return s, servers, devices
}

// Goal: each state of the cluster is told in full, and what to do fits it. Method:
// golden texts of made-up snapshots.
func TestStatusText(t *testing.T) {
	balanced := moves{State: "balanced", GraceMS: 600000}
	for name, prepare := range map[string]func(*status, []*pb.Server, []*pb.Device){
		"ok": func(*status, []*pb.Server, []*pb.Device) {},
		"degraded": func(s *status, servers []*pb.Server, devices []*pb.Device) {
			s.Health, s.ServersUp, s.DevicesUp, s.PGsDegraded = "degraded", 2, 2, 171
			s.Reasons = []string{"server sds2 at 10.0.0.12:7420 is down since 2026-11-23 03:00:05 UTC"}
			servers[1].Up, devices[1].Up = false, false
			s.Exposure = []exposure{{Copies: 1, Wanted: 2, Groups: 171, Seconds: 41}}
		},
		"rebuilding": func(s *status, _ []*pb.Server, _ []*pb.Device) {
			s.Health, s.PGsDegraded = "rebuilding", 120
			s.Settings = settings{ResyncRate: 50 << 20}
			s.Exposure = []exposure{{Copies: 1, Wanted: 2, Groups: 120, Seconds: 4041}}
			s.CatchUp = []catchUp{{Device: 2, Name: "sds2:/dev/sdb", Groups: 120, Compared: 80, Left: 3_100_000_000,
				Rate: 210_000_000, CopiedRate: 40_000_000, Seconds: 15}}
		},
		"stuck": func(s *status, _ []*pb.Server, devices []*pb.Device) {
			s.Health = "degraded"
			devices[2].Failed = "EIO on flush"
			s.CatchUp = []catchUp{{Device: 2, Name: "sds2:/dev/sdb", Groups: 9, Compared: 9, Left: 1 << 20, Seconds: -1,
				Stuck: "its source does not answer"}}
		},
		"full": func(s *status, _ []*pb.Server, _ []*pb.Device) {
			s.Health, s.Waiting, s.Used = "full", 1, 29<<30
			s.Reasons = []string{"full: writers wait: writes of volume db need space on device 2 (sds2:/dev/sdb) " +
				"since 2026-11-23 03:00:05 UTC; reads and all other writes go on"}
		},
		"unavailable": func(s *status, servers []*pb.Server, devices []*pb.Device) {
			s.Health, s.Leader, s.ServersUp, s.DevicesUp = "unavailable", "", 1, 1
			for i := range 2 {
				servers[i].Up, devices[i].Up = false, false
			}
			s.Exposure = []exposure{{Copies: 0, Wanted: 2, Groups: 86, Seconds: -1},
				{Copies: 1, Wanted: 2, Groups: 170, Seconds: 75}}
		},
		"rebalancing": func(s *status, _ []*pb.Server, devices []*pb.Device) {
			s.Health = "rebalancing"
			s.Moves = &moves{State: "paused", Paused: true, Groups: 12, Running: 2, Bytes: 3 << 30,
				Maintenance: []string{"sds3"}}
			devices[0].Removing = true
		},
	} {
		s, servers, devices := aStatus("ok", balanced)
		prepare(s, servers, devices)
		s.serving(servers, devices)
		s.advise(devices)
		golden(t, "status-"+name, s.text())
	}
}

func TestClock(t *testing.T) {
	for seconds, want := range map[int64]string{0: "00:00", 41: "00:41", 754: "12:34", 4041: "1:07:21"} {
		if got := clock(seconds); got != want {
			t.Errorf("%d seconds are %s, want %s", seconds, got, want)
		}
	}
	for bytes, want := range map[uint64]string{3_100_000_000: "3.1 GB", 5 << 40: "5.5 TB", 1 << 20: "1 MB"} {
		if got := gb(bytes); got != want {
			t.Errorf("%d bytes are %s, want %s", bytes, got, want)
		}
	}
}

// readings are two of two devices, a second apart: one busy, one down.
func readings() (now, before []deviceAnswer) {
	var read, write, disk meter.Histogram
	at := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	stats := func(bytes uint64) *sds.DeviceStats {
		return &sds.DeviceStats{Up: true, Requests: 9, DiskQueue: 4, Pressure: 250, Connections: 2,
			Served: map[string]meter.Snapshot{"read": read.Snapshot(), "write": write.Snapshot()},
			Disk:   map[string]meter.Snapshot{"write": disk.Snapshot()},
			Bytes:  map[string]uint64{"read": bytes, "write": 2 * bytes}}
	}
	d := &pb.Device{Id: 1, Server: "sds1", Path: "/dev/sdb", Up: true}
	lost := &pb.Device{Id: 2, Server: "sds2", Path: "/dev/sdb", Up: true}
	before = []deviceAnswer{{Device: d, Time: at, Stats: stats(0)}}
	for range 1000 {
		read.Record(90_000)
		write.Record(400_000)
		disk.Record(200_000)
	}
	write.Record(20_000_000)
	now = []deviceAnswer{{Device: d, Time: at.Add(time.Second), Stats: stats(4096 * 1000)},
		{Device: lost, Time: at.Add(time.Second), Err: errors.New("connection refused")}}
	return now, before
}

// Goal: rates and latencies are of the last period, and a device that does not
// answer is shown as such.
func TestTopText(t *testing.T) {
	now, before := readings()
	v := newClusterView(&pb.StatusResponse{Health: "ok"}, now, before, errors.New("no route"), now[0].Time)
	golden(t, "top", v.text())
	d := v.Devices[0]
	if d.Read.Count != 1000 || d.Write.Count != 1001 || d.ReadBps != 4096000 || d.Requests != 8 ||
		v.Devices[1].State != "silent" {
		t.Errorf("view %+v", v)
	}
	first := newClusterView(&pb.StatusResponse{Health: "ok"}, now, nil, nil, now[0].Time)
	if strings.Contains(first.text(), "4.1") || first.Reads != 0 {
		t.Errorf("rates without a period: %s", first.text())
	}
}

// Goal: what mdm says of exposure and progress arrives; what it does not know is
// said to be unknown.
func TestProgress(t *testing.T) {
	now := time.UnixMilli(1_000_000)
	s := fromStatus(&pb.StatusResponse{
		Exposures: []*pb.Exposure{{Copies: 1, Wanted: 2, Groups: 9, SinceMs: 1_000_000 - 41_500},
			{Wanted: 2, Groups: 1}},
		Resyncs: []*pb.DeviceResync{
			{Device: 2, Name: "sds2:/dev/sdb", Report: &pb.ResyncReport{Groups: 4, Compared: 4, ChunksLeft: 100,
				BytesCopied: 5, BytesPerSecond: 90 << 20,
				SettledPerSecond: 10 << 20, CopiedPerSecond: 1 << 20}},
			{Device: 3, Report: &pb.ResyncReport{Groups: 4, Compared: 3, ChunksLeft: 100, SettledPerSecond: 1}}}}, now)
	if s.Exposure[0].Seconds != 41 || s.Exposure[1].Seconds != -1 {
		t.Errorf("exposure %+v", s.Exposure)
	}
	if c := s.CatchUp[0]; c.Seconds != 10 || c.Left != 100<<20 || c.Copied != 5 || s.CatchUp[1].Seconds != -1 {
		t.Errorf("catch-up %+v", s.CatchUp)
	}
}
