// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"net"
	"net/url"
	"strings"
	"testing"
	"time"

	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap"

	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/mdm/state"
)

func freeURL(t *testing.T) url.URL {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return url.URL{Scheme: "http", Host: l.Addr().String()}
}

// externalEtcd runs an etcd with a client port, as somebody's own would.
func externalEtcd(t *testing.T) string {
	t.Helper()
	config := embed.NewConfig()
	config.Dir = t.TempDir()
	config.UnsafeNoFsync = true
	config.ZapLoggerBuilder = embed.NewZapLoggerBuilder(zap.NewNop())
	peer, clients := freeURL(t), freeURL(t)
	config.ListenPeerUrls, config.AdvertisePeerUrls = []url.URL{peer}, []url.URL{peer}
	config.ListenClientUrls, config.AdvertiseClientUrls = []url.URL{clients}, []url.URL{clients}
	config.InitialCluster = config.Name + "=" + peer.String()
	etcd, err := embed.StartEtcd(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(etcd.Close)
	<-etcd.Server.ReadyNotify()
	return clients.String()
}

func startOn(t *testing.T, etcd, name string) (*Member, Config) {
	t.Helper()
	c := testConfig(t)
	c.Name, c.Etcd, c.ServerLease = name, []string{etcd}, time.Hour // nobody renews here
	m, err := Start(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	return m, c
}

// Goal: on an etcd that is not ours, members share one cluster, a follower
// passes questions on and names the leader, and the other takes over at once
// when the leader leaves in an orderly way.
func TestExternalEtcd(t *testing.T) {
	etcd := externalEtcd(t)
	one, _ := startOn(t, etcd, "one")
	two, _ := startOn(t, etcd, "two")
	t.Cleanup(func() { two.Close() })
	if one.Cluster() != two.Cluster() || one.leads() == nil || two.leads() != nil {
		t.Fatalf("clusters %v and %v; one leads: %v", one.Cluster(), two.Cluster(), one.leads() != nil)
	}
	c := newClient(t, two.Addr())
	register(t, c, 1)
	create(t, c, "v", 1)
	st, err := newClient(t, two.Addr()).Status(t.Context())
	if err != nil || st.Leader != one.Addr() || len(st.Members) != 2 || len(st.Reasons) > 0 {
		t.Errorf("status from the follower: %v, %v", st, err)
	}
	if err := one.Close(); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	create(t, c, "w", 1)
	if took := time.Since(began); took > 5*time.Second {
		t.Errorf("the other took over after %v", took)
	}
	if two.leads() == nil {
		t.Error("the last member does not lead")
	}
}

// Goal: a large cluster fits through an etcd with default limits.
func TestExternalEtcdWithManyDevices(t *testing.T) {
	m, _ := startOn(t, externalEtcd(t), "one")
	t.Cleanup(func() { m.Close() })
	c := newClient(t, m.Addr())
	for s := range 10 {
		r := serverReportOf(s + 1)
		for d := range 9 {
			extra := r.Devices[0]
			extra.UUID[1] = byte(d + 1)
			r.Devices = append(r.Devices, extra)
		}
		if _, err := c.RegisterServer(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	create(t, c, "v", 2)
	s, err := c.Attach(t.Context(), client.AttachRequest{Client: "c", Host: "h"})
	if err != nil || len(s.Map.PGs[s.Volume.PGSet]) < 64*100/2 {
		t.Fatalf("%d groups, %v", len(s.Map.PGs[s.Volume.PGSet]), err)
	}
	dropped, _, err := c.DropReplica(t.Context(), client.DropRequest{Volume: s.Volume.ID, Generation: s.Generation,
		Device: 7})
	if err != nil || len(dropped) < 100 {
		t.Errorf("%d groups dropped, %v", len(dropped), err)
	}
}

// Goal: a leader that lost its place in etcd cannot write, and its callers find
// the next one.
func TestDeposedLeader(t *testing.T) {
	m := startMember(t, testConfig(t))
	c := newClient(t, m.Addr())
	register(t, c, 1)
	old := m.leads()
	if _, err := m.backend.client.Delete(t.Context(), old.guard.key); err != nil {
		t.Fatal(err)
	}
	err := old.change(t.Context(), func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.Lead("impostor", "", now), nil
	})
	if err != errDeposed {
		t.Errorf("the deposed leader's write gives %v", err)
	}
	if err := c.Events(t.Context(), 0, 0, false, func(e *pb.Event) {
		if strings.Contains(e.Text, "impostor") {
			t.Error("the deposed leader's write is there")
		}
	}); err != nil {
		t.Error(err)
	}
	create(t, c, "v", 1)
	if now := m.leads(); now == nil || now.guard.key == old.guard.key {
		t.Error("nobody leads anew")
	}
}

// Goal: a data directory is for one member of one cluster.
func TestIdentity(t *testing.T) {
	dir := t.TempDir()
	three := "a=http://127.0.0.1:1,b=http://127.0.0.1:2,c=http://127.0.0.1:3"
	first := Config{DataDir: dir, Name: "a", Cluster: three}
	if err := checkIdentity(first); err != nil {
		t.Fatal(err)
	}
	same := first
	same.Cluster = "c=http://127.0.0.1:3,b=http://127.0.0.1:2,a=http://127.0.0.1:1"
	if err := checkIdentity(same); err != nil {
		t.Errorf("the same members in another order: %v", err)
	}
	for _, other := range []Config{
		{DataDir: dir, Name: "a"},
		{DataDir: dir, Name: "b", Cluster: three},
		{DataDir: dir, Name: "a", Cluster: three + ",d=http://127.0.0.1:4"},
		{DataDir: dir, Name: "a", Etcd: []string{"http://127.0.0.1:1"}},
	} {
		if err := checkIdentity(other); err == nil || !strings.Contains(err.Error(), "--data-dir") {
			t.Errorf("%+v: %v", other, err)
		}
	}
	alone := Config{DataDir: t.TempDir(), Name: "m", Cluster: "m=http://127.0.0.1:1"}
	if err := checkIdentity(alone); err != nil {
		t.Fatal(err)
	}
	alone.Name, alone.Cluster = "n", "n=http://127.0.0.1:9"
	if err := checkIdentity(alone); err != nil {
		t.Errorf("one alone may change its name and port: %v", err)
	}
}

// Goal: what others are told can be reached by others.
func TestReachable(t *testing.T) {
	everywhere := &net.TCPAddr{IP: net.IPv4zero, Port: 7400}
	for _, c := range []struct {
		config Config
		addr   net.Addr
		want   string
	}{
		{Config{}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 5}, "127.0.0.1:5"},
		{Config{Advertise: "mdm1:7400"}, everywhere, "mdm1:7400"},
		{Config{Name: "a", Insecure: true, Cluster: "a=http://10.1.2.3:7401"}, everywhere, "10.1.2.3:7400"},
	} {
		if got, err := c.config.reachable(c.addr); err != nil || got != c.want {
			t.Errorf("%+v at %v: %s, %v; want %s", c.config, c.addr, got, err, c.want)
		}
	}
	got, err := Config{}.reachable(everywhere)
	if host, port, splitErr := net.SplitHostPort(got); err != nil || splitErr != nil || port != "7400" ||
		net.ParseIP(host).IsUnspecified() {
		t.Errorf("everywhere is told as %s, %v", got, err)
	}
}
