// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// beMain makes the test binary behave as mdm, so that tests can kill it.
const beMain = "BRAID_TEST_BE_MDM"

func TestMain(m *testing.M) {
	if os.Getenv(beMain) != "" {
		os.Exit(run(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// process is one mdm.
type process struct {
	name string
	addr string
	args []string
	cmd  *exec.Cmd
	log  *bytes.Buffer
}

func (p *process) start(t *testing.T) {
	t.Helper()
	p.cmd = exec.Command(os.Args[0], p.args...)
	p.cmd.Env = append(os.Environ(), beMain+"=1")
	p.log = &bytes.Buffer{}
	p.cmd.Stderr = p.log
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.cmd.Process.Kill()
		p.cmd.Wait()
	})
	p.cmd.Cancel = nil
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil || !strings.HasPrefix(line, "mdm ready: API at "+p.addr) {
		t.Fatalf("%s says %q, %v; its log: %s", p.name, line, err, p.log)
	}
}

func (p *process) kill() {
	p.cmd.Process.Kill()
	p.cmd.Wait()
}

func freePort(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// three starts three members of one cluster.
func three(t *testing.T) []*process {
	members := make([]*process, 3)
	var peers []string
	for i := range members {
		members[i] = &process{name: fmt.Sprint("m", i), addr: freePort(t)}
		peers = append(peers, fmt.Sprintf("m%d=http://%s", i, freePort(t)))
	}
	dir := t.TempDir()
	var wait sync.WaitGroup
	for _, p := range members {
		p.args = []string{"serve", "--data-dir", filepath.Join(dir, p.name), "--listen", p.addr,
			"--name", p.name, "--cluster", strings.Join(peers, ",")}
		wait.Go(func() { p.start(t) })
	}
	wait.Wait()
	if t.Failed() {
		t.FailNow()
	}
	return members
}

// leading returns the member that leads.
func leading(t *testing.T, members []*process) *process {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); {
		for _, p := range members {
			resp, err := http.Get("http://" + p.addr + "/healthz")
			if err != nil {
				continue
			}
			var health struct{ Leads bool }
			err = json.NewDecoder(resp.Body).Decode(&health)
			resp.Body.Close()
			if err == nil && health.Leads {
				return p
			}
		}
	}
	t.Fatal("nobody leads")
	return nil
}

func newClient(t *testing.T, members ...*process) *client.Client {
	var addrs []string
	for _, p := range members {
		addrs = append(addrs, p.addr)
	}
	c, err := client.New(addrs, client.Options{Patience: 30 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func registerServer(t *testing.T, c *client.Client, n int) client.Registration {
	t.Helper()
	r, err := c.RegisterServer(t.Context(), client.ServerReport{Name: fmt.Sprint("sds", n),
		Addr: fmt.Sprintf("127.0.0.1:%d", 9100+n), Devices: []client.DeviceReport{{UUID: cluster.UUID{byte(n)},
			Path: "/dev/x", Size: 10 << 30, Used: 1 << 20, Incarnation: 1, StartCounter: 1}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// Goal: any member answers; when the leader is killed another one takes over
// within seconds, with the sessions and leases that there were; map streams go
// on; the killed one comes back as a follower; without a majority changes wait
// and reads go on.
func TestThreeMembers(t *testing.T) {
	members := three(t)
	leader := leading(t, members)
	var followers []*process
	for _, p := range members {
		if p != leader {
			followers = append(followers, p)
		}
	}
	c := newClient(t, members...)
	registered := registerServer(t, c, 1)
	if _, err := newClient(t, followers[0]).CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: "v",
		Size: 1 << 30, Replicas: 1}); err != nil {
		t.Fatalf("a change through a follower: %v", err)
	}
	session, err := c.Attach(t.Context(), client.AttachRequest{Volume: "v", Client: "c1", Host: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	devices, err := newClient(t, followers[1]).ListDevices(t.Context())
	if err != nil || devices[0].Used != 1<<20 {
		t.Errorf("usage through a follower: %v, %v", devices, err)
	}
	maps := make(chan *cluster.Map, 100)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var watching sync.WaitGroup
	watching.Go(func() { c.WatchMap(ctx, nil, func(m *cluster.Map) { maps <- m }) })
	defer watching.Wait()
	defer cancel()

	leader.kill()
	killed := time.Now()
	want := &pb.CreateVolumeRequest{Name: "w", Size: 1 << 30, Replicas: 1}
	if _, err := c.CreateVolume(t.Context(), want); err != nil {
		t.Fatalf("a change after the leader died: %v", err)
	}
	t.Logf("changes went on %v after the leader was killed", time.Since(killed).Round(time.Millisecond))
	known, err := c.RenewServer(t.Context(), "sds1", registered.LeaseID, nil)
	if err != nil || !known {
		t.Errorf("the server's lease after the change: %v, %v", known, err)
	}
	lost, err := c.RenewSession(t.Context(), "c1", []client.SessionState{{Volume: session.Volume.ID,
		Generation: session.Generation}})
	if err != nil || len(lost) > 0 {
		t.Errorf("the session after the change: %v, %v", lost, err)
	}
	limit := time.After(20 * time.Second)
	for seen := false; !seen; {
		select {
		case m := <-maps:
			seen = m.VolumeByName("w") != nil && m.VolumeByName("v") != nil
		case <-limit:
			t.Fatal("the map stream did not go on")
		}
	}
	leader.start(t)
	if p := leading(t, members); p == leader {
		t.Error("the member that came back leads at once")
	}

	// Two of three are gone: what is left still tells what it knows.
	rest := leader
	for _, p := range followers {
		p.kill()
	}
	alone := newClient(t, rest)
	if volumes, err := alone.ListVolumes(t.Context()); err != nil || len(volumes) != 2 {
		t.Errorf("volumes without a majority: %v, %v", volumes, err)
	}
	hasty, cancelHasty := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancelHasty()
	if err := alone.DeleteVolume(hasty, "w", false); err == nil {
		t.Error("a change without a majority")
	}
	began := time.Now()
	rest.cmd.Process.Signal(syscall.SIGTERM)
	if err := rest.cmd.Wait(); err != nil || time.Since(began) > 5*time.Second {
		t.Errorf("SIGTERM without a majority: %v after %v", err, time.Since(began))
	}
}

// Goal: after kill -9 a single member is back within seconds with all that was
// answered; SIGTERM ends it with exit code 0.
func TestKillAndRestart(t *testing.T) {
	p := &process{name: "m", addr: freePort(t)}
	p.args = []string{"serve", "--data-dir", t.TempDir(), "--listen", p.addr}
	p.start(t)
	c := newClient(t, p)
	registerServer(t, c, 1)
	for i := range 5 {
		want := &pb.CreateVolumeRequest{Name: fmt.Sprint("v", i), Size: 1 << 30, Replicas: 1}
		if _, err := c.CreateVolume(t.Context(), want); err != nil {
			t.Fatal(err)
		}
		p.kill()
		began := time.Now()
		p.start(t)
		if took := time.Since(began); took > 10*time.Second {
			t.Errorf("ready %v after kill -9", took)
		}
		if volumes, err := c.ListVolumes(t.Context()); err != nil || len(volumes) != i+1 {
			t.Fatalf("%d volumes after kill -9, want %d; %v", len(volumes), i+1, err)
		}
	}
	second := exec.Command(os.Args[0], p.args...)
	second.Env = append(os.Environ(), beMain+"=1")
	second.Args[len(second.Args)-1] = freePort(t)
	out, err := second.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "in use by another mdm") {
		t.Errorf("a second process on the same data: %v, %s", err, out)
	}
	began := time.Now()
	p.cmd.Process.Signal(syscall.SIGTERM)
	if err := p.cmd.Wait(); err != nil || time.Since(began) > 3*time.Second {
		t.Errorf("SIGTERM: %v after %v", err, time.Since(began))
	}
}

func TestUsage(t *testing.T) {
	for _, c := range []struct {
		args []string
		code int
		want string
	}{
		{nil, 0, "serve"},
		{[]string{"--version"}, 0, cluster.Version},
		{[]string{"serve", "--help"}, 0, "--data-dir"},
		{[]string{"serve"}, 2, "--data-dir"},
		{[]string{"bogus"}, 2, "bogus"},
		{[]string{"serve", "--bogus"}, 2, "--bogus"},
		{[]string{"serve", "extra"}, 2, "extra"},
		{[]string{"serve", "--data-dir", filepath.Join(t.TempDir(), "x"), "--listen", "0.0.0.0:0"}, 1,
			"--insecure"},
		{[]string{"serve", "--data-dir", "/proc/nothing"}, 1, "/proc/nothing"},
	} {
		var out bytes.Buffer
		if code := run(c.args, &out, &out); code != c.code || !strings.Contains(out.String(), c.want) {
			t.Errorf("mdm %q: exit code %d, want %d; output without %q: %s", c.args, code, c.code, c.want, &out)
		}
	}
}
