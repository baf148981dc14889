// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/mdm/state"
)

// Goal: a full cluster gets its spare devices, one after each cooldown, then the hook,
// which is told what it needs and whose end is an event; a hook that fails or hangs is
// said, and costs nothing else. Method: a clock that is turned, servers that only
// report, and hooks that are scripts.
func TestAutopilotActs(t *testing.T) {
	leaks(t)
	dir := t.TempDir()
	seen := filepath.Join(dir, "seen")
	hook := filepath.Join(dir, "hook")
	script := func(body string) {
		t.Helper()
		if err := os.WriteFile(hook+".new", []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(hook+".new", hook); err != nil {
			t.Fatal(err)
		}
	}
	script(`echo "$BRAID_MDM $BRAID_FILL $BRAID_DEVICES" >` + seen + "\necho one; echo a machine is on its way")
	turned := &clock{t: time.Now()}
	config := testConfig(t)
	config.now, config.ServerLease = turned.now, 10000*time.Hour
	config.Hook, config.HookTimeout = hook, patience
	m := startMember(t, config)
	c := newClient(t, m.Addr())
	full := func(i int) client.ServerReport {
		r := serverReportOf(i)
		r.Devices[0].Used = 9 << 30
		return r
	}
	for i := 1; i <= 2; i++ {
		if _, err := c.RegisterServer(t.Context(), full(i)); err != nil {
			t.Fatal(err)
		}
	}
	spare := full(3)
	spare.Spare = true
	if _, err := c.RegisterServer(t.Context(), spare); err != nil {
		t.Fatal(err)
	}
	mode, ceiling, none := "on", uint32(9), uint32(0)
	if _, err := c.SetAutopilot(t.Context(), &pb.SetAutopilotRequest{Mode: &mode, Ceiling: &none}); err == nil {
		t.Error("it may be on without a ceiling")
	}
	if _, err := c.SetAutopilot(t.Context(), &pb.SetAutopilotRequest{Mode: &mode, Ceiling: &ceiling}); err != nil {
		t.Fatal(err)
	}
	until := func(what string, ok func(p *pb.Autopilot) bool) {
		t.Helper()
		for end := time.Now().Add(patience); ; turned.advance(pilotLook) {
			p, err := c.Autopilot(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if ok(p) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("waited until %s: %+v", what, p)
			}
			time.Sleep(time.Millisecond)
		}
	}
	until("the spare is used", func(p *pb.Autopilot) bool { return len(p.History) == 1 && p.History[0].Device == 3 })
	devices, err := c.ListDevices(t.Context())
	if err != nil || len(devices) != 3 || devices[2].Spare {
		t.Fatalf("devices %v, %v", devices, err)
	}
	told := func(text string) bool {
		found := false
		_ = c.Events(t.Context(), 0, 0, false, func(e *pb.Event) {
			found = found || e.Kind == "autopilot" && strings.Contains(e.Text, text)
		})
		return found
	}
	turned.advance(time.Hour)
	until("the hook has ended", func(p *pb.Autopilot) bool {
		return told("ended well; it said: a machine is on its way")
	})
	if got, err := os.ReadFile(seen); err != nil || strings.TrimSpace(string(got)) != m.Addr()+" 90 3" {
		t.Errorf("the hook saw %q, %v", got, err)
	}
	script("echo no machine is left >&2; exit 3")
	turned.advance(time.Hour)
	until("the hook has failed", func(p *pb.Autopilot) bool { return told("failed: exit status 3; it said: no machine is left") })
	s, err := c.Status(t.Context())
	if err != nil || s.Devices != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	script("sleep 1000 & echo $! >" + seen + "; wait")
	turned.advance(time.Hour)
	until("the hook runs", func(p *pb.Autopilot) bool {
		b, _ := os.ReadFile(seen)
		return len(b) > 0 && !strings.Contains(string(b), ":")
	}) // the end of the member ends it, see leaks
}

// Goal: a hook that takes too long is ended with what it started, and says so.
func TestHookTimeout(t *testing.T) {
	leaks(t)
	hook := filepath.Join(t.TempDir(), "hook")
	if err := os.WriteFile(hook, []byte("#!/bin/sh\necho begun\nsleep 1000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := pilot{config: Config{Hook: hook, HookTimeout: 200 * time.Millisecond}}
	says, err := p.exec(t.Context(), state.Decision{Fill: 90})
	if err == nil || !strings.Contains(err.Error(), "longer than 200ms") || says != "begun" {
		t.Errorf("%q, %v", says, err)
	}
	p.config.Hook = filepath.Join(t.TempDir(), "none")
	if _, err := p.exec(t.Context(), state.Decision{Fill: 90}); err == nil {
		t.Error("a hook that is not there runs")
	}
}
