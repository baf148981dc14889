// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// patience is how long a test waits for what must happen soon.
const patience = 20 * time.Second

// clock is turned by the test.
type clock struct {
	mu sync.Mutex
	t  time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.t
}

func (c *clock) advance(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.t = c.t.Add(d)
}

func testConfig(t *testing.T) Config {
	return Config{DataDir: filepath.Join(t.TempDir(), "data"), Listen: "127.0.0.1:0", Name: "m",
		Log: slog.New(slog.NewTextHandler(io.Discard, nil)), skipSync: true}
}

func startMember(t *testing.T, c Config) *Member {
	t.Helper()
	m, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

func newClient(t *testing.T, addrs ...string) *client.Client {
	t.Helper()
	c, err := client.New(addrs, client.Options{Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// leaks checks at the end that nothing runs on. Call it first: cleanups run in
// reverse.
func leaks(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
}

func register(t *testing.T, c *client.Client, server int) client.Registration {
	t.Helper()
	r, err := c.RegisterServer(t.Context(), serverReportOf(server))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func serverReportOf(server int) client.ServerReport {
	return client.ServerReport{Name: fmt.Sprintf("sds%d", server),
		Addr: fmt.Sprintf("127.0.0.1:%d", 9000+server),
		Devices: []client.DeviceReport{{UUID: cluster.UUID{byte(server)},
			Path: "/dev/x", Size: 10 << 30, Incarnation: 1, StartCounter: 1}}}
}

func create(t *testing.T, c *client.Client, name string, replicas uint32) *pb.Volume {
	t.Helper()
	resp, err := c.CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: name, Size: 1 << 30,
		Replicas: replicas})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Volume
}

// held is what the holder of a session reports.
func held(s *client.Session) []client.SessionState {
	return []client.SessionState{{Volume: s.Volume.ID, Generation: s.Generation}}
}

// follower collects the maps that WatchMap delivers.
type follower struct {
	mu      sync.Mutex
	current *cluster.Map
	news    chan struct{}
}

func follow(t *testing.T, c *client.Client, volumes ...cluster.VolumeID) *follower {
	t.Helper()
	f := &follower{current: cluster.NewMap(), news: make(chan struct{}, 1)}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() {
		done <- c.WatchMap(ctx, volumes, func(m *cluster.Map) {
			f.mu.Lock()
			f.current = m
			f.mu.Unlock()
			select {
			case f.news <- struct{}{}:
			default:
			}
		})
	}()
	t.Cleanup(func() {
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("WatchMap ended with %v", err)
		}
	})
	return f
}

// until waits for a map that fits.
func (f *follower) until(t *testing.T, what string, fits func(*cluster.Map) bool) *cluster.Map {
	t.Helper()
	limit := time.After(patience)
	for {
		f.mu.Lock()
		m := f.current
		f.mu.Unlock()
		if fits(m) {
			return m
		}
		select {
		case <-f.news:
		case <-limit:
			t.Fatalf("no map in which %s; the last is version %d", what, m.Version)
		}
	}
}

// Goal: the whole life of a volume over the API, and the map that follows it.
func TestLifeOfAVolume(t *testing.T) {
	leaks(t)
	m := startMember(t, testConfig(t))
	c := newClient(t, m.Addr())
	f := follow(t, c)
	for i := range 3 {
		if r := register(t, c, i+1); r.Devices[0] != cluster.DeviceID(i+1) || r.Refused[0] != "" ||
			r.Cluster != m.Cluster() || r.Lease != defaultServerLease {
			t.Errorf("registration %+v", r)
		}
	}
	v := create(t, c, "db", 2)
	f.until(t, "the volume and its groups are there", func(m *cluster.Map) bool {
		return m.VolumeByName("db") != nil && len(m.PGs[v.PgSet]) == 256 && len(m.Devices) == 3
	})
	s, err := c.Attach(t.Context(), client.AttachRequest{Volume: "db", Client: "c1", Host: "h1"})
	if err != nil || s.Generation != 1 || s.Volume.Name != "db" || s.Map.VolumePG(s.Volume, 5) == nil {
		t.Fatalf("session %+v, %v", s, err)
	}
	own := follow(t, c, s.Volume.ID)
	_, err = c.Attach(t.Context(), client.AttachRequest{Volume: "db", Client: "c2", Host: "h2"})
	if !errors.Is(err, client.ErrRefused) || !strings.Contains(err.Error(), "host h1") {
		t.Errorf("a second attach: %v", err)
	}
	dropped, last, err := c.DropReplica(t.Context(), client.DropRequest{Volume: s.Volume.ID,
		Generation: s.Generation, Device: 2, Reason: "lost its cache"})
	if err != nil || len(dropped) == 0 || len(last) != 0 {
		t.Errorf("%d dropped, %d kept, %v", len(dropped), len(last), err)
	}
	own.until(t, "device 2 is out of sync everywhere", func(m *cluster.Map) bool {
		for _, pg := range m.PGs[v.PgSet] {
			if pg.Has(2) {
				return false
			}
		}
		return len(m.PGs[v.PgSet]) > 0
	})
	if _, err := c.ResizeVolume(t.Context(), "db", 2<<30, false); err != nil {
		t.Error(err)
	}
	own.until(t, "the volume has grown", func(m *cluster.Map) bool {
		return m.VolumeByName("db") != nil && m.VolumeByName("db").Size == 2<<30
	})
	if err := c.DeleteVolume(t.Context(), "db", false); !errors.Is(err, client.ErrRefused) {
		t.Errorf("deleting an attached volume: %v", err)
	}
	if err := c.Detach(t.Context(), client.Held{Name: "db", Client: "c1", Generation: s.Generation}); err != nil {
		t.Error(err)
	}
	if err := c.DeleteVolume(t.Context(), "db", false); err != nil {
		t.Error(err)
	}
	f.until(t, "the volume is gone for good", func(m *cluster.Map) bool { return m.Removed[s.Volume.ID] })
	st, err := c.Status(t.Context())
	if err != nil || st.Health != "ok" || st.Devices != 3 || st.Leader != m.Addr() || len(st.Members) != 1 {
		t.Errorf("status %v, %v", st, err)
	}
}

// Goal: leases run out when they are not renewed and not before; a server goes
// down as a whole and comes back; usage is reported and stays out of etcd.
func TestLeases(t *testing.T) {
	config := testConfig(t)
	turned := &clock{t: time.Now()}
	config.now = turned.now
	m := startMember(t, config)
	c := newClient(t, m.Addr())
	f := follow(t, c)
	one, two := register(t, c, 1), register(t, c, 2)
	create(t, c, "v", 2)
	s, err := c.Attach(t.Context(), client.AttachRequest{Volume: "v", Client: "c1", Host: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	report := serverReportOf(1).Devices
	report[0].Used = 5 << 20
	revision := func() (r int64) {
		resp, err := m.backend.client.Get(t.Context(), "/")
		if err != nil {
			t.Fatal(err)
		}
		return resp.Header.Revision
	}
	before := revision()
	// Steps small enough for every lease, but in sum beyond each of them.
	l := m.leads()
	for range 20 {
		turned.advance(time.Second * 2)
		for server, lease := range map[int]uint64{1: one.LeaseID, 2: two.LeaseID} {
			report[0].UUID = serverReportOf(server).Devices[0].UUID
			name := fmt.Sprintf("sds%d", server)
			if known, err := c.RenewServer(t.Context(), name, lease, report); !known || err != nil {
				t.Fatalf("renewal: %v, %v", known, err)
			}
		}
		lost, err := c.RenewSession(t.Context(), "c1", held(s))
		if err != nil || len(lost) != 0 {
			t.Fatalf("lost %v, %v", lost, err)
		}
		if err := l.expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if after := revision(); after != before {
		t.Errorf("renewals moved etcd's revision from %d to %d", before, after)
	}
	devices, err := c.ListDevices(t.Context())
	if err != nil || len(devices) != 2 || devices[0].Used != 5<<20 || !devices[0].Up {
		t.Errorf("devices %v, %v", devices, err)
	}

	// Server 2 and the client fall silent.
	for range 4 {
		turned.advance(2 * time.Second)
		report[0].UUID = serverReportOf(1).Devices[0].UUID
		if known, err := c.RenewServer(t.Context(), "sds1", one.LeaseID, report); !known || err != nil {
			t.Fatalf("renewal: %v, %v", known, err)
		}
	}
	f.until(t, "device 2 is down and device 1 is not", func(m *cluster.Map) bool {
		return m.Devices[2] != nil && !m.Devices[2].Up && m.Devices[1].Up
	})
	if known, err := c.RenewServer(t.Context(), "sds2", two.LeaseID, nil); known || err != nil {
		t.Errorf("a lease that ran out is known: %v, %v", known, err)
	}
	register(t, c, 2)
	f.until(t, "device 2 is back", func(m *cluster.Map) bool { return m.Devices[2].Up })
	turned.advance(25 * time.Second)
	_, err = c.Attach(t.Context(), client.AttachRequest{Volume: "v", Client: "c2", Host: "h2"})
	if err != nil {
		t.Errorf("attaching after the holder's lease ran out: %v", err)
	}
	lost, err := c.RenewSession(t.Context(), "c1", held(s))
	if err != nil || len(lost) != 1 {
		t.Errorf("the old holder is told that it lost %v, %v", lost, err)
	}
	kinds := map[string]bool{}
	if err := c.Events(t.Context(), 0, 0, false, func(e *pb.Event) { kinds[e.Kind] = true }); err != nil {
		t.Error(err)
	}
	for _, kind := range []string{"server-down", "server-up", "session-expired", "attached", "device-joined"} {
		if !kinds[kind] {
			t.Errorf("no event %s", kind)
		}
	}
}

// Goal: a server's farewell takes its devices down at once.
func TestFarewell(t *testing.T) {
	m := startMember(t, testConfig(t))
	c := newClient(t, m.Addr())
	r := register(t, c, 1)
	if _, err := c.RenewServer(t.Context(), "sds1", r.LeaseID, nil); err != nil {
		t.Fatal(err)
	}
	if servers, err := c.ListServers(t.Context()); err != nil || servers[0].Up {
		t.Errorf("servers %v, %v", servers, err)
	}
}

// Goal: of many clients that attach at the same time, one wins, and generations
// never repeat.
func TestAttachContention(t *testing.T) {
	m := startMember(t, testConfig(t))
	c := newClient(t, m.Addr())
	register(t, c, 1)
	create(t, c, "v", 1)
	var wait sync.WaitGroup
	var mu sync.Mutex
	won := map[cluster.Generation]bool{}
	for i := range 12 {
		wait.Go(func() {
			force := i%3 == 0
			s, err := c.Attach(t.Context(), client.AttachRequest{Volume: "v",
				Client: fmt.Sprint("c", i), Host: "h", Force: force})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil && won[s.Generation]:
				t.Errorf("generation %d was given twice", s.Generation)
			case err == nil:
				won[s.Generation] = true
			case force || !errors.Is(err, client.ErrRefused):
				t.Errorf("client %d: %v", i, err)
			}
		})
	}
	wait.Wait()
	if len(won) < 4 || len(won) > 5 {
		t.Errorf("%d of 12 got in, 4 of them by force", len(won))
	}
}

// Goal: servers that freed a deleted volume are heard, and its tombstone goes
// when the last one did.
func TestTombstonesGo(t *testing.T) {
	config := testConfig(t)
	config.ServerLease = time.Hour // nothing else happens
	m := startMember(t, config)
	c := newClient(t, m.Addr())
	leases := []uint64{register(t, c, 1).LeaseID, register(t, c, 2).LeaseID}
	v := create(t, c, "v", 2)
	if err := c.DeleteVolume(t.Context(), "v", false); err != nil {
		t.Fatal(err)
	}
	removed := func() int {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		n := -1
		err := c.WatchMap(ctx, nil, func(m *cluster.Map) { n = len(m.Removed); cancel() })
		if !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		return n
	}
	everything := follow(t, c)
	for i, lease := range leases {
		if n := removed(); n != 1 {
			t.Errorf("%d tombstones after %d of 2 devices are done", n, i)
		}
		r := serverReportOf(i + 1).Devices
		r[0].Freed = []cluster.VolumeID{cluster.VolumeID(v.Id)}
		if known, err := c.RenewServer(t.Context(), fmt.Sprintf("sds%d", i+1), lease, r); !known || err != nil {
			t.Fatal(known, err)
		}
		if err := m.leads().expire(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	if n := removed(); n != 0 {
		t.Errorf("%d tombstones after all devices are done", n)
	}
	// A whole map, as a client gets it now, must not be newer than what servers are
	// sent: they would refuse its flushes for ever.
	version := follow(t, newClient(t, m.Addr())).until(t, "there is anything", func(m *cluster.Map) bool {
		return m.Version > 0
	}).Version
	everything.until(t, "the version is that of a new client", func(m *cluster.Map) bool {
		return m.Version >= version
	})
}

// Goal: what was decided is there after a restart, numbers go on, and who
// watched goes on watching; the new process does not wait for the lease of the
// dead one.
func TestRestart(t *testing.T) {
	config := testConfig(t)
	m, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	uuid := m.Cluster()
	config.Listen = m.Addr()
	c := newClient(t, m.Addr())
	f := follow(t, c)
	register(t, c, 1)
	create(t, c, "v", 1)
	s, err := c.Attach(t.Context(), client.AttachRequest{Volume: "v", Client: "c1", Host: "h1"})
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	m = startMember(t, config)
	if m.Cluster() != uuid {
		t.Errorf("cluster %v became %v", uuid, m.Cluster())
	}
	lost, err := c.RenewSession(t.Context(), "c1", held(s))
	if err != nil || len(lost) != 0 {
		t.Errorf("the session after a restart: lost %v, %v", lost, err)
	}
	create(t, c, "w", 1)
	f.until(t, "the volume made after the restart is there", func(m *cluster.Map) bool {
		return m.VolumeByName("w") != nil && m.VolumeByName("v") != nil
	})
}

// Goal: a call written by hand works, and so do health and metrics.
func TestPlainHTTP(t *testing.T) {
	m := startMember(t, testConfig(t))
	register(t, newClient(t, m.Addr()), 1)
	post := func(method, body string) (int, map[string]any) {
		resp, err := http.Post("http://"+m.Addr()+"/braid.mdm.v1.Mdm/"+method, "application/json",
			strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		answer := map[string]any{}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, answer
	}
	if code, answer := post("CreateVolume", `{"name":"v","size":"1073741824","replicas":1}`); code != 200 {
		t.Errorf("%d %v", code, answer)
	}
	if code, answer := post("Status", `{}`); code != 200 || answer["health"] != "ok" ||
		answer["volumes"] != 1.0 {
		t.Errorf("%d %v", code, answer)
	}
	code, answer := post("CreateVolume", `{"name":"v","size":"4096"}`)
	if code != 409 || answer["code"] != "already_exists" {
		t.Errorf("%d %v", code, answer)
	}
	for path, want := range map[string]string{"/healthz": `"leads":true`, "/metrics": "braid_devices 1"} {
		resp, err := http.Get("http://" + m.Addr() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil || resp.StatusCode != 200 || !strings.Contains(string(body), want) {
			t.Errorf("%s: %d %s %v", path, resp.StatusCode, body, err)
		}
	}
	http.DefaultClient.CloseIdleConnections()
}

// Goal: garbage costs the connection that it came on.
func TestGarbage(t *testing.T) {
	m := startMember(t, testConfig(t))
	for _, text := range []string{"\x00\x01\x02garbage\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\nnonsense nonsense nonsense",
		"POST /braid.mdm.v1.Mdm/Status HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n" +
			"Content-Length: 99999999999\r\n\r\n{"} {
		conn, err := net.Dial("tcp", m.Addr())
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, text)
		conn.Close()
	}
	if _, err := newClient(t, m.Addr()).Status(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestBadConfigs(t *testing.T) {
	m := startMember(t, testConfig(t))
	for _, c := range []struct {
		change func(*Config)
		words  []string
	}{
		{func(c *Config) { c.DataDir = "" }, []string{"--data-dir"}},
		{func(c *Config) { c.Listen = "0.0.0.0:0" }, []string{"--insecure", "0.0.0.0:0"}},
		{func(c *Config) { c.Listen = ":0" }, []string{"--insecure"}},
		{func(c *Config) { c.Listen = "nonsense" }, []string{"HOST:PORT"}},
		{func(c *Config) { c.Listen = m.Addr() }, []string{"in use", "--listen"}},
		{func(c *Config) { c.DataDir = m.config.DataDir }, []string{m.config.DataDir, "in use by another mdm"}},
		{func(c *Config) { c.Name = "a b" }, []string{"a b"}},
		{func(c *Config) { c.Name, c.Cluster = "", "a=http://127.0.0.1:1" }, []string{"--name"}},
		{func(c *Config) { c.Cluster = "a=http://127.0.0.1:1" }, []string{"--name m is not in it"}},
		{func(c *Config) { c.Cluster = "m=127.0.0.1:1" }, []string{"NAME=http://"}},
		{func(c *Config) { c.Cluster = "m=http://127.0.0.1:1,m=http://127.0.0.1:2" }, []string{"twice"}},
		{func(c *Config) { c.Cluster = "m=http://192.0.2.1:1" }, []string{"--insecure"}},
		{func(c *Config) { c.Cluster, c.Etcd = "m=http://127.0.0.1:1", []string{"x"} },
			[]string{"one of them"}},
		{func(c *Config) { c.Etcd = []string{"http://127.0.0.1:1"} }, []string{"etcd", "--etcd"}},
	} {
		config := testConfig(t)
		c.change(&config)
		started, err := Start(t.Context(), config)
		if err == nil {
			t.Errorf("started with %+v", config)
			started.Close()
			continue
		}
		for _, w := range c.words {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%q does not mention %q", err, w)
			}
		}
	}
}

// Goal: without any member a call ends with what to look at.
func TestUnreachable(t *testing.T) {
	c, err := client.New([]string{"127.0.0.1:1"}, client.Options{Patience: 100 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	_, err = c.Status(t.Context())
	if !errors.Is(err, client.ErrUnreachable) || !strings.Contains(err.Error(), "127.0.0.1:1") ||
		!strings.Contains(err.Error(), "BRAID_MDM") {
		t.Errorf("%v", err)
	}
	for _, addrs := range [][]string{nil, {""}, {"nohost"}, {"a:1,b"}} {
		if _, err := client.New(addrs, client.Options{}); err == nil {
			t.Errorf("a client of %q", addrs)
		}
	}
}
