// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/mdm/state"
)

// pilotRig is a member whose clock is turned, with full servers that only report, and a
// hook that is a script.
type pilotRig struct {
	t          *testing.T
	m          *Member
	c          *client.Client
	turned     *clock
	hook, seen string
}

func newPilotRig(t *testing.T) *pilotRig {
	dir := t.TempDir()
	r := &pilotRig{t: t, turned: &clock{t: time.Now()}, hook: filepath.Join(dir, "hook"),
		seen: filepath.Join(dir, "seen")}
	config := testConfig(t)
	config.now, config.ServerLease = r.turned.now, 10000*time.Hour
	config.Hook, config.HookTimeout = r.hook, patience
	r.m = startMember(t, config)
	r.c = newClient(t, r.m.Addr())
	for i := 1; i <= 3; i++ {
		s := serverReportOf(i)
		s.Devices[0].Used, s.Spare = 9<<30, i == 3
		if _, err := r.c.RegisterServer(t.Context(), s); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

func (r *pilotRig) script(body string) {
	r.t.Helper()
	if err := os.WriteFile(r.hook+".new", []byte("#!/bin/sh\n"+body+"\n"), 0o700); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Rename(r.hook+".new", r.hook); err != nil {
		r.t.Fatal(err)
	}
}

// until turns the clock until something is so.
func (r *pilotRig) until(what string, ok func(p *pb.Autopilot) bool) {
	r.t.Helper()
	for end := time.Now().Add(patience); ; r.turned.advance(pilotLook) {
		p, err := r.c.Autopilot(r.t.Context())
		if err != nil {
			r.t.Fatal(err)
		}
		if ok(p) {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("waited until %s: %+v", what, p)
		}
	}
}

func (r *pilotRig) told(text string) func(*pb.Autopilot) bool {
	return func(*pb.Autopilot) (found bool) {
		_ = r.c.Events(r.t.Context(), 0, 0, false, func(e *pb.Event) {
			found = found || e.Kind == "autopilot" && strings.Contains(e.Text, text)
		})
		return found
	}
}

// Goal: a full cluster gets its spare device, and after the cooldown the hook, which is
// told what it needs and whose end is an event; one that fails says so; one that runs
// is waited for, and ended with the member.
func TestAutopilotActs(t *testing.T) {
	leaks(t)
	r := newPilotRig(t)
	r.script(`echo "$BRAID_MDM $BRAID_FILL $BRAID_DEVICES" >` + r.seen + "\necho one; echo a machine is on its way")
	mode, ceiling, none := "on", uint32(9), uint32(0)
	if _, err := r.c.SetAutopilot(t.Context(), &pb.SetAutopilotRequest{Mode: &mode, Ceiling: &none}); err == nil {
		t.Error("it may be on without a ceiling")
	}
	if _, err := r.c.SetAutopilot(t.Context(), &pb.SetAutopilotRequest{Mode: &mode, Ceiling: &ceiling}); err != nil {
		t.Fatal(err)
	}
	r.until("the spare is used", func(p *pb.Autopilot) bool { return len(p.History) == 1 && p.History[0].Device == 3 })
	devices, err := r.c.ListDevices(t.Context())
	if err != nil || len(devices) != 3 || devices[2].Spare {
		t.Fatalf("devices %v, %v", devices, err)
	}
	r.turned.advance(time.Hour)
	r.until("the hook has ended", r.told("ended well; it said: a machine is on its way"))
	if got, err := os.ReadFile(r.seen); err != nil || strings.TrimSpace(string(got)) != r.m.Addr()+" 90 3" {
		t.Errorf("the hook saw %q, %v", got, err)
	}
	r.script("echo no machine is left >&2; exit 3")
	r.turned.advance(time.Hour)
	r.until("the hook has failed", r.told("failed: exit status 3; it said: no machine is left"))
	if s, err := r.c.Status(t.Context()); err != nil || s.Devices != 3 {
		t.Errorf("%+v, %v", s, err)
	}
	r.script("echo running >" + r.seen + "; exec sleep 1000")
	r.turned.advance(time.Hour)
	r.until("the hook runs", func(p *pb.Autopilot) bool {
		b, _ := os.ReadFile(r.seen)
		return string(b) == "running\n"
	})
	r.turned.advance(time.Hour)
	r.until("it is waited for", func(p *pb.Autopilot) bool { return p.Doing == "waits for its hook" && !p.Stuck })
}

// Goal: what a hook starts and leaves running holds nothing up, and its output has
// somewhere to go.
func TestHookLeavesDaemon(t *testing.T) {
	dir := t.TempDir()
	hook, file := filepath.Join(dir, "hook"), filepath.Join(dir, "pid")
	script := "#!/bin/sh\n" +
		"sh -c 'echo $$ >" + file + "; echo started; while sleep 0.01; do echo more || exit; done' &\n" +
		"while ! [ -s " + file + " ]; do sleep 0.01; done\n"
	if err := os.WriteFile(hook, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	p := pilot{config: Config{Hook: hook, HookTimeout: patience}}
	_, err := p.exec(t.Context(), state.Decision{Fill: 90})
	if err != nil {
		t.Errorf("a hook that leaves a daemon: %v", err)
	}
	b, _ := os.ReadFile(file)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || syscall.Kill(pid, 0) != nil {
		t.Fatalf("the daemon %q does not live: %v", b, err)
	}
	_ = syscall.Kill(pid, syscall.SIGKILL)
}

// alive reports whether a process runs; one that nobody has reaped does not.
func alive(pid int) bool {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !strings.Contains(string(stat), ") Z ")
}

// Goal: a hook that takes too long is ended with what it started, also when it does not
// listen, and says so.
func TestHookTimeout(t *testing.T) {
	leaks(t)
	dir := t.TempDir()
	hook, file := filepath.Join(dir, "hook"), filepath.Join(dir, "pid")
	script := "#!/bin/sh\ntrap '' TERM\nsleep 1000 & echo $! >" + file + "\nwait\nwait\n"
	if err := os.WriteFile(hook, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	p := pilot{config: Config{Hook: hook, HookTimeout: 200 * time.Millisecond}}
	if _, err := p.exec(t.Context(), state.Decision{Fill: 90}); err == nil ||
		!strings.Contains(err.Error(), "longer than 200ms") {
		t.Errorf("%v", err)
	}
	b, _ := os.ReadFile(file) // empty where 200 ms were too short to begin
	if pid, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
		for end := time.Now().Add(patience); alive(pid); {
			if time.Now().After(end) {
				t.Fatal("what the hook started lives on")
			}
		}
	}
	p.config.Hook = filepath.Join(t.TempDir(), "none")
	if _, err := p.exec(t.Context(), state.Decision{Fill: 90}); err == nil {
		t.Error("a hook that is not there runs")
	}
}
