// SPDX-License-Identifier: Apache-2.0

package pb

import (
	"fmt"

	"braid/cluster"
)

// ToUUID reads a UUID from the wire. Nothing at all is the zero UUID.
func ToUUID(b []byte) (u cluster.UUID, err error) {
	if len(b) != 0 && len(b) != len(u) {
		return u, fmt.Errorf("a UUID of %d bytes: want %d", len(b), len(u))
	}
	copy(u[:], b)
	return u, nil
}

// FromUUID is the wire form; the zero UUID is nothing at all.
func FromUUID(u cluster.UUID) []byte {
	if u.IsZero() {
		return nil
	}
	return u[:]
}

// ToDevice reads a device from the wire.
func ToDevice(d *Device) (*cluster.Device, error) {
	uuid, err := ToUUID(d.GetUuid())
	if err != nil {
		return nil, fmt.Errorf("device %d: %w", d.GetId(), err)
	}
	return &cluster.Device{
		ID: cluster.DeviceID(d.GetId()), UUID: uuid, Server: d.GetServer(), Addr: d.GetAddr(),
		FaultSet: d.GetFaultSet(), Path: d.GetPath(), Size: d.GetSize(), Up: d.GetUp(),
		Incarnation: cluster.Incarnation(d.GetIncarnation()), Removing: d.GetRemoving(),
	}, nil
}

// FromDevice is the wire form of a device.
func FromDevice(d *cluster.Device) *Device {
	return &Device{
		Id: uint32(d.ID), Uuid: FromUUID(d.UUID), Server: d.Server, Addr: d.Addr,
		FaultSet: d.FaultSet, Path: d.Path, Size: d.Size, Up: d.Up,
		Incarnation: uint64(d.Incarnation), Removing: d.Removing,
	}
}

// ToVolume reads a volume from the wire.
func ToVolume(v *Volume) *cluster.Volume {
	return &cluster.Volume{
		ID: cluster.VolumeID(v.GetId()), Name: v.GetName(), Size: v.GetSize(),
		Replicas: int(v.GetReplicas()), StripeUnit: v.GetStripeUnit(),
		StripeWidth: v.GetStripeWidth(), BlockSize: v.GetBlockSize(), PGSet: v.GetPgSet(),
		Generation: cluster.Generation(v.GetGeneration()), Attached: v.GetAttached(),
	}
}

// FromVolume is the wire form of a volume.
func FromVolume(v *cluster.Volume) *Volume {
	return &Volume{
		Id: uint64(v.ID), Name: v.Name, Size: v.Size, Replicas: uint32(v.Replicas),
		StripeUnit: v.StripeUnit, StripeWidth: v.StripeWidth, BlockSize: v.BlockSize,
		PgSet: v.PGSet, Generation: uint64(v.Generation), Attached: v.Attached,
	}
}

// ToPG reads a group from the wire.
func ToPG(p *PG) *cluster.PG {
	return &cluster.PG{
		ID: cluster.PGID(p.GetId()), Epoch: p.GetEpoch(),
		Replicas: toDevices(p.GetReplicas()), InSync: toDevices(p.GetInSync()),
		Target: cluster.DeviceID(p.GetTarget()), TargetEpoch: p.GetTargetEpoch(),
		LostEpoch: p.GetLostEpoch(),
	}
}

// FromPG is the wire form of a group.
func FromPG(p *cluster.PG) *PG {
	return &PG{
		Id: uint32(p.ID), Epoch: p.Epoch, Replicas: fromDevices(p.Replicas),
		InSync: fromDevices(p.InSync), Target: uint32(p.Target), TargetEpoch: p.TargetEpoch, LostEpoch: p.LostEpoch,
	}
}

// ToDelta reads a delta from the wire.
func ToDelta(d *MapDelta) (*cluster.Delta, error) {
	uuid, err := ToUUID(d.GetCluster())
	if err != nil {
		return nil, fmt.Errorf("map delta: cluster: %w", err)
	}
	out := &cluster.Delta{Cluster: uuid, From: d.GetFrom(), Version: d.GetVersion()}
	for _, dev := range d.GetDevices() {
		c, err := ToDevice(dev)
		if err != nil {
			return nil, fmt.Errorf("map delta: %w", err)
		}
		out.Devices = append(out.Devices, c)
	}
	out.RemovedDevices = toDevices(d.GetRemovedDevices())
	for _, s := range d.GetSets() {
		out.Sets = append(out.Sets, &cluster.PGSet{
			Number: s.GetNumber(), Replicas: int(s.GetReplicas()), Count: s.GetCount()})
	}
	for _, p := range d.GetPgs() {
		out.PGs = append(out.PGs, ToPG(p))
	}
	for _, v := range d.GetVolumes() {
		out.Volumes = append(out.Volumes, ToVolume(v))
	}
	for _, id := range d.GetRemovedVolumes() {
		out.RemovedVolumes = append(out.RemovedVolumes, cluster.VolumeID(id))
	}
	return out, nil
}

// FromDelta is the wire form of a delta.
func FromDelta(d *cluster.Delta) *MapDelta {
	out := &MapDelta{Cluster: FromUUID(d.Cluster), From: d.From, Version: d.Version,
		RemovedDevices: fromDevices(d.RemovedDevices)}
	for _, dev := range d.Devices {
		out.Devices = append(out.Devices, FromDevice(dev))
	}
	for _, s := range d.Sets {
		out.Sets = append(out.Sets, &PGSet{
			Number: s.Number, Replicas: uint32(s.Replicas), Count: s.Count})
	}
	for _, p := range d.PGs {
		out.Pgs = append(out.Pgs, FromPG(p))
	}
	for _, v := range d.Volumes {
		out.Volumes = append(out.Volumes, FromVolume(v))
	}
	for _, id := range d.RemovedVolumes {
		out.RemovedVolumes = append(out.RemovedVolumes, uint64(id))
	}
	return out
}

func toDevices(ids []uint32) []cluster.DeviceID {
	if len(ids) == 0 {
		return nil
	}
	out := make([]cluster.DeviceID, len(ids))
	for i, id := range ids {
		out[i] = cluster.DeviceID(id)
	}
	return out
}

func fromDevices(ids []cluster.DeviceID) []uint32 {
	if len(ids) == 0 {
		return nil
	}
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = uint32(id)
	}
	return out
}
