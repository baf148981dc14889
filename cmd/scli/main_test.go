// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm"
	"braid/mdm/client"
)

// bench is a metadata manager with servers that do not serve, and scli.
type bench struct {
	t    *testing.T
	addr string
}

func newBench(t *testing.T, servers int) *bench {
	m, err := mdm.Start(t.Context(), mdm.Config{DataDir: filepath.Join(t.TempDir(), "mdm"),
		Listen: "127.0.0.1:0",
		Log:    slog.New(slog.NewTextHandler(io.Discard, nil)), ServerLease: time.Hour})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	c, err := client.New([]string{m.Addr()}, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for i := range servers {
		_, err := c.RegisterServer(t.Context(), client.ServerReport{Name: fmt.Sprintf("sds%d", i+1),
			Version: "1", Addr: fmt.Sprintf("127.0.0.1:%d", 9200+i),
			Devices: []client.DeviceReport{{UUID: cluster.UUID{byte(i + 1)}, Path: "/dev/sdx",
				Size: 10 << 30, Used: 1 << 30, Incarnation: 1, StartCounter: 1}}})
		if err != nil {
			t.Fatal(err)
		}
	}
	return &bench{t: t, addr: m.Addr()}
}

// scli runs a command line and returns its exit code and what it wrote.
func (b *bench) scli(line string) (code int, stdout, stderr string) {
	var out, warn bytes.Buffer
	code = run(b.t.Context(), strings.Fields(line), b.addr, &out, &warn)
	return code, out.String(), warn.String()
}

// expect fails unless the command ends with that code and says all the words.
func (b *bench) expect(line string, code int, words ...string) {
	b.t.Helper()
	got, stdout, stderr := b.scli(line)
	if got != code {
		b.t.Errorf("scli %s: exit code %d, want %d: %s%s", line, got, code, stdout, stderr)
	}
	for _, w := range words {
		if !strings.Contains(stdout+stderr, w) {
			b.t.Errorf("scli %s: no %q in: %s%s", line, w, stdout, stderr)
		}
	}
}

func (b *bench) json(line string, into any) {
	b.t.Helper()
	code, stdout, stderr := b.scli(line + " -o json")
	if err := json.Unmarshal([]byte(stdout), into); code != 0 || err != nil {
		b.t.Fatalf("scli %s -o json: exit code %d, %v: %s%s", line, code, err, stdout, stderr)
	}
}

// Goal: each command does its work, for people and for programs.
func TestCommands(t *testing.T) {
	b := newBench(t, 3)
	b.expect("volume list", 0, "NAME")
	b.expect("volume create db --size 1G", 0, "volume db created: 1G, 2 replicas")
	b.expect("volume create image --size 2g --replicas 3 --stripe-unit 16K --stripe-width 4 "+
		"--block-size 512", 0)
	var volumes []map[string]any
	b.json("volume list", &volumes)
	if len(volumes) != 2 || volumes[0]["name"] != "db" || volumes[0]["size"] != float64(1<<30) ||
		volumes[1]["stripe_unit"] != 16384.0 || volumes[1]["attached"] != false {
		t.Errorf("volumes %v", volumes)
	}
	var shown map[string]any
	b.json("volume show image", &shown)
	if shown["block_size"] != 512.0 || shown["stripe_width"] != 4.0 || shown["replicas"] != 3.0 {
		t.Errorf("volume %v", shown)
	}
	b.expect("volume show image", 0, "2G (2147483648 bytes)", "unit 16K")
	b.expect("volume resize db --size 2G", 0, "resized: 2G")
	b.expect("volume rename db store", 0, "volume store renamed: 2G")
	b.expect("volume rename store image", 1, "image is in use")
	b.expect("volume rename store db", 0, "volume db renamed")
	b.expect("volume delete db", 0, "deleted")
	b.json("volume delete image", &shown)
	volumes = nil
	b.json("volume list", &volumes)
	if volumes == nil || len(volumes) != 0 {
		t.Errorf("no volumes as JSON: %v", volumes)
	}

	var st map[string]any
	b.json("status", &st)
	if st["health"] != "ok" || st["servers_up"] != 3.0 || st["used"] != float64(3<<30) ||
		st["leader"] != b.addr {
		t.Errorf("status %v", st)
	}
	b.expect("status", 0, "health", "ok", "3 of 3 up", "3G of 30G used (10%)")
	var list []map[string]any
	b.json("sds list", &list)
	if len(list) != 3 || list[0]["name"] != "sds1" || list[0]["capacity"] != float64(10<<30) {
		t.Errorf("servers %v", list)
	}
	b.json("device list", &list)
	if len(list) != 3 || list[2]["id"] != 3.0 || list[2]["up"] != true || list[2]["used"] != float64(1<<30) {
		t.Errorf("devices %v", list)
	}
	b.expect("sds list", 0, "sds2", "127.0.0.1:9201", "10%")
	b.expect("device list", 0, "/dev/sdx", "10G")
	b.expect("device remove 3 --dry-run", 0, "nothing would move")
	b.expect("device remove 3", 0, "device 3 removed")
	b.json("events --limit 2", &list)
	if len(list) != 2 || list[1]["kind"] != "device-removed" {
		t.Errorf("events %v", list)
	}
	b.expect("events", 0, "volume db of 1G was created", "device-removed")
}

// Goal: what goes wrong ends with the right code and with words that help.
func TestErrors(t *testing.T) {
	b := newBench(t, 2)
	b.expect("volume create db --size 1G", 0)
	for _, c := range []struct {
		line  string
		code  int
		words []string
	}{
		{"bogus", 2, []string{"bogus", "--help"}},
		{"volume bogus", 2, []string{"bogus"}},
		{"volume create", 2, []string{"which name", "--size"}},
		{"volume create v", 2, []string{"--size 10G"}},
		{"volume create v w --size 1G", 2, []string{"w"}},
		{"volume create v --size 1q", 2, []string{"1q", "10G"}},
		{"volume create v --size 1G --bogus", 2, []string{"--bogus"}},
		{"volume create v --size 1G --replicas 0", 2, []string{"0"}},
		{"volume create v --size 1G --replicas x", 2, []string{"replicas"}},
		{"volume create v --size 0", 1, []string{"size is 0"}},
		{"volume create v --size 4097", 1, []string{"multiple of 4096"}},
		{"volume create v --size 1T", 1, []string{"1T", "10G"}},
		{"volume create v --size 1G --replicas 3", 1, []string{"3 replicas"}},
		{"volume create db --size 1G", 1, []string{"in use"}},
		{"volume show v", 1, []string{"no such volume"}},
		{"volume resize db", 2, []string{"--size"}},
		{"volume resize db --size 512M", 1, []string{"--shrink"}},
		{"volume resize v --size 1G", 1, []string{"no such volume", "db"}},
		{"volume delete v", 1, []string{"no such volume"}},
		{"volume delete", 2, []string{"which volume"}},
		{"volume rename v w", 1, []string{"no such volume", "volume list"}},
		{"volume rename db Upper", 1, []string{"a-z 0-9", "Upper"}},
		{"volume rename db", 2, []string{"NEW-NAME"}},
		{"cluster set", 2, []string{"KEY=VALUE"}},
		{"cluster set color=red", 2, []string{"scrub-every=", "resync-rate="}},
		{"cluster set scrub-every=soon", 2, []string{"14d", "never"}},
		{"cluster set scrub-every=-2h", 2, []string{"14d", "never"}},
		{"cluster set scrub-every=1m", 1, []string{"1h to 365d"}},
		{"cluster set resync-rate=fast", 2, []string{"50M", "none"}},
		{"cluster set scrub-rate=1K", 1, []string{"1M"}},
		{"device remove x", 2, []string{"device list"}},
		{"device remove 9", 1, []string{"device list"}},
		{"device remove 1", 1, []string{"2 copies", "1 fault set", "add servers"}},
		{"sds remove sds9", 1, []string{"no device"}},
		{"sds maintenance enter sds9", 1, []string{"sds9", "scli sds list"}},
		{"rebalance grace soon", 2, []string{"90s"}},
		{"rebalance plan --without 1", 1, []string{"add servers"}},
		{"status -o yaml", 2, []string{"yaml", "json"}},
		{"status extra", 2, []string{"extra"}},
		{"status --mdm nonsense", 2, []string{"nonsense", "HOST:PORT"}},
		{"status --mdm 127.0.0.1:1 --timeout 50ms", 1, []string{"127.0.0.1:1", "mdm serve"}},
	} {
		b.expect(c.line, c.code, c.words...)
	}
	b.expect("rebalance status", 0, "balanced", "1m0s")
	b.expect("rebalance grace 10m", 0, "10m0s")
	b.expect("rebalance pause", 0, "balanced")
	b.expect("rebalance plan", 0, "nothing would move")
	b.expect("sds maintenance enter sds1", 0, "sds1 is in maintenance")
	b.expect("rebalance status", 0, "maintenance", "sds1")
	b.expect("sds maintenance exit sds1", 0, "no longer")
	var now map[string]any
	b.json("rebalance status", &now)
	if now["state"] != "balanced" || now["paused"] != true || now["grace_ms"] != 600000.0 {
		t.Errorf("rebalance status: %v", now)
	}
	b.expect("rebalance resume", 0, "balanced")
	for _, line := range []string{"", "--help", "volume", "volume create --help", "sds", "device",
		"--version"} {
		b.expect(line, 0)
	}
}

// lines passes on each line written, until it has what it waits for.
type lines struct {
	bytes.Buffer
	stop func()
	want string
}

func (l *lines) Write(p []byte) (int, error) {
	n, err := l.Buffer.Write(p)
	if strings.Contains(l.String(), l.want) {
		l.stop()
	}
	return n, err
}

// Goal: --follow shows what happens, a JSON object per line, and an interrupt
// ends it without an error.
func TestFollowEvents(t *testing.T) {
	b := newBench(t, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	out := &lines{stop: cancel, want: "volume-created"}
	done := make(chan int)
	go func() {
		done <- run(ctx, []string{"events", "--follow", "-o", "json"}, b.addr, out, io.Discard)
	}()
	b.expect("volume create v --size 1G --replicas 1", 0)
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	for line := range strings.Lines(out.String()) {
		var e event
		if err := json.Unmarshal([]byte(line), &e); err != nil || e.Seq == 0 || e.Kind == "" {
			t.Errorf("line %q: %v", line, err)
		}
	}
	if !errors.Is(ctx.Err(), context.Canceled) {
		t.Error("the event did not come")
	}
}
