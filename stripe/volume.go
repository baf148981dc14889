// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"context"
	"errors"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/transport/bio"
	"braid/transport/buf"
	"braid/transport/loop"
)

// MaxRequest is the longest Read or Write in bytes. Other operations may be as
// long as the volume.
const MaxRequest = 1 << 20

// Config says what to attach, and where it lives.
type Config struct {
	Mdm            *client.Client
	Loop           *loop.Loop // started; everything of the volume runs on it
	Pool           *buf.Pool
	Volume         string   // name; empty: the cluster's only volume
	ClientID       [16]byte // unique to this process
	Host           string   // for people, and to find out which servers are local
	Force          bool     // fence whoever holds the volume
	GuestAlive     bool     // the same kernel device goes on: not a fresh attach
	ReadOnly       bool
	ConnsPerDevice int // 0: 1
	// Resized is called on the loop when the volume's size has changed.
	Resized func(size uint64)
	// Lost is called once on the loop when the volume can serve no longer: fenced
	// by another client, the session lost, the last copy broken.
	Lost func(reason error)
}

// Volume is an attached volume. Submit, Size, BlockSize and ReadOnly are for its
// loop; the other methods are for any other goroutine.
type Volume struct{}

// Attach takes the volume's session and returns when requests may be submitted.
// It does not wait for servers.
func Attach(ctx context.Context, cfg Config) (*Volume, error) {
	return nil, errors.New("not built yet")
}

// Detach flushes, ends the session and closes everything. When ctx ends it
// abandons what waits, which fails with bio.ErrShutdown, and returns within a
// second or two all the same. The error says what was not flushed.
func (v *Volume) Detach(ctx context.Context) error { return nil }

// Submit starts a request. It is part of nbd.Device.
func (v *Volume) Submit(r *bio.Request) {}

// Size is the volume's size in bytes.
func (v *Volume) Size() uint64 { return 0 }

// BlockSize is the logical block size shown to the kernel: 512 or 4096.
func (v *Volume) BlockSize() int { return cluster.BlockSize }

// ReadOnly reports whether writes are refused.
func (v *Volume) ReadOnly() bool { return false }

// Name, Generation and Loop of the attached volume.
func (v *Volume) Name() string                   { return "" }
func (v *Volume) Generation() cluster.Generation { return 0 }
func (v *Volume) Loop() *loop.Loop               { return nil }

// Wait is one reason for which requests wait.
type Wait struct {
	Device   cluster.DeviceID // 0: not a device
	Server   string
	Addr     string
	Why      string
	Requests int
	Since    time.Time // of the oldest
}

// Waiting tells what requests wait for, for `sdc why`. Requests in normal flight
// for less than a second are not listed.
func (v *Volume) Waiting() []Wait { return nil }

// Stats are the counters of a volume since its attach.
type Stats struct {
	Requests   [8]uint64  // by bio.Op
	Frames     [16]uint64 // sent, by transport.Op
	ReadBytes  uint64
	WriteBytes uint64
	Errors     uint64 // requests that failed
	Retries    uint64 // frames sent again
	Hedges     uint64 // second reads, because the first was slow
	BadSums    uint64 // read replies that did not match their checksums
	Inflight   uint64 // requests
}

// Stats may be called from any goroutine.
func (v *Volume) Stats() Stats { return Stats{} }
