// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"maps"
	"slices"

	"braid/cluster"
)

// MapVersion is the version of the map that the state shows.
func (s *State) MapVersion() uint64 { return uint64(s.mapVersion) }

// Cluster returns the cluster's identity; zero: there is none yet.
func (s *State) Cluster() cluster.UUID { return s.identity.UUID }

// Delta returns how the map changed since version from, or the whole map when
// that is not known (from is 0, too old, or of another history). Changes in
// between are merged: who is slow gets fewer deltas, not more. volumes limits
// it to those volumes, their groups, and all devices; none means everything.
//
// A delta that is no whole map repeats from, so that it applies to what the
// receiver has even if changes that do not concern it were left out before.
func (s *State) Delta(from uint64, volumes []cluster.VolumeID) *cluster.Delta {
	since := int64(from)
	if since < s.floor || since > s.Revision {
		since, from = 0, 0
	}
	d := &cluster.Delta{Cluster: s.identity.UUID, From: from, Version: max(uint64(s.mapVersion), from)}
	for _, id := range slices.Sorted(maps.Keys(s.devices)) {
		if dev := s.devices[id]; s.deviceVersion(dev) > since {
			d.Devices = append(d.Devices, s.clusterDevice(dev))
		}
	}
	if since > 0 {
		for _, g := range s.goneDevices {
			if _, back := s.devices[g.value]; g.version > since && !back {
				d.RemovedDevices = append(d.RemovedDevices, g.value)
			}
		}
	}
	wanted := s.deltaVolumes(d, since, volumes)
	for _, number := range slices.Sorted(maps.Keys(s.sets)) {
		if len(volumes) == 0 || wanted[number] {
			s.deltaSet(d, since, number)
		}
	}
	return d
}

// deltaVolumes adds volumes and tombstones, and returns the PG sets that the
// wanted volumes lie in.
func (s *State) deltaVolumes(d *cluster.Delta, since int64, volumes []cluster.VolumeID) map[uint32]bool {
	all := len(volumes) == 0
	sets := map[uint32]bool{}
	for _, id := range slices.Sorted(maps.Keys(s.volumes)) {
		v := s.volumes[id]
		if !all && !slices.Contains(volumes, id) {
			continue
		}
		sets[v.PGSet] = true
		if s.mod[volumeKey(id)] > since {
			d.Volumes = append(d.Volumes, v.cluster())
		}
	}
	removed := map[cluster.VolumeID]bool{}
	for id := range s.removed {
		removed[id] = s.mod[removedKey(id)] > since
	}
	// Who is behind may have missed a volume's end although its tombstone is gone
	// by now.
	for _, g := range s.goneVolumes {
		if since > 0 && g.version > since {
			removed[g.value] = true
		}
	}
	for _, id := range slices.Sorted(maps.Keys(removed)) {
		if removed[id] && (all || slices.Contains(volumes, id)) {
			d.RemovedVolumes = append(d.RemovedVolumes, id)
		}
	}
	return sets
}

func (s *State) deltaSet(d *cluster.Delta, since int64, number uint32) {
	set := s.sets[number]
	whole := s.mod[setKey(number)] > since
	if whole {
		copied := *set
		d.Sets = append(d.Sets, &copied)
	}
	for index := range pageCount(set.Count) {
		for _, pg := range s.pages[number][index] {
			// A set that changes size makes every index mean another group.
			if (whole || pg.version > since) && pg.value.ID.Index() < set.Count {
				d.PGs = append(d.PGs, pg.value)
			}
		}
	}
}

func pageCount(groups uint32) int { return (int(groups) + PageSize - 1) / PageSize }

// deviceVersion counts changes of its server as changes of the device.
func (s *State) deviceVersion(d *Device) int64 {
	return max(s.mod[deviceKey(d.ID)], s.mod[serverKey(d.Server)])
}

func (s *State) clusterDevice(d *Device) *cluster.Device {
	out := &cluster.Device{ID: d.ID, UUID: d.UUID, Server: d.Server, Path: d.Path, Size: d.Size,
		Incarnation: d.Incarnation, Removing: d.Removing}
	if server := s.servers[d.Server]; server != nil {
		out.Addr, out.FaultSet = server.Addr, server.FaultSet
		out.Up = server.Up && d.Failed == ""
	}
	return out
}

// table returns the groups of a set in order of their index.
func (s *State) table(number uint32) []*cluster.PG {
	set := s.sets[number]
	if set == nil {
		return nil
	}
	out := make([]*cluster.PG, 0, set.Count)
	for index := range pageCount(set.Count) {
		for _, pg := range s.pages[number][index] {
			if pg.value.ID.Index() < set.Count {
				out = append(out, pg.value)
			}
		}
	}
	return out
}

// sortedDevices returns the devices by number.
func (s *State) sortedDevices() []*Device {
	return slices.SortedFunc(maps.Values(s.devices), func(a, b *Device) int { return cmp.Compare(a.ID, b.ID) })
}
