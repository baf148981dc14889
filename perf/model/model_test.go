// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
	"testing"
)

// plain is a cluster in which every resource has a limit that is easy to compute.
func plain() (Cluster, Costs) {
	c := Cluster{Servers: 4, DisksPerServer: 2, CoresPerServer: 4, Clients: 2, CoresPerClient: 2, VolumesPerClient: 2,
		ServerNet: 1e9, ClientNet: 1e9, RoundTripUs: 50, Replicas: 2,
		Disk: Disk{ReadIOPS: 100e3, WriteIOPS: 50e3, ReadBytes: 1e9, WriteBytes: 0.5e9, ReadLatencyUs: 80}}
	k := Costs{ClientRead: Line{Fixed: 5}, ClientWrite: Line{Fixed: 10}, ServerRead: Line{Fixed: 4},
		ServerWrite: Line{Fixed: 8}, ReadLatency: 20}
	return c, k
}

func near(a, b float64) bool { return math.Abs(a-b) <= 1e-6*math.Max(math.Abs(a), math.Abs(b)) }

// Goal: each resource gives the limit that one computes by hand. Method: reads and
// writes of a cluster with round figures.
func TestLimits(t *testing.T) {
	c, k := plain()
	find := func(l Load, resource string) float64 {
		for _, r := range c.Limits(k, l) {
			if r.Resource == resource {
				return r.IOPS
			}
		}
		return 0
	}
	reads, writes := Load{Bytes: 4096, Reads: 1}, Load{Bytes: 4096}
	for _, x := range []struct {
		load     Load
		resource string
		want     float64
	}{
		{reads, ClientCPU, 4e6 / 5},
		{writes, ClientCPU, 4e6 / 10},
		{reads, VolumeLoop, 4e6 / 5},
		{reads, ServerCPU, 16e6 / 4},
		{writes, ServerCPU, 16e6 / 16}, // two copies
		{reads, DeviceLoop, 8e6 / 4},
		{reads, DiskTime, 8 * 100e3},
		{writes, DiskTime, 8 * 50e3 / 2},
		{writes, DiskBytes, 8 * 0.5e9 / 8192},
		{reads, ClientIn, 2e9 / wire(4096)},
		{writes, ClientOut, 2e9 / (2 * wire(4096))},
		{writes, ServerIn, 4e9 / (2 * wire(4096))},
	} {
		if got := find(x.load, x.resource); !near(got, x.want) {
			t.Errorf("%v, %s: %.0f, expected %.0f", x.load, x.resource, got, x.want)
		}
	}
	if got := c.Throughput(k, writes); got.Resource != DiskTime {
		t.Errorf("writes end at the %s", got.Resource)
	}
}

// Goal: more servers never do less, and stop to help where the clients are the
// limit. Method: throughput over the number of servers.
func TestMoreServersTurn(t *testing.T) {
	c, k := plain()
	l := Load{Bytes: 4096, Reads: 0.7}
	turn := c.Turn(k, l, 1000)
	if turn < 1 || turn >= 1000 {
		t.Fatalf("the clients are the limit from %d servers on", turn)
	}
	before := 0.0
	for n := 1; n < 2*turn+4; n++ {
		c.Servers = n
		now := c.Throughput(k, l).IOPS
		if now < before || n > turn+1 && !near(now, before) || n <= turn && now <= before {
			t.Errorf("%d servers do %.0f, one fewer %.0f, the turn is at %d", n, now, before, turn)
		}
		before = now
	}
}

// Goal: latency starts at the idle latency, grows with load and ends at the limit;
// the knee lies between. Method: sampled.
func TestLatencyAndKnee(t *testing.T) {
	c, k := plain()
	l := Load{Bytes: 4096, Reads: 1}
	limit := c.Throughput(k, l).IOPS
	idle := c.Latency(k, l, 0)
	if want := 50 + 80 + 20 + 2*4096/1e9*1e6; !near(idle, want) {
		t.Errorf("idle latency %.2f, expected %.2f", idle, want)
	}
	before := 0.0
	for u := 0.0; u < 1; u += 0.01 {
		now := c.Latency(k, l, limit*u)
		if now <= before {
			t.Errorf("latency falls at %.2f of the limit", u)
		}
		before = now
	}
	if !math.IsInf(c.Latency(k, l, limit), 1) {
		t.Error("there is a latency at the limit")
	}
	if x, y := c.Knee(k, l); x <= 0.3*limit || x >= limit || y <= idle {
		t.Errorf("the knee is at %.0f of %.0f, %.0f µs", x, limit, y)
	}
}

// Goal: a cost measured at two sizes is a line through both.
func TestThrough(t *testing.T) {
	l := Through(4096, 10, 1<<20, 300)
	if !near(l.At(4096), 10) || !near(l.At(1<<20), 300) {
		t.Errorf("%+v gives %.2f and %.2f", l, l.At(4096), l.At(1<<20))
	}
	if l := Through(4096, 10, 1<<20, 5); !near(l.At(1<<20), 10) {
		t.Errorf("a large I/O is cheaper than a small one: %+v", l)
	}
}

// Goal: burdens grow with the fleet and break where their limit is. Method: the
// point found is the first at which the limit is exceeded.
func TestFleet(t *testing.T) {
	f, traits := Fleet{Servers: 100, DisksPerServer: 10, Volumes: 10_000, Attached: 1000, Replicas: 2}, Measured()
	if g := f.Groups(traits); g != 65536 {
		t.Errorf("%v groups", g)
	}
	const what = "keep-alive of an idle volume, its client"
	at := f.BreaksAt(traits, what, 100_000)
	share := func(servers int) float64 {
		g := f
		g.Servers = servers
		for _, b := range g.Burdens(traits) {
			if b.What == what {
				return b.Share()
			}
		}
		return 0
	}
	if at < 2 || share(at) <= 1 || share(at-1) > 1 {
		t.Errorf("it breaks at %d servers with %.2f of the limit", at, share(at))
	}
	for _, b := range f.Burdens(traits) {
		if b.Value <= 0 || b.Limit <= 0 || b.Why == "" {
			t.Errorf("%+v", b)
		}
	}
}
