// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"strings"
	"sync"
	"testing"
	"time"

	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/stripe"
	"braid/transport"
	"braid/transport/bio"
	"braid/transport/bio/biotest"
)

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	rng := rand.New(rand.NewPCG(seed, 3))
	for i := range b {
		b[i] = byte(rng.Uint32())
	}
	return b
}

// Goal: a volume of a whole cluster is a block device like any other, and so is a single
// store, with nothing to stand in for it. Method: the conformance suite, with a fresh
// volume for each of its tests; the last shape is on one server with one device.
func TestConformance(t *testing.T) {
	t.Parallel()
	shapes := []struct {
		name    string
		servers int
		make    pb.CreateVolumeRequest
	}{
		{"default", 3, pb.CreateVolumeRequest{Size: 32 << 20, Replicas: 2}},
		{"small units, three copies", 3, pb.CreateVolumeRequest{Size: 16 << 20, Replicas: 3,
			StripeUnit: 4096, StripeWidth: 3}},
		{"one chunk wide, one copy", 3, pb.CreateVolumeRequest{Size: 16 << 20, Replicas: 1,
			StripeUnit: 1 << 20, StripeWidth: 1}},
		{"one store", 1, pb.CreateVolumeRequest{Size: 16 << 20, Replicas: 1}},
	}
	count := len(shapes)
	if testing.Short() {
		count = 1
	}
	for i := range count {
		t.Run(shapes[i].name, func(t *testing.T) {
			c := Start(t, Options{Servers: shapes[i].servers, Consumers: biotest.Consumers(), DiskSize: 1 << 30})
			conform(t, c, &shapes[i].make)
		})
	}
}

// conform runs the conformance suite on new volumes of one shape.
func conform(t *testing.T, c *Cluster, shape *pb.CreateVolumeRequest) {
	biotest.Run(t, func(t *testing.T) biotest.Harness {
		c.volumes++
		shape.Name = ""
		v, err := c.Attach(c.CreateVolume(shape), nil)
		if err != nil {
			t.Fatal(err)
		}
		return biotest.Harness{Device: v, Loop: c.Loop, Pool: c.Pool, Ops: 600, Close: func() {
			if err := Detach(v, Patience); err != nil {
				t.Errorf("detach: %v", err)
			}
		}}
	})
}

// Goal: a 1 MiB read goes to 8 chunks with one frame each, and a sequential
// write spreads over all devices within 10 %. Method: count frames and bytes.
func TestStriping(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{Devices: 2})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 256 << 20, Replicas: 2}))
	data := random(1<<20, 1)
	for off := uint64(0); off < 192<<20; off += 1 << 20 {
		Write(t, v, off, data)
	}
	before := v.Stats().Frames[transport.OpRead]
	if got := Read(t, v, 5<<20, 1<<20); !bytes.Equal(got, data) {
		t.Error("wrong bytes")
	}
	if n := v.Stats().Frames[transport.OpRead] - before; n != 8 {
		t.Errorf("a 1 MiB read took %d frames, want 8", n)
	}
	Flush(t, v)
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	var used []uint64
	Eventually(t, "the servers have reported what is used", func() bool {
		devices, err := c.Api.ListDevices(ctx)
		used = used[:0]
		total := uint64(0)
		for _, d := range devices {
			used = append(used, d.Used)
			total += d.Used
		}
		return err == nil && total >= 2*192<<20
	})
	low, high := used[0], used[0]
	for _, u := range used {
		low, high = min(low, u), max(high, u)
	}
	if mean := float64(2*192<<20) / float64(len(used)); float64(high) > 1.1*mean || float64(low) < 0.9*mean {
		t.Errorf("devices hold %v bytes: more than 10 %% from even", used)
	}
}

// Goal: every server may be killed, or lose its power, after a flush, and
// nothing is lost; I/O goes on afterwards. Method: as said, one after the other.
func TestServersComeBack(t *testing.T) {
	t.Parallel()
	for _, powerLoss := range []bool{false, true} {
		c := Start(t, Options{})
		v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
		want := random(8<<20, 7)
		for off := 0; off < len(want); off += 1 << 20 {
			Write(t, v, uint64(off), want[off:off+1<<20])
		}
		Flush(t, v)
		for i, n := range c.Node {
			n.Kill(powerLoss)
			n.Start()
			part := want[i*4096 : i*4096+300]
			copy(part, random(len(part), uint64(i)))
			Write(t, v, uint64(i*4096), part)
			Flush(t, v)
			for off := 0; off < len(want); off += 1 << 20 {
				if got := Read(t, v, uint64(off), 1<<20); !bytes.Equal(got, want[off:off+1<<20]) {
					t.Fatalf("power loss %v: after %s came back, wrong bytes in MiB %d", powerLoss, n.Name, off>>20)
				}
			}
		}
		if err := Detach(v, Patience); err != nil {
			t.Error(err)
		}
	}
}

// Goal: I/O to a server that is away waits, says for whom, and ends when the
// server is back. Reads go on from the other copy. Method: stop one server.
func TestAwayServerIsWaitedFor(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{Waits: true})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	want := random(1<<20, 9)
	Write(t, v, 0, want)
	Flush(t, v)
	c.Node[1].Stop()
	if got := Read(t, v, 0, 1<<20); !bytes.Equal(got, want) {
		t.Error("a read with one copy away returns wrong bytes")
	}
	next := random(1<<20, 10)
	write := Begin(v, bio.Request{Op: bio.Write, Len: 1 << 20, Data: next})
	Eventually(t, "the write is told to wait for sds2", func() bool {
		for _, w := range v.Waiting() {
			if w.Server == "sds2" && w.Requests == 1 && strings.Contains(w.Why, "not connected") {
				return true
			}
		}
		return false
	})
	c.Node[1].Start()
	if err := write.Wait(Patience); err != nil {
		t.Fatal(err)
	}
	if got := Read(t, v, 0, 1<<20); !bytes.Equal(got, next) {
		t.Error("wrong bytes after the server came back")
	}
}

// Goal: a detach ends in time although all servers are gone, and says what was
// left. Method: stop them with a write on its way.
func TestDetachWithoutServers(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	v, err := c.Attach(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	Write(t, v, 0, random(4096, 1))
	for _, n := range c.Node {
		n.Stop()
	}
	write := Begin(v, bio.Request{Op: bio.Write, Len: 4096, Data: random(4096, 2)})
	start := time.Now()
	err = Detach(v, 2*time.Second)
	if err == nil || !strings.Contains(err.Error(), "1 requests were abandoned") {
		t.Errorf("detach says %v", err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("detach took %s", took)
	}
	if err := write.Wait(Patience); !errors.Is(err, bio.ErrShutdown) {
		t.Errorf("the write ended with %v", err)
	}
}

// Goal: a second attach is refused, a forced one fences the first client, which
// is told. Method: two clients.
func TestForceFences(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	lost := make(chan error, 1)
	first, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Lost = func(err error) { lost <- err } })
	if err != nil {
		t.Fatal(err)
	}
	want := random(1<<20, 3)
	Write(t, first, 0, want)
	Flush(t, first)
	if _, err := c.Attach(name, nil); !errors.Is(err, client.ErrRefused) {
		t.Errorf("a second attach: %v, want it refused", err)
	}
	second, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Force = true })
	if err != nil {
		t.Fatal(err)
	}
	if got := Read(t, second, 0, 1<<20); !bytes.Equal(got, want) {
		t.Error("the second client reads wrong bytes")
	}
	Eventually(t, "the first client's writes fail", func() bool {
		w := Begin(first, bio.Request{Op: bio.Write, Len: 4096, Data: random(4096, 4)})
		return errors.Is(w.Wait(Patience), bio.ErrShutdown)
	})
	select {
	case err := <-lost:
		if !strings.Contains(err.Error(), "attached elsewhere") {
			t.Errorf("the reason is %v", err)
		}
	case <-time.After(Patience):
		t.Error("nobody was told")
	}
	if got := Read(t, second, 0, 1<<20); !bytes.Equal(got, want) {
		t.Error("the fenced client's write came through")
	}
	if err := Detach(first, Patience); err == nil {
		t.Error("detaching a lost volume says nothing")
	}
	if err := Detach(second, Patience); err != nil {
		t.Error(err)
	}
}

// Goal: I/O goes on while the metadata manager is away, for longer than the
// session's lease, and the session survives its return. Method: stop it.
func TestManagerAway(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	want := random(1<<20, 5)
	Write(t, v, 0, want)
	c.StopMdm()
	for end := time.Now().Add(4 * time.Second); time.Now().Before(end); {
		Write(t, v, 1<<20, want)
		if got := Read(t, v, 0, 1<<20); !bytes.Equal(got, want) {
			t.Fatal("wrong bytes")
		}
	}
	c.StartMdm()
	c.AwaitDevices(3)
	Write(t, v, 2<<20, want)
	Flush(t, v)
	if err := Detach(v, Patience); err != nil {
		t.Error(err)
	}
}

// Goal: several connections to each device serve one session together, also
// while one server comes and goes. Method: writes and reads around a restart.
func TestSeveralConnectionsPerDevice(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	v, err := c.Attach(name, func(cfg *stripe.Config) { cfg.ConnsPerDevice = 2 })
	if err != nil {
		t.Fatal(err)
	}
	want := random(16<<20, 8)
	var calls []*Call
	for off := 0; off < len(want); off += 1 << 19 {
		calls = append(calls, Begin(v, bio.Request{Op: bio.Write, Off: uint64(off), Len: 1 << 19,
			Data: want[off : off+1<<19]}))
		if off == 4<<20 {
			c.Node[2].Stop()
			c.Node[2].Start()
		}
	}
	for _, call := range calls {
		if err := call.Wait(Patience); err != nil {
			t.Fatalf("%v; waiting: %+v", err, v.Waiting())
		}
	}
	Flush(t, v)
	for off := 0; off < len(want); off += 1 << 20 {
		if got := Read(t, v, uint64(off), 1<<20); !bytes.Equal(got, want[off:off+1<<20]) {
			t.Fatalf("wrong bytes in MiB %d", off>>20)
		}
	}
	if err := Detach(v, Patience); err != nil {
		t.Error(err)
	}
}

// Goal: servers that restart cleanly under load cost no byte, and no copy for
// long: each is in sync again soon, by itself. Method: writers with ranges of
// their own, a model of each, one restart after the other.
func TestRestartsUnderLoad(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	const workers, span = 4, 8 << 20
	stop := make(chan struct{})
	var group sync.WaitGroup
	for w := range workers {
		group.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 11))
			model := make([]byte, span)
			for round := 0; ; round++ {
				select {
				case <-stop:
					if round > 50 {
						return
					}
				default:
				}
				length := 1 + rng.IntN(200_000)
				off := rng.IntN(span - length)
				data := random(length, uint64(round))
				copy(model[off:], data)
				at := uint64(w*span + off)
				write := Begin(v, bio.Request{Op: bio.Write, Off: at, Len: uint64(length), Data: data})
				back := make([]byte, length)
				read := Begin(v, bio.Request{Op: bio.Read, Off: at, Len: uint64(length), Data: back})
				flush := Begin(v, bio.Request{Op: bio.Flush})
				for _, call := range []*Call{write, read, flush} {
					if err := call.Wait(Patience); err != nil {
						t.Errorf("%v; waiting: %+v", err, v.Waiting())
						return
					}
				}
				if !bytes.Equal(back, model[off:off+length]) {
					t.Errorf("worker %d, round %d: wrong bytes at %d", w, round, at)
					return
				}
			}
		})
	}
	for i := range 6 {
		n := c.Node[i%3]
		n.Stop()
		n.Start()
		c.AwaitHealthy()
	}
	close(stop)
	group.Wait()
	c.AwaitHealthy()
}

// Goal: a resize reaches the volume. Method: grow it, write beyond the old end.
func TestResize(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	sizes := make(chan uint64, 8)
	v, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Resized = func(size uint64) { sizes <- size } })
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := c.Api.ResizeVolume(ctx, name, 96<<20, false); err != nil {
		t.Fatal(err)
	}
	select {
	case size := <-sizes:
		if size != 96<<20 {
			t.Errorf("resized to %d", size)
		}
	case <-ctx.Done():
		t.Fatal("nobody was told")
	}
	want := random(4096, 6)
	Write(t, v, 96<<20-4096, want)
	if got := Read(t, v, 96<<20-4096, 4096); !bytes.Equal(got, want) {
		t.Error("wrong bytes at the new end")
	}
	if err := Detach(v, Patience); err != nil {
		t.Error(err)
	}
}
