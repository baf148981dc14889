// SPDX-License-Identifier: Apache-2.0

package store

import "braid/cluster"

type ioOwner uint8
type volume struct{}

// Core is the store of one device.
type Core struct{}

// Format makes an empty store on d. device is a fresh random UUID; cluster may be zero.
func Format(d Disk, device, clusterID cluster.UUID, progress func(done, total int64)) (Identity, error) {
	return Identity{}, ErrTooSmall
}

// ReadIdentity reads the superblock.
func ReadIdentity(d Disk) (Identity, error) { return Identity{}, ErrNotFormatted }

// Open recovers the store and advances its start counter.
func Open(d Disk, cfg Config) (*Core, error) { return nil, ErrNotFormatted }

// Claim writes the cluster's UUID to the superblock of a device that has none (offline, before Open).
func Claim(d Disk, id cluster.UUID) error { return ErrNotFormatted }

// Submit starts a request.
func (c *Core) Submit(r *Request) {}

// IODone reports that an IO has ended.
func (c *Core) IODone(io *IO, err error) {}

// Effects returns what to do now, valid until the next call; call until empty.
func (c *Core) Effects() []Effect { return nil }

// Idle starts a step of background work (retirement) and reports whether more remains.
func (c *Core) Idle() bool { return false }

// Pressure of the activity log, 0 (no need to flush) to 1000 (writes wait for a flush).
func (c *Core) Pressure() int { return 0 }

// Incarnation is the device's write verifier (rule 5).
func (c *Core) Incarnation() cluster.Incarnation { return 0 }

// Identity of the device.
func (c *Core) Identity() Identity { return Identity{} }

// Generation persisted for a volume, 0: none.
func (c *Core) Generation(v cluster.VolumeID) cluster.Generation { return 0 }

// Stats returns counters.
func (c *Core) Stats() Stats { return Stats{} }

// Err is why the device was retired, or nil.
func (c *Core) Err() error { return nil }
