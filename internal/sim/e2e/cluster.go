// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	crand "crypto/rand"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm"
	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/server"
	"braid/server/store"
	"braid/stripe"
	"braid/transport"
	"braid/transport/bio"
	"braid/transport/buf"
	"braid/transport/loop"
)

// Patience is how long anything may take before a test gives up.
const Patience = 60 * time.Second

// Cluster is a running cluster and a loop for volumes.
type Cluster struct {
	T    testing.TB
	Mdm  *mdm.Member
	Api  *client.Client
	Node []*Node
	Loop *loop.Loop
	Pool *buf.Pool

	mdmDir, mdmAddr string
	restore         string // backup that mdm starts from; empty: none
	rng             *rand.Rand
	volumes         int
	alSlots         int
	waits           bool
	drills          bool
}

// Node is one data server.
type Node struct {
	Name string
	Addr string
	Disk []*Disk
	// Died gets something when a drill has killed it; Kill then shall follow.
	Died chan struct{}
	srv  *server.Server // nil: it does not run
	c    *Cluster
}

// Options shape a cluster.
type Options struct {
	Servers   int // 0: 3
	Devices   int // of each server; 0: 1
	DiskSize  int64
	Engine    loop.Engine
	Consumers []buf.Consumer // of the pool, for requests
	ALSlots   int
	Waits     bool // groups wait for copies that are away: mdm takes none out
	Drills    bool // they are allowed
}

// Start makes a cluster that ends with the test.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Servers == 0 {
		o.Servers = 3
	}
	if o.Devices == 0 {
		o.Devices = 1
	}
	if o.DiskSize == 0 {
		o.DiskSize = 256 << 20
	}
	c := &Cluster{T: t, mdmDir: t.TempDir(), mdmAddr: "127.0.0.1:0",
		rng: rand.New(rand.NewPCG(1, 2)), alSlots: o.ALSlots, waits: o.Waits, drills: o.Drills}
	c.StartMdm()
	t.Cleanup(func() { _ = c.Mdm.Close() })
	var err error
	if c.Api, err = client.New([]string{c.mdmAddr}, client.Options{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Api.Close() })
	t.Cleanup(func() { // also of those that join later: after what uses them has ended
		for _, n := range c.Node {
			n.Stop()
		}
	})
	for range o.Servers {
		c.AddNode(o.Devices, o.DiskSize)
	}
	c.AwaitDevices(o.Servers * o.Devices)
	c.startLoop(o)
	return c
}

// AddNode starts one more server, with empty disks.
func (c *Cluster) AddNode(devices int, size int64) *Node {
	c.T.Helper()
	n := &Node{}
	n.Name = fmt.Sprintf("sds%d", len(c.Node)+1)
	n.Addr, n.c, n.Died = "127.0.0.1:0", c, make(chan struct{}, 1)
	for range devices {
		d := NewDisk(size)
		var id cluster.UUID
		_, _ = crand.Read(id[:])
		if _, err := store.Format(d, id, cluster.UUID{}, nil); err != nil {
			c.T.Fatal(err)
		}
		n.Disk = append(n.Disk, d)
	}
	c.Node = append(c.Node, n)
	n.Start()
	return n
}

func (c *Cluster) startLoop(o Options) {
	c.T.Helper()
	consumers := o.Consumers
	if len(consumers) == 0 {
		consumers = []buf.Consumer{{Name: "tests", Size: 1 << 20, Count: 64}}
	}
	var err error
	if c.Pool, err = buf.NewPool(consumers...); err != nil {
		c.T.Fatal(err)
	}
	c.Pool.Poison()
	if c.Loop, err = loop.New(loop.Options{Engine: o.Engine, Name: "client"}); err != nil {
		c.T.Fatal(err)
	}
	c.Loop.Start()
	c.T.Cleanup(func() { _ = c.Loop.Close() })
}

// StartMdm starts the metadata manager, again where it ran before.
func (c *Cluster) StartMdm() {
	c.T.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	m, err := mdm.Start(ctx, mdm.Config{DataDir: c.mdmDir, Listen: c.mdmAddr, Name: "mdm1",
		ServerLease: 2 * time.Second, SessionLease: 3 * time.Second,
		AutoEvict: !c.waits, Probe: transport.Probe, Restore: c.restore, AllowDrills: c.drills,
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		c.T.Fatal(err)
	}
	c.Mdm, c.mdmAddr = m, m.Addr()
}

// StopMdm stops it.
func (c *Cluster) StopMdm() {
	c.T.Helper()
	if err := c.Mdm.Close(); err != nil {
		c.T.Fatalf("stop mdm: %v", err)
	}
}

// AwaitDevices waits until so many devices are up.
func (c *Cluster) AwaitDevices(count int) {
	c.T.Helper()
	Eventually(c.T, fmt.Sprintf("%d devices are up", count), func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		s, err := c.Api.Status(ctx)
		return err == nil && int(s.DevicesUp) == count
	})
}

// AwaitHealthy waits until every group has all of its copies in sync.
func (c *Cluster) AwaitHealthy() {
	c.T.Helper()
	Eventually(c.T, "every copy is in sync", func() bool {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		s, err := c.Api.Status(ctx)
		return err == nil && s.Health == "ok" && s.PgsDegraded == 0
	})
}

// Start serves the node's disks, at the same address as before.
func (n *Node) Start() {
	t := n.c.T
	t.Helper()
	var ln net.Listener
	Eventually(t, "listen on "+n.Addr, func() (ok bool) {
		var err error
		ln, err = net.Listen("tcp", n.Addr)
		return err == nil
	})
	n.Addr = ln.Addr().String()
	var disks []server.Disk
	for i, d := range n.Disk {
		disks = append(disks, server.Disk{Path: fmt.Sprintf("%s-disk%d", n.Name, i), Backing: d})
	}
	// Its own client: a server does not share connections with anybody.
	api, err := client.New([]string{n.c.mdmAddr}, client.Options{})
	if err != nil {
		t.Fatal(err)
	}
	n.srv, err = server.Start(server.Config{Name: n.Name, Store: store.Config{ALSlots: n.c.alSlots},
		Drills: n.c.drills, Die: func() { n.Died <- struct{}{} }}, ln, disks, api)
	if err != nil {
		t.Fatalf("start %s: %v", n.Name, err)
	}
}

// Stop ends the server cleanly.
func (n *Node) Stop() {
	if n.srv == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if err := n.srv.Close(ctx); err != nil {
		n.c.T.Logf("stop %s: %v", n.Name, err)
	}
	n.srv = nil
}

// Kill ends the server as kill -9 does, or a power cut: the disks die under it
// first, so nothing that it does afterwards counts.
func (n *Node) Kill(powerLoss bool) {
	for i, d := range n.Disk {
		n.Disk[i] = d.die(powerLoss, n.c.rng)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	_ = n.srv.Close(ctx) // it fails, as its disks do
	n.srv = nil
}

// CreateVolume makes a volume with a name of its own.
func (c *Cluster) CreateVolume(r *pb.CreateVolumeRequest) string {
	c.T.Helper()
	c.volumes++
	if r.Name == "" {
		r.Name = fmt.Sprintf("v%d", c.volumes)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := c.Api.CreateVolume(ctx, r); err != nil {
		c.T.Fatal(err)
	}
	return r.Name
}

// Attach attaches a volume as a client of its own.
func (c *Cluster) Attach(name string, edit func(*stripe.Config)) (*stripe.Volume, error) {
	cfg := stripe.Config{Mdm: c.Api, Loop: c.Loop, Pool: c.Pool, Volume: name, Host: "test"}
	_, _ = crand.Read(cfg.ClientID[:])
	if edit != nil {
		edit(&cfg)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	return stripe.Attach(ctx, cfg)
}

// MustAttach attaches, and detaches when the test ends.
func (c *Cluster) MustAttach(name string) *stripe.Volume {
	c.T.Helper()
	v, err := c.Attach(name, nil)
	if err != nil {
		c.T.Fatal(err)
	}
	c.T.Cleanup(func() { _ = Detach(v, Patience) })
	return v
}

// Detach detaches within so much time.
func Detach(v *stripe.Volume, patience time.Duration) error {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return v.Detach(ctx)
}

// Call is a request that a test waits for.
type Call struct {
	bio.Request
	done chan struct{}
}

// RequestDone is bio.Completer.
func (c *Call) RequestDone(*bio.Request) { close(c.done) }

// Begin submits a request; its memory is the caller's.
func Begin(v *stripe.Volume, r bio.Request) *Call {
	call := &Call{Request: r, done: make(chan struct{})}
	call.Done = call
	v.Loop().Post(func() { v.Submit(&call.Request) })
	return call
}

// Ended reports whether the request has ended.
func (c *Call) Ended() bool {
	select {
	case <-c.done:
		return true
	default:
		return false
	}
}

// Wait returns how the request ended; bio.ErrShutdown also when it did not.
func (c *Call) Wait(patience time.Duration) error {
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-c.done:
		return c.Err
	case <-timer.C:
		return fmt.Errorf("%s [%d,+%d) has not ended in %s", c.Op, c.Off, c.Len, patience)
	}
}

// Do submits a request and waits for it.
func Do(t testing.TB, v *stripe.Volume, r bio.Request) *Call {
	t.Helper()
	call := Begin(v, r)
	if err := call.Wait(Patience); err != nil {
		t.Fatalf("%s [%d,+%d): %v; waiting: %+v", r.Op, r.Off, r.Len, err, v.Waiting())
	}
	return call
}

// Write, Read and Flush are the usual calls.
func Write(t testing.TB, v *stripe.Volume, off uint64, data []byte) {
	t.Helper()
	Do(t, v, bio.Request{Op: bio.Write, Off: off, Len: uint64(len(data)), Data: data})
}

// Read returns the bytes of a range.
func Read(t testing.TB, v *stripe.Volume, off uint64, length int) []byte {
	t.Helper()
	data := make([]byte, length)
	Do(t, v, bio.Request{Op: bio.Read, Off: off, Len: uint64(length), Data: data})
	return data
}

// Flush flushes.
func Flush(t testing.TB, v *stripe.Volume) {
	t.Helper()
	Do(t, v, bio.Request{Op: bio.Flush})
}

// Eventually waits until ok.
func Eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(Patience)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}
