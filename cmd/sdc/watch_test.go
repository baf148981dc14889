// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"braid/cmd/internal/cli"
	"braid/cmd/sdc/daemon"
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

var noon = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// readings are two of a volume on two devices, a second apart. The second device
// goes away in between.
func readings() (now, before []daemon.VolumeStats) {
	var read, write, step meter.Histogram
	take := func(at time.Time, bytes uint64) daemon.VolumeStats {
		kinds := func() map[string]meter.Snapshot {
			return map[string]meter.Snapshot{"read": read.Snapshot(), "write": write.Snapshot()}
		}
		return daemon.VolumeStats{Time: at, Volume: "db", Where: "/dev/nbd0", PID: 7, State: daemon.StateAttached,
			ReadBytes: bytes, WriteBytes: bytes / 2, Latency: kinds(),
			Steps: map[string]meter.Snapshot{"wait": step.Snapshot(), "cluster": read.Snapshot()},
			Devices: []daemon.VolumeDevice{{ID: 2, Server: "sds2", State: "connected", InSync: true, Latency: kinds(),
				Steps: map[string]meter.Snapshot{"network": step.Snapshot(), "store": step.Snapshot()}},
				{ID: 1, Server: "sds1", State: "connected", InSync: true, InFlight: 3, ReadBytes: bytes,
					Latency: kinds()}}}
	}
	for range 50 {
		read.Record(int64(time.Second)) // long before: not to be seen
	}
	before = []daemon.VolumeStats{take(noon, 1<<30)}
	for range 2000 {
		read.Record(120_000)
		step.Record(30_000)
	}
	for range 500 {
		write.Record(700_000)
	}
	write.Record(45_000_000)
	now = []daemon.VolumeStats{take(noon.Add(time.Second), 1<<30+2000*4096)}
	v := &now[0]
	v.State, v.InFlight, v.OldestMS, v.Retries, v.Pressure = daemon.StateWaiting, 32, 12400, 3, 120
	v.Devices[0].State, v.Devices[0].AwayMS, v.Devices[0].Queued = "dialling", 12345, 8
	return now, before
}

// Goal: top shows the last period only: rates, latencies, devices by server.
func TestTopText(t *testing.T) {
	now, before := readings()
	v := newTopView(now, before, "", noon.Add(time.Second))
	golden(t, "top", v.text())
	db := v.Volumes[0]
	if db.Read.Count != 2000 || db.Write.Count != 501 || db.ReadBps != 8192000 || db.Read.P999US > 200 {
		t.Errorf("view %+v", db)
	}
	if v := newTopView(now, before, "other", noon); len(v.Volumes) != 0 ||
		!strings.Contains(v.text(), "no volume is used") {
		t.Errorf("another volume: %s", v.text())
	}
	b, err := json.Marshal(v)
	if err != nil || !strings.Contains(string(b), `"p99_us"`) {
		t.Errorf("%v: %s", err, b)
	}
}

// Goal: a slow request is told step by step, and each device's share.
func TestTraceText(t *testing.T) {
	var b bytes.Buffer
	printTrace(&b, []daemon.SlowRequest{
		{Volume: "db", Time: noon.In(time.Local), Op: "write", Offset: 8 << 20, Length: 65536, TotalUS: 52340,
			ReceiveUS: 40,
			LockUS:    1200, WaitUS: 0, ClusterUS: 51000, ReplyUS: 100, Answers: 2, Hops: []daemon.Hop{
				{Device: 1, Server: "sds1", SentUS: 1240, AnsweredUS: 1700,
					NetworkUS: 160, ServerUS: 10, StoreUS: 290, Try: 1, Status: "ok"},
				{Device: 2, Server: "sds2", SentUS: 1240, AnsweredUS: 52240,
					NetworkUS: 1000, ServerUS: 40, StoreUS: 49960, Try: 2, Status: "ok"}}},
		{Volume: "db", Time: noon.In(time.Local), Op: "flush", TotalUS: 9000, ClusterUS: 9000, Failed: true},
	})
	text := strings.ReplaceAll(b.String(), noon.In(time.Local).Format("15:04:05"), "12:00:00")
	golden(t, "trace", text)
	b.Reset()
	printTrace(&b, nil)
	if !strings.Contains(b.String(), "no request") {
		t.Errorf("nothing: %q", b.String())
	}
}

// Goal: why says for whom requests wait, since when, and what happens next.
func TestWhyText(t *testing.T) {
	var b bytes.Buffer
	printWhy(&b, daemon.WhyReply{
		Attachment: daemon.Attachment{Device: "/dev/nbd0", Volume: "db", State: daemon.StateWaiting, InFlight: 9,
			OldestMS: 12300, Reconnects: 1},
		Waits: []daemon.Wait{
			{Device: 2, Server: "sds2", Addr: "10.0.0.12:7420", Reason: "not-connected",
				Why:      "not connected: connection refused",
				Next:     "I/O goes on without it as soon as the metadata manager has taken it out of the in-sync sets",
				Requests: 8,
				Since:    noon.Add(-12300 * time.Millisecond), NextAt: noon.Add(400 * time.Millisecond),
				Op: "write", Offset: 4096, Length: 4096},
			{Reason: "range-lock", Why: "an earlier write of 4K at 4096 to the same blocks has not ended",
				Next: "they go on in the order of their arrival", Requests: 1, Since: noon.Add(-5 * time.Second),
				Op:     "read",
				Offset: 4096, Length: 8192}}}, noon)
	golden(t, "why", b.String())
	b.Reset()
	printWhy(&b, daemon.WhyReply{Attachment: daemon.Attachment{Device: "/dev/nbd1", Volume: "v",
		State: daemon.StateAttached}}, noon)
	if !strings.Contains(b.String(), "no request is in flight") || strings.Contains(b.String(), "changes") {
		t.Errorf("idle: %q", b.String())
	}
	b.Reset()
	printWhy(&b, daemon.WhyReply{Attachment: daemon.Attachment{Volume: "v"}, MapRefused: "map version 9: no"}, noon)
	if !strings.Contains(b.String(), "do not reach it: map version 9: no") {
		t.Errorf("a map that cannot be taken: %q", b.String())
	}
}

// Goal: an export is found by top, trace and why by its control socket, which is
// gone when it ends; what a killed one has left is removed. Method: a volume in
// memory.
func TestExportCanBeWatched(t *testing.T) {
	dir, err := os.MkdirTemp("", "sdc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	t.Setenv("BRAID_RUN", dir)
	left := filepath.Join(dir, "serve-1-2.sock")
	fd, err := syscall.Socket(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err == nil {
		err = syscall.Bind(fd, &syscall.SockaddrUnix{Name: left})
		_ = syscall.Close(fd)
	}
	if err != nil {
		t.Fatal(err)
	}
	var stderr lockedBuffer
	code := make(chan int, 1)
	args := []string{"serve", "--memory", "16M", "--volume", "mem", "--socket", filepath.Join(dir, "nbd"),
		"--metrics", "127.0.0.1:0", "--pprof"}
	go func() { code <- run(args, &bytes.Buffer{}, &stderr) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(stderr.String(), "ready"); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not ready: %q", stderr.String())
		}
	}
	for line, want := range map[string]string{
		"top --once --interval 100ms":         "mem on " + filepath.Join(dir, "nbd") + ": attached, 0 in flight",
		"top --once --interval 100ms -o json": `"volume":"mem"`,
		"trace":                               "no request has been answered",
		"trace -o json":                       "[]",
		"why --volume mem":                    "no request is in flight",
		"why mem":                             "volume mem: attached",
	} {
		var out, stderr bytes.Buffer
		code := run(strings.Fields(line), &out, &stderr)
		if code != cli.ExitDone || !strings.Contains(out.String(), want) {
			t.Errorf("sdc %s: code %d, %q %q, want %q", line, code, out.String(), stderr.String(), want)
		}
	}
	var out, warn bytes.Buffer
	if c := run([]string{"why", "--volume", "other"}, &out, &warn); c != cli.ExitFailed ||
		!strings.Contains(warn.String(), "these are: mem") {
		t.Errorf("another volume: %d, %q", c, warn.String())
	}
	if !strings.Contains(stderr.String(), "metrics: http://127.0.0.1:") {
		t.Errorf("no metrics: %q", stderr.String())
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if c := <-code; c != cli.ExitDone {
		t.Errorf("code %d, %q", c, stderr.String())
	}
	if sockets, _ := filepath.Glob(filepath.Join(dir, "*.sock")); len(sockets) != 0 {
		t.Errorf("left behind: %v", sockets)
	}
}
