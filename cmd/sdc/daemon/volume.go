// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/rand"
	"fmt"
	"os"

	"braid/cluster"
	"braid/mdm/client"
	"braid/nbd"
	"braid/stripe"
	"braid/transport/bio/memdev"
	"braid/transport/buf"
	"braid/transport/loop"
)

// Volume is an attached volume: a device on a loop, that can tell what it waits
// for. stripe.Volume is one.
type Volume interface {
	nbd.Device
	Name() string
	Generation() cluster.Generation
	// Detach flushes and ends the session; when ctx ends it gives up what waits.
	ID() cluster.VolumeID // 0: it has none
	Detach(ctx context.Context) error
	Waiting() []stripe.Wait
}

// OpenRequest says which volume to attach, and how.
type OpenRequest struct {
	Volume     string           // empty: the only one
	ID         cluster.VolumeID // which, whatever it is called by now; 0: the name says it
	Force      bool
	ReadOnly   bool
	OnFull     OnFull
	GuestAlive bool
	Continues  cluster.Generation // with GuestAlive: of the session that the guest had
	Loop       *loop.Loop
	Pool       *buf.Pool
	Resized    func(size uint64) // on the loop
	Lost       func(reason error)
}

// Opener attaches volumes.
type Opener interface {
	Open(ctx context.Context, r OpenRequest) (Volume, error)
	Close() error
}

// Cluster opens the volumes of a cluster.
type Cluster struct {
	mdm  *client.Client
	id   [16]byte
	host string
}

// NewCluster returns an opener that asks the metadata managers at addrs. Without an
// id it draws one.
func NewCluster(addrs []string, id [16]byte) (*Cluster, error) {
	c, err := client.New(addrs, client.Options{})
	if err != nil {
		return nil, err
	}
	o := &Cluster{mdm: c, id: id}
	if id == ([16]byte{}) {
		if _, err := rand.Read(o.id[:]); err != nil {
			return nil, fmt.Errorf("draw a client id: %w", err)
		}
	}
	if o.host, err = os.Hostname(); err != nil {
		return nil, fmt.Errorf("find out this host's name: %w", err)
	}
	return o, nil
}

// Open attaches a volume of the cluster.
func (c *Cluster) Open(ctx context.Context, r OpenRequest) (Volume, error) {
	v, err := stripe.Attach(ctx, stripe.Config{
		Mdm: c.mdm, Loop: r.Loop, Pool: r.Pool, Volume: r.Volume, ID: r.ID, ClientID: c.id, Host: c.host,
		Force: r.Force, ReadOnly: r.ReadOnly, FailFull: r.OnFull == OnFullError, GuestAlive: r.GuestAlive,
		Continues: r.Continues, Resized: r.Resized, Lost: r.Lost,
	})
	if err != nil {
		return nil, err
	}
	return v, nil
}

// Close ends the connections to the metadata managers.
func (c *Cluster) Close() error { return c.mdm.Close() }

// Memory opens volumes that live in this process: for benchmarks and tests.
type Memory struct {
	Size      uint64
	BlockSize int
}

// memoryVolume is a memory device with a name.
type memoryVolume struct {
	*memdev.Device
	name string
}

// Open returns a new, empty device.
func (m Memory) Open(_ context.Context, r OpenRequest) (Volume, error) {
	name := r.Volume
	if name == "" {
		name = "memory"
	}
	return &memoryVolume{name: name, Device: memdev.New(r.Loop, memdev.Options{
		Size: m.Size, BlockSize: m.BlockSize, ReadOnly: r.ReadOnly})}, nil
}

// Close does nothing.
func (Memory) Close() error { return nil }

func (v *memoryVolume) Name() string                   { return v.name }
func (v *memoryVolume) ID() cluster.VolumeID           { return 0 }
func (v *memoryVolume) Generation() cluster.Generation { return 0 }
func (v *memoryVolume) Detach(context.Context) error   { return nil }
func (v *memoryVolume) Waiting() []stripe.Wait         { return nil }
