// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/stripe"
	"braid/transport/bio"
	"braid/transport/loop"
)

var errGone = errors.New("the client is dead")

// mortal is what a client has of the metadata manager until it dies.
type mortal struct {
	*client.Client
	dead atomic.Bool
}

func (m *mortal) RenewSession(ctx context.Context, id string, states []client.SessionState,
) ([]cluster.VolumeID, error) {
	if m.dead.Load() {
		return nil, errGone
	}
	return m.Client.RenewSession(ctx, id, states)
}

func (m *mortal) ReportDevice(ctx context.Context, t client.DeviceTrouble) (client.Verdict, error) {
	if m.dead.Load() {
		return client.Verdict{}, errGone
	}
	return m.Client.ReportDevice(ctx, t)
}

func (m *mortal) Detach(ctx context.Context, h client.Held) error {
	if m.dead.Load() {
		return errGone
	}
	return m.Client.Detach(ctx, h)
}

// eachCopyAlone takes one server after the other away, so that the others' copies
// have to serve, and compares all bytes.
func eachCopyAlone(t *testing.T, c *Cluster, v *stripe.Volume, want []byte) {
	t.Helper()
	for _, n := range c.Node {
		c.AwaitHealthy()
		n.Stop()
		for off := 0; off < len(want); off += 1 << 20 {
			if got := Read(t, v, uint64(off), 1<<20); !bytes.Equal(got, want[off:off+1<<20]) {
				t.Fatalf("without %s: wrong bytes in MiB %d", n.Name, off>>20)
			}
		}
		n.Start()
	}
	c.AwaitHealthy()
}

// Goal: a client dies with writes in flight. The next one attaches by force, is
// served at once, finds each block of these writes old or new, the same on every
// read and on every copy, and all that was flushed. Method: its loop ends, with its
// connections, in the middle of writes over flushed bytes.
func TestClientDies(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	own, err := loop.New(loop.Options{Name: "mortal"})
	if err != nil {
		t.Fatal(err)
	}
	own.Start()
	mdm := &mortal{Client: c.Api}
	first, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Mdm, cfg.Loop = mdm, own })
	if err != nil {
		t.Fatal(err)
	}
	const block, size = 4096, 4 << 20
	old, next := random(size, 31), random(size, 32)
	for off := 0; off < size; off += 1 << 20 {
		Write(t, first, uint64(off), old[off:off+1<<20])
	}
	Flush(t, first)
	for off := 0; off < size; off += 64 << 10 {
		Begin(first, bio.Request{Op: bio.Write, Off: uint64(off), Len: 64 << 10, Data: next[off : off+64<<10]})
	}
	mdm.dead.Store(true)
	if err := own.Close(); err != nil {
		t.Fatal(err)
	}
	second, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Force = true })
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 0, size)
	for off := 0; off < size; off += 1 << 20 {
		seen = append(seen, Read(t, second, uint64(off), 1<<20)...)
	}
	for off := 0; off < size; off += block {
		b := seen[off : off+block]
		if !bytes.Equal(b, old[off:off+block]) && !bytes.Equal(b, next[off:off+block]) {
			t.Fatalf("block %d is neither old nor new", off/block)
		}
	}
	eachCopyAlone(t, c, second, seen)
	if err := Detach(second, Patience); err != nil {
		t.Error(err)
	}
	_ = Detach(first, 1) // what is left of it
}

// Goal: all servers lose power under a client with unflushed writes. It is told
// that acknowledged writes may be gone; who attaches anew finds what was flushed,
// and the rest old or new. Method: as said.
func TestAllLosePower(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	lost := make(chan error, 1)
	first, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Lost = func(err error) { lost <- err } })
	if err != nil {
		t.Fatal(err)
	}
	const block, size = 4096, 4 << 20
	old, next := random(size, 41), random(size, 42)
	for off := 0; off < size; off += 1 << 20 {
		Write(t, first, uint64(off), old[off:off+1<<20])
	}
	Flush(t, first)
	for off := 0; off < size/2; off += 64 << 10 {
		Write(t, first, uint64(off), next[off:off+64<<10])
	}
	for _, n := range c.Node {
		n.Kill(true)
	}
	for _, n := range c.Node {
		n.Start()
	}
	if err := <-lost; !errors.Is(err, bio.ErrIO) {
		t.Errorf("the client is told: %v", err)
	}
	_ = Detach(first, Patience)
	second, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Force = true })
	if err != nil {
		t.Fatal(err)
	}
	seen := make([]byte, 0, size)
	for off := 0; off < size; off += 1 << 20 {
		seen = append(seen, Read(t, second, uint64(off), 1<<20)...)
	}
	for off := 0; off < size; off += block {
		b := seen[off : off+block]
		if !bytes.Equal(b, old[off:off+block]) && (off >= size/2 || !bytes.Equal(b, next[off:off+block])) {
			t.Fatalf("block %d is neither old nor new", off/block)
		}
	}
	eachCopyAlone(t, c, second, seen)
	if err := Detach(second, Patience); err != nil {
		t.Error(err)
	}
}

// Goal: a client whose volume is lost, and which nobody ends, holds up neither the
// copies of that volume nor those of others in the same groups. Method: two volumes,
// one of them with unflushed writes; every server loses its power, and then every copy
// has to come in sync, while both clients are there.
func TestLostVolumeHoldsUpNoCopies(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	lost := make(chan error, 1)
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	first, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Lost = func(err error) { lost <- err } })
	if err != nil {
		t.Fatal(err)
	}
	other := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	data := random(1<<20, 51)
	for off := uint64(0); off < 16<<20; off += 1 << 20 {
		Write(t, first, off, data)
		Write(t, other, off, data)
	}
	Flush(t, other)
	for _, n := range c.Node {
		n.Kill(true)
	}
	for _, n := range c.Node {
		n.Start()
	}
	<-lost
	c.AwaitHealthy()
	Write(t, other, 0, data)
	if err := Detach(other, Patience); err != nil {
		t.Error(err)
	}
	if err := Detach(first, Patience); !errors.Is(err, bio.ErrIO) {
		t.Errorf("a lost volume is detached with %v", err)
	}
}

// Goal: I/O goes on while one server loses power, comes back, is killed again while
// it catches up, and another one loses power as soon as all is well; in the end
// each copy alone has every byte. Method: writers with models, as said.
func TestFaultsInSequence(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	const workers, span = 3, 8 << 20
	l := startLoad(c, v, workers, span)
	for round, n := range c.Node[:2] {
		n.Kill(true)
		n.Start()
		if round == 0 {
			// Interrupted as soon as it is a target.
			Eventually(t, "it is brought in sync", func() bool {
				ctx, cancel := context.WithTimeout(context.Background(), Patience)
				defer cancel()
				s, err := c.Api.Status(ctx)
				return err == nil && (s.PgsRebuilding > 0 || s.PgsDegraded == 0)
			})
			n.Kill(false)
			n.Start()
		}
		c.AwaitHealthy()
	}
	l.end()
	want := make([]byte, 0, workers*span)
	for off := 0; off < workers*span; off += 1 << 20 {
		want = append(want, Read(t, v, uint64(off), 1<<20)...)
	}
	l.check()
	eachCopyAlone(t, c, v, want)
}

// Goal: a client from which the volume was taken reads nothing that is old.
// Method: the new one overwrites; reads of the old one, which were admitted before
// and after, end with an error or with the new bytes.
func TestTheOldClientReadsNothingOld(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	name := c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2})
	first, err := c.Attach(name, nil)
	if err != nil {
		t.Fatal(err)
	}
	old, next := random(1<<20, 51), random(1<<20, 52)
	Write(t, first, 0, old)
	Flush(t, first)
	second, err := c.Attach(name, func(cfg *stripe.Config) { cfg.Force = true })
	if err != nil {
		t.Fatal(err)
	}
	Write(t, second, 0, next)
	for range 20 {
		got := make([]byte, 1<<20)
		r := Begin(first, bio.Request{Op: bio.Read, Len: 1 << 20, Data: got})
		if err := r.Wait(Patience); err == nil && !bytes.Equal(got, next) {
			t.Fatal("the old client reads what was overwritten")
		}
	}
	_ = Detach(first, Patience)
	if err := Detach(second, Patience); err != nil {
		t.Error(err)
	}
}
