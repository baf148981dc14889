// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/hex"
	"fmt"
	"strings"
	"time"
)

// Sizes shared by every part.
const (
	BlockSize      = 4096    // unit of checksum, of atomicity and of the bitmap, bytes
	ChunkSize      = 1 << 20 // unit of allocation on a device, bytes
	BlocksPerChunk = ChunkSize / BlockSize

	MaxPGs = 1 << 20 // groups in one set: what a PGID can name
)

// ReadLease is how long a client takes a device's confirmation of its
// generation to hold. Without one that is younger it completes no read, so that
// who attaches next needs to wait no longer than that for a device that cannot
// be fenced.
const ReadLease = 4 * time.Second

// UUID identifies a cluster or a device for good.
type UUID [16]byte

func (u UUID) String() string {
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

// ParseUUID reads what String writes.
func ParseUUID(s string) (u UUID, err error) {
	plain := strings.ReplaceAll(s, "-", "")
	if len(s) != 36 || len(plain) != 32 {
		return u, fmt.Errorf("UUID %q: want the form 01234567-89ab-cdef-0123-456789abcdef", s)
	}
	if _, err := hex.Decode(u[:], []byte(plain)); err != nil {
		return UUID{}, fmt.Errorf("UUID %q: %w", s, err)
	}
	return u, nil
}

// MarshalText and UnmarshalText give JSON the readable form.
func (u UUID) MarshalText() ([]byte, error) { return []byte(u.String()), nil }

func (u *UUID) UnmarshalText(text []byte) (err error) {
	*u, err = ParseUUID(string(text))
	return err
}

// IsZero reports whether u was never set.
func (u UUID) IsZero() bool { return u == UUID{} }

// VolumeID is given by mdm and never used again.
type VolumeID uint64

// DeviceID is the short number that mdm gives a device; placement groups list
// these.
type DeviceID uint32

// PGID names a placement group: the set it belongs to in the upper 12 bits, its
// index in the set in the lower 20.
type PGID uint32

// MakePGID joins set and index.
func MakePGID(set uint32, index uint32) PGID { return PGID(set<<20 | index) }

// Set is the number of the PG set; Index the group's place in it.
func (p PGID) Set() uint32   { return uint32(p) >> 20 }
func (p PGID) Index() uint32 { return uint32(p) & (1<<20 - 1) }

// Generation counts the attaches of a volume.
type Generation uint64

// Incarnation is a device's cache epoch (its write verifier).
type Incarnation uint64

// Tag is the (generation, interval) of a chunk's last write.
type Tag struct {
	Gen      Generation
	Interval uint64
}

// Volume is one block device that clients can attach.
type Volume struct {
	ID          VolumeID
	Name        string
	Size        uint64 // bytes, a multiple of BlockSize
	Replicas    int
	StripeUnit  uint32 // bytes, a power of two, BlockSize..ChunkSize
	StripeWidth uint32 // chunks in a row
	BlockSize   uint32 // logical block size shown to the kernel: 512 or 4096
	PGSet       uint32
	Generation  Generation // of the newest attach
	// Attached: a session under Generation is registered, whose client may write.
	// It goes with the detach, or when a dead client's session was fenced by the
	// next generation.
	Attached bool
}

// Device is one disk of one server.
type Device struct {
	ID          DeviceID
	UUID        UUID
	Server      string // the server's name
	Addr        string // HOST:PORT where its server is reached
	FaultSet    string
	Path        string
	Size        uint64 // bytes for chunks
	Up          bool   // its server's lease is alive and it serves
	Incarnation Incarnation
	Removing    bool
}

// PGSet is a table of groups with one replica count.
type PGSet struct {
	Number   uint32
	Replicas int
	Count    uint32 // groups; a power of two
}

// PG is one placement group.
type PG struct {
	ID       PGID
	Epoch    uint32
	Replicas []DeviceID // where copies belong, in order of preference
	InSync   []DeviceID // subset that is authoritative; never empty
	Target   DeviceID   // the running resync target, or 0
	// TargetEpoch is the epoch that announced the target: the number of the
	// attempt. Later epochs may keep the target; a new attempt starts over.
	TargetEpoch uint32
	// LostEpoch is the epoch at which every copy had lost its cache, and what they
	// hold since is the truth; 0: never. A client whose map was older than that and
	// that had acked writes here which were not flushed has lost them.
	LostEpoch uint32
}

// Map is what clients and servers know of the cluster. A published Map is
// never changed: Apply makes a new one that shares what did not change.
type Map struct {
	Cluster UUID
	Version uint64
	Devices map[DeviceID]*Device
	Sets    map[uint32]*PGSet
	PGs     map[uint32][]*PG // by set number, then index
	Volumes map[VolumeID]*Volume
	Removed map[VolumeID]bool // deleted volumes whose chunks servers may free
}
