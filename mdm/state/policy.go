// SPDX-License-Identifier: Apache-2.0

package state

import (
	"braid/cluster"
	"braid/cluster/rules"
)

// Policy says what of the care for copies is done. The zero value leaves groups
// as they are, but for what a client asks.
type Policy struct {
	Evict  bool // take copies that are away or broken out of the in-sync sets
	Resync bool // announce targets, so that copies come back
	Off    rules.Off
}

// Progress is what clients and servers reported, and etcd does not know.
type Progress struct {
	Sessions map[cluster.VolumeID]SessionProgress
	Devices  map[cluster.DeviceID]uint64 // map version that each has learned, drained
}

// SessionProgress is how far a session has come with the map.
type SessionProgress struct {
	Generation cluster.Generation
	Adopted    uint64 // 0: it is not attached yet
}

// adopted returns a map version that the session has adopted for certain: no
// write or flush that was issued under an older one, by it or by a client before
// it, is outstanding.
func (p Progress) adopted(x *Session) uint64 {
	if r, ok := p.Sessions[x.Volume]; ok && r.Generation == x.Generation {
		return max(r.Adopted, x.Seen)
	}
	return x.Seen
}
