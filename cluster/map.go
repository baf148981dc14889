// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"errors"
	"fmt"
	"maps"
	"slices"
)

// ErrGap says that a delta does not start where the map ends: changes between
// the two were missed, and a whole map has to be fetched.
var ErrGap = errors.New("the delta does not follow the map")

// Delta is a change of the map from version From to version Version. With
// From = 0 it is a whole map: nothing of an older one stays.
type Delta struct {
	Cluster        UUID
	From           uint64
	Version        uint64
	Devices        []*Device
	RemovedDevices []DeviceID
	Sets           []*PGSet
	PGs            []*PG
	Volumes        []*Volume
	RemovedVolumes []VolumeID
}

// NewMap returns an empty map of version 0, to which a whole map can be
// applied.
func NewMap() *Map {
	return &Map{
		Devices: map[DeviceID]*Device{},
		Sets:    map[uint32]*PGSet{},
		PGs:     map[uint32][]*PG{},
		Volumes: map[VolumeID]*Volume{},
		Removed: map[VolumeID]bool{},
	}
}

// Apply returns the map after d. m stays as it was. The objects in d belong to
// the new map from then on. ErrGap says that d does not follow m.
func (m *Map) Apply(d *Delta) (*Map, error) {
	switch {
	case d.From == 0:
		m = NewMap()
	case d.From != m.Version:
		return nil, fmt.Errorf("apply map delta %d..%d to version %d: %w",
			d.From, d.Version, m.Version, ErrGap)
	case d.Version < d.From:
		return nil, fmt.Errorf("apply map delta %d..%d: it goes backwards", d.From, d.Version)
	}
	next := *m
	next.Version = d.Version
	if !d.Cluster.IsZero() {
		next.Cluster = d.Cluster
	}
	next.applyDevices(d)
	next.applyVolumes(d)
	if err := next.applyGroups(d); err != nil {
		return nil, err
	}
	return &next, nil
}

func (m *Map) applyDevices(d *Delta) {
	if len(d.Devices) == 0 && len(d.RemovedDevices) == 0 {
		return
	}
	m.Devices = maps.Clone(m.Devices)
	for _, dev := range d.Devices {
		m.Devices[dev.ID] = dev
	}
	for _, id := range d.RemovedDevices {
		delete(m.Devices, id)
	}
}

func (m *Map) applyVolumes(d *Delta) {
	if len(d.Volumes) > 0 || len(d.RemovedVolumes) > 0 {
		m.Volumes = maps.Clone(m.Volumes)
	}
	for _, v := range d.Volumes {
		m.Volumes[v.ID] = v
	}
	if len(d.RemovedVolumes) == 0 {
		return
	}
	m.Removed = maps.Clone(m.Removed)
	for _, id := range d.RemovedVolumes {
		delete(m.Volumes, id)
		m.Removed[id] = true
	}
}

// applyGroups copies the table of each set that changes, once.
func (m *Map) applyGroups(d *Delta) error {
	if len(d.Sets) == 0 && len(d.PGs) == 0 {
		return nil
	}
	m.Sets = maps.Clone(m.Sets)
	m.PGs = maps.Clone(m.PGs)
	copied := make(map[uint32]bool, 1)
	for _, s := range d.Sets {
		if s.Count == 0 || s.Count&(s.Count-1) != 0 || s.Count > MaxPGs {
			return fmt.Errorf("apply map delta %d..%d: PG set %d has %d groups, not a power of two up to %d",
				d.From, d.Version, s.Number, s.Count, MaxPGs)
		}
		m.Sets[s.Number] = s
		table := make([]*PG, s.Count)
		copy(table, m.PGs[s.Number])
		m.PGs[s.Number] = table
		copied[s.Number] = true
	}
	for _, pg := range d.PGs {
		set, index := pg.ID.Set(), pg.ID.Index()
		table := m.PGs[set]
		if int(index) >= len(table) {
			return fmt.Errorf("apply map delta %d..%d: group %d lies outside PG set %d of %d groups",
				d.From, d.Version, index, set, len(table))
		}
		if !copied[set] {
			table = slices.Clone(table)
			m.PGs[set] = table
			copied[set] = true
		}
		table[index] = pg
	}
	return nil
}

// PG returns the group with that id, or nil when the map has none.
func (m *Map) PG(id PGID) *PG {
	table := m.PGs[id.Set()]
	if int(id.Index()) >= len(table) {
		return nil
	}
	return table[id.Index()]
}

// VolumePG returns the group that holds a chunk of v, or nil when the map does
// not have v's PG set. It allocates nothing.
func (m *Map) VolumePG(v *Volume, chunkIndex uint64) *PG {
	table := m.PGs[v.PGSet]
	if len(table) == 0 {
		return nil
	}
	return table[v.groupIndex(uint32(len(table)), chunkIndex)]
}

// VolumeByName returns the volume of that name, or nil.
func (m *Map) VolumeByName(name string) *Volume {
	for _, v := range m.Volumes {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// PG returns the placement group that holds a chunk of v:
// (mix(volume, row) + column) mod G. Rows are scattered, so that a file
// system's regular metadata does not pile up on a few groups; the chunks of one
// row lie in consecutive groups, which placement puts on different devices.
func (v *Volume) PG(set *PGSet, chunkIndex uint64) PGID {
	return MakePGID(set.Number, v.groupIndex(set.Count, chunkIndex))
}

func (v *Volume) groupIndex(groupCount uint32, chunkIndex uint64) uint32 {
	width := uint64(v.StripeWidth)
	row, column := chunkIndex/width, chunkIndex%width
	return uint32((mix(uint64(v.ID), row) + column) & uint64(groupCount-1))
}

// mix spreads (volume, row) evenly over 64 bits: two rounds of the finaliser
// of splitmix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number
// Generators, 2014). Part of the on-disk format.
func mix(volume, row uint64) uint64 {
	return finalise(finalise(volume+0x9e3779b97f4a7c15) + row*0xd1b54a32d192ed03)
}

func finalise(x uint64) uint64 {
	x ^= x >> 30
	x *= 0xbf58476d1ce4e5b9
	x ^= x >> 27
	x *= 0x94d049bb133111eb
	return x ^ x>>31
}

// Has reports whether the device is in sync.
func (p *PG) Has(id DeviceID) bool { return slices.Contains(p.InSync, id) }

// Member reports whether the device belongs to the group, in sync or not.
func (p *PG) Member(id DeviceID) bool {
	return slices.Contains(p.Replicas, id) || slices.Contains(p.InSync, id) || p.Target == id && id != 0
}
