// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

// Goal: a manager that goes away stops nothing that is served; one that was
// never there means "try again" until it comes.
func TestManagerAway(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Auto, m, d)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	m.setAway(true)
	calls := func() int {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.calls
	}
	before := calls()
	eventually(t, "some failed renewals", func() bool { return calls() > before+2 })
	p.write(0, 0, pattern(1, 4096))
	p.flush()
	p.close()
	r.stop()

	// A restart while it is away: the generation is not known, nothing is served.
	r = startRig(t, loop.Auto, m, d.reopened())
	p = r.dial(0)
	req := transport.OpenRequest{Volume: uint64(testVolume), Generation: 1}
	p.send(transport.Header{Op: transport.OpOpen}, req.Encode(make([]byte, transport.OpenRequestSize)))
	if rep := p.receive(); rep.Status != transport.StatusRetry {
		t.Errorf("open without a map: %v, want retry", rep.Status)
	}
	m.setAway(false)
	m.edit(func(*cluster.Map) {})
	if s := p.open(1); s != transport.StatusOK {
		t.Errorf("open after the manager's return: %v", s)
	}
	p.close()
	r.stop()
}

// Goal: a fresh device joins the manager's cluster for good; a manager of
// another cluster ends the server with an error that names both.
func TestJoinsOneCluster(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Auto, m, d)
	eventually(t, "the device is registered with its start counter", func() bool {
		return m.report(r.uuids[0]).StartCounter > 0
	})
	r.stop()
	again := d.reopened()
	if id, err := store.ReadIdentity(again); err != nil || id.Cluster != m.cluster {
		t.Fatalf("the device says cluster %v, %v", id.Cluster, err)
	}
	other := newFakeManager()
	r = startRig(t, loop.Auto, other, again)
	select {
	case err := <-r.srv.Failed():
		for _, id := range []cluster.UUID{m.cluster, other.cluster} {
			if !strings.Contains(err.Error(), id.String()) {
				t.Errorf("the error does not name cluster %v: %v", id, err)
			}
		}
	case <-time.After(patience):
		t.Error("the server goes on with a manager of another cluster")
	}
	r.stop()
}

// Goal: a client of another cluster, or of a device that is not here, is told so.
func TestHelloRefusals(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Auto, m, d)
	p := r.dial(0)
	for _, c := range []struct {
		hello transport.Hello
		want  error
	}{
		{transport.Hello{Cluster: newUUID(), Device: r.uuids[0], Role: transport.Client}, transport.ErrWrongCluster},
		{transport.Hello{Cluster: m.cluster, Device: newUUID(), Role: transport.Client}, transport.ErrWrongDevice},
	} {
		_, _, err := transport.Dial(t.Context(), p.loop, r.srv.Addr().String(), c.hello,
			func(transport.HelloReply) transport.Handler { return p })
		if !errors.Is(err, c.want) {
			t.Errorf("dial: %v, want %v", err, c.want)
		}
	}
	p.close()
	r.stop()
}

// Goal: what the manager refuses is not served, the other device is.
func TestRefusedDevice(t *testing.T) {
	bad, good := newMemDisk(testDiskSize), newMemDisk(testDiskSize)
	format(t, bad)
	format(t, good)
	m := newFakeManager()
	id, _ := store.ReadIdentity(bad)
	m.refuse[id.Device] = "an older copy of this device is in service"
	r := startRig(t, loop.Auto, m, bad, good)
	q := r.dial(1)
	if s := q.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	q.write(0, 0, pattern(1, 4096))
	if after, _ := store.ReadIdentity(bad); !after.Cluster.IsZero() {
		t.Error("the refused device has joined the cluster")
	}
	q.close()
	r.stop()
}

// Goal: the same device twice, and devices of two clusters, are refused at the
// start with a message that names them.
func TestStartRefusals(t *testing.T) {
	one, two := newUUID(), newUUID()
	start := func(a, b *memDisk) error {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		srv, err := Start(Config{}, ln, []Disk{{"/dev/a", a}, {"/dev/b", b}}, newFakeManager())
		if err == nil {
			t.Error("started")
			_ = srv.Close(context.Background())
			return errors.New("started")
		}
		return err
	}
	a, b := newMemDisk(testDiskSize), newMemDisk(testDiskSize)
	for d, id := range map[*memDisk]cluster.UUID{a: one, b: two} {
		if _, err := store.Format(d, newUUID(), id, nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := start(a.reopened(), b.reopened()); !strings.Contains(err.Error(), one.String()) ||
		!strings.Contains(err.Error(), two.String()) {
		t.Errorf("two clusters: %v", err)
	}
	if err := start(a.reopened(), a.reopened()); !strings.Contains(err.Error(), "/dev/a and /dev/b") {
		t.Errorf("the same device twice: %v", err)
	}
	if err := start(newMemDisk(testDiskSize), b.reopened()); !errors.Is(err, store.ErrNotFormatted) {
		t.Errorf("not formatted: %v", err)
	}
}

// Goal: a deleted volume gives its space back and the manager hears of it.
func TestDeletedVolumeIsFreed(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Auto, m, d)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	for i := range 8 {
		p.write(uint64(i), 0, pattern(i, 4096))
	}
	p.flush()
	eventually(t, "the space is counted", func() bool { return m.report(r.uuids[0]).Used == 8*cluster.ChunkSize })
	m.edit(func(next *cluster.Map) {
		delete(next.Volumes, testVolume)
		next.Removed[testVolume] = true
	})
	eventually(t, "the manager hears that nothing is left", func() bool {
		rep := m.report(r.uuids[0])
		return len(rep.Freed) == 1 && rep.Freed[0] == testVolume && rep.Used == 0
	})
	p.want(transport.StatusFenced, readHeader(0, 0, 4096), nil)
	m.edit(func(next *cluster.Map) { delete(next.Removed, testVolume) })
	eventually(t, "the device forgets it", func() bool { return len(m.report(r.uuids[0]).Freed) == 0 })
	p.close()
	r.stop()
}

// Goal: the rate of resyncs that the manager has set, and the latency that they may
// cause, reach each device, and so does their end.
func TestResyncRateIsSet(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Auto, m, d)
	eventually(t, "the device serves", func() bool { return r.srv.devices[0].live.Load() })
	for _, rate := range []uint64{9 << 20, 0} {
		m.mu.Lock()
		m.resyncs, m.patience = rate, time.Duration(rate)
		m.mu.Unlock()
		eventually(t, "the device has heard", func() bool {
			var now int64
			var p99 time.Duration
			dev := r.srv.devices[0]
			dev.loop.Call(func() { now, p99 = dev.target.core.Limited(), dev.target.core.Aimed() })
			return now == int64(rate) && p99 == time.Duration(rate).Truncate(time.Microsecond)
		})
	}
	r.stop()
}

// Goal: every counter can be collected, before and after devices have started.
func TestMetrics(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	r := startRig(t, loop.Auto, newFakeManager(), d)
	reg := prometheus.NewPedanticRegistry()
	if err := reg.Register(r.srv.Collector()); err != nil {
		t.Fatal(err)
	}
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	p.write(0, 0, pattern(1, 4096))
	p.want(transport.StatusInvalid, readHeader(0, 1, 1), nil)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	got := map[string]float64{}
	for _, f := range families {
		for _, x := range f.Metric {
			got[f.GetName()] = x.GetCounter().GetValue() + x.GetGauge().GetValue()
		}
	}
	if got["braid_sds_device_up"] != 1 || got["braid_sds_frames_total"] < 2 || got["braid_sds_refusals_total"] < 1 {
		t.Errorf("metrics: %v", got)
	}
	p.close()
	r.stop()
}
