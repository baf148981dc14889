// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"braid/cluster"
)

// VolumeSpec is what a volume is to be like. Zeroes mean the defaults.
type VolumeSpec struct {
	Name        string
	Size        uint64
	Replicas    int
	StripeUnit  uint32
	StripeWidth uint32
	BlockSize   uint32
	Request     string // unique per wish; a repeated call gets the same volume
}

// Defaults and limits of volumes.
const (
	defaultReplicas    = 2
	defaultStripeUnit  = 64 << 10
	defaultStripeWidth = 8
	defaultBlockSize   = 4096
	maxReplicas        = 4
	maxStripeWidth     = 64
	maxNameLength      = 63
	maxVolumeSize      = 1 << 60 // chunk indexes stay far from 64 bits
)

// Volumes returns all volumes by name.
func (s *State) Volumes() []*Volume {
	return slices.SortedFunc(maps.Values(s.volumes), func(a, b *Volume) int {
		return cmp.Compare(a.Name, b.Name)
	})
}

// DevicesOf returns the devices that hold, or are to hold, copies of a volume's groups.
func (s *State) DevicesOf(v *Volume) []cluster.DeviceID {
	found := map[cluster.DeviceID]bool{}
	s.each(v.PGSet, func(_ cluster.PGID, p *placed) {
		for _, id := range p.value.InSync {
			found[id] = true
		}
		if p.value.Target != 0 {
			found[p.value.Target] = true
		}
	})
	return slices.Sorted(maps.Keys(found))
}

// Session returns the volume's session, or nil. A dead one is none.
func (s *State) Session(id cluster.VolumeID) *Session {
	if x := s.sessions[id]; x != nil && !x.Dead {
		return x
	}
	return nil
}

// Sessions returns all sessions that are not dead, by volume.
func (s *State) Sessions() []*Session {
	var out []*Session
	for _, id := range slices.Sorted(maps.Keys(s.sessions)) {
		if x := s.Session(id); x != nil {
			out = append(out, x)
		}
	}
	return out
}

// CreateVolume plans a volume, and the PG set for its number of replicas where
// that is the first one.
func (s *State) CreateVolume(spec VolumeSpec, now time.Time) (*Tx, *Volume, []string, error) {
	spec = spec.withDefaults()
	if err := spec.check(); err != nil {
		return nil, nil, nil, err
	}
	op := "create volume " + spec.Name + ": "
	if v := s.volumeByName(spec.Name); v != nil {
		if spec.Request != "" && v.Request == spec.Request {
			return s.Begin(now), v, nil, nil // the answer got lost, the volume is there
		}
		return nil, nil, nil, refuse(ErrExists, "%sthe name is in use; `scli volume list` shows all, "+
			"`scli volume delete` frees one", op)
	}
	if d := len(s.devices); d < spec.Replicas {
		return nil, nil, nil, refuse(ErrRefused, "%s%d replicas need %d devices, there %s; add servers "+
			"(sds serve), or ask for fewer replicas (--replicas)", op, spec.Replicas, spec.Replicas,
			thereAre(d, "is %d", "are %d"))
	}
	tx := s.Begin(now)
	next := s.counters
	number, usable, warnings, err := s.layOut(tx, spec.Replicas, &next)
	if err != nil {
		return nil, nil, nil, prefixed(op, err)
	}
	if err := s.checkCapacity(op, spec.Size, spec.Replicas, usable); err != nil {
		return nil, nil, nil, err
	}
	v := &Volume{ID: next.Volume, Name: spec.Name, Size: spec.Size, Replicas: spec.Replicas,
		StripeUnit: spec.StripeUnit, StripeWidth: spec.StripeWidth, BlockSize: spec.BlockSize,
		PGSet: number, Created: tx.now, Request: spec.Request}
	next.Volume++
	tx.put(volumeKey(v.ID), v)
	tx.put(countersKey, next)
	tx.event(Info, "volume-created", v.Name, "volume %s of %s was created, %d replicas", v.Name,
		cluster.FormatSize(v.Size), v.Replicas)
	return tx, v, append(warnings, s.thinWarning(number, v.Size, usable)...), nil
}

func prefixed(op string, err error) error {
	if r, ok := err.(*Refusal); ok {
		return &Refusal{Kind: r.Kind, Text: op + r.Text}
	}
	return fmt.Errorf("%s%w", op, err)
}

func (v VolumeSpec) withDefaults() VolumeSpec {
	v.Replicas = cmp.Or(v.Replicas, defaultReplicas)
	v.StripeUnit = cmp.Or(v.StripeUnit, defaultStripeUnit)
	v.StripeWidth = cmp.Or(v.StripeWidth, defaultStripeWidth)
	v.BlockSize = cmp.Or(v.BlockSize, defaultBlockSize)
	return v
}

func checkName(op, name string) error {
	if len(name) == 0 || len(name) > maxNameLength || strings.Trim(name, ".") == "" ||
		strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789._-") != "" {
		return refuse(ErrInvalid, "%sa name has 1 to %d of the characters a-z 0-9 . _ - and is not only dots, "+
			"which %q does not fit", op, maxNameLength, name)
	}
	return nil
}

func (v VolumeSpec) check() error {
	op := "create volume " + v.Name + ": "
	if err := checkName(op, v.Name); err != nil {
		return err
	}
	if err := checkSize(op, v.Size); err != nil {
		return err
	}
	switch {
	case v.Replicas < 1 || v.Replicas > maxReplicas:
		return refuse(ErrInvalid, "%s%d replicas; possible are 1 to %d", op, v.Replicas, maxReplicas)
	case v.StripeUnit < cluster.BlockSize || v.StripeUnit > cluster.ChunkSize ||
		v.StripeUnit&(v.StripeUnit-1) != 0:
		return refuse(ErrInvalid, "%sa stripe unit of %s; possible are powers of two from 4K to 1M",
			op, cluster.FormatSize(uint64(v.StripeUnit)))
	case v.StripeWidth < 1 || v.StripeWidth > maxStripeWidth:
		return refuse(ErrInvalid, "%sa stripe width of %d; possible are 1 to %d", op, v.StripeWidth,
			maxStripeWidth)
	case v.BlockSize != 512 && v.BlockSize != 4096:
		return refuse(ErrInvalid, "%sa block size of %d; possible are 512 (for disk images) and 4096",
			op, v.BlockSize)
	}
	return nil
}

func checkSize(op string, size uint64) error {
	switch {
	case size == 0:
		return refuse(ErrInvalid, "%sthe size is 0; give one like --size 10G", op)
	case size%cluster.BlockSize != 0:
		up := (size/cluster.BlockSize + 1) * cluster.BlockSize
		return refuse(ErrInvalid, "%sthe size %d is not a multiple of %d; the next larger one is %d",
			op, size, cluster.BlockSize, up)
	case size > maxVolumeSize:
		return refuse(ErrInvalid, "%sthe size %s is beyond the largest possible, %s", op,
			cluster.FormatSize(size), cluster.FormatSize(maxVolumeSize))
	}
	return nil
}

func (s *State) checkCapacity(op string, size uint64, replicas int, usable uint64) error {
	if size <= usable {
		return nil
	}
	return refuse(ErrRefused, "%s%s is more than the cluster can hold with %d replicas, which is %s; "+
		"add devices, or ask for a smaller size or fewer replicas", op, cluster.FormatSize(size),
		replicas, cluster.FormatSize(usable))
}

// thinWarning says when the volumes of a set together promise more than there
// is: allowed, because they are thin, but somebody has to know.
func (s *State) thinWarning(set uint32, more, usable uint64) []string {
	total := more
	for _, v := range s.volumes {
		if v.PGSet == set {
			total += v.Size
		}
	}
	if total <= usable {
		return nil
	}
	return []string{fmt.Sprintf("all volumes together promise %s, the devices hold %s: add devices "+
		"before they are full", cluster.FormatSize(total), cluster.FormatSize(usable))}
}

func (s *State) volumeByName(name string) *Volume {
	for _, v := range s.volumes {
		if v.Name == name {
			return v
		}
	}
	return nil
}

// named finds a volume; an empty name means the only one.
func (s *State) named(op, name string) (*Volume, error) {
	if v := s.volumeByName(name); v != nil {
		return v, nil
	}
	var names []string
	for _, v := range s.Volumes() {
		names = append(names, v.Name)
	}
	switch {
	case len(names) == 0:
		return nil, refuse(ErrNotFound, "%s: there are no volumes; make one with `scli volume create "+
			"NAME --size 10G`", op)
	case name != "":
		return nil, refuse(ErrNotFound, "%s: there is no such volume; there are: %s", op,
			strings.Join(names, ", "))
	case len(names) > 1:
		return nil, refuse(ErrInvalid, "%s: there are several volumes, say which (--volume): %s", op,
			strings.Join(names, ", "))
	}
	return s.volumeByName(names[0]), nil
}

// ResizeVolume plans a new size.
func (s *State) ResizeVolume(name string, size uint64, shrink bool, now time.Time,
) (*Tx, *Volume, []string, error) {
	op := "resize volume " + name
	v, err := s.named(op, cmp.Or(name, "?"))
	if err != nil {
		return nil, nil, nil, err
	}
	op += ": "
	if err := checkSize(op, size); err != nil {
		return nil, nil, nil, err
	}
	tx := s.Begin(now)
	next := *v
	next.Size = size
	var warnings []string
	switch {
	case size == v.Size:
		return tx, v, nil, nil
	case size < v.Size && !shrink:
		return nil, nil, nil, refuse(ErrRefused, "%sit has %s, and %s would cut off what lies beyond; "+
			"shrink the file system first, then repeat with --shrink", op,
			cluster.FormatSize(v.Size), cluster.FormatSize(size))
	case size < v.Size && s.Session(v.ID) != nil:
		return nil, nil, nil, refuse(ErrRefused, "%sit is %s, and an attached volume cannot shrink; "+
			"detach it first", op, s.Session(v.ID).holder())
	case size < v.Size:
		warnings = append(warnings, "what lies beyond the new end keeps its space and shows again "+
			"if the volume grows; discard it before shrinking")
	default:
		usable, notes := s.usable(v.PGSet)
		if err := s.checkCapacity(op, size, v.Replicas, usable); err != nil {
			return nil, nil, nil, err
		}
		warnings = append(notes, s.thinWarning(v.PGSet, size-v.Size, usable)...)
	}
	tx.put(volumeKey(v.ID), next)
	tx.event(Info, "volume-resized", v.Name, "volume %s has %s now, it had %s", v.Name,
		cluster.FormatSize(size), cluster.FormatSize(v.Size))
	return tx, &next, warnings, nil
}

// DeleteVolume plans the end of a volume. A tombstone tells the servers to free
// its chunks, whenever they see it.
func (s *State) DeleteVolume(name string, force bool, now time.Time) (*Tx, error) {
	op := "delete volume " + name
	v, err := s.named(op, cmp.Or(name, "?"))
	if err != nil {
		return nil, err
	}
	session := s.Session(v.ID)
	if session != nil && !force {
		return nil, refuse(ErrRefused, "%s: it is %s; detach it there (sdc detach), or delete it all "+
			"the same with --force", op, session.holder())
	}
	tx := s.Begin(now)
	tx.remove(volumeKey(v.ID))
	tx.remove(sessionKey(v.ID))
	tx.put(removedKey(v.ID), Tombstone{Volume: v.ID, Name: v.Name, Deleted: tx.now})
	tx.event(Info, "volume-deleted", v.Name, "volume %s of %s was deleted", v.Name,
		cluster.FormatSize(v.Size))
	return tx, nil
}

// Tombstones returns the deleted volumes of which servers may hold chunks.
func (s *State) Tombstones() []cluster.VolumeID { return slices.Sorted(maps.Keys(s.removed)) }

// DeviceIDs returns all devices, by number.
func (s *State) DeviceIDs() []cluster.DeviceID { return slices.Sorted(maps.Keys(s.devices)) }

// Forget plans the end of tombstones: nothing is left of these volumes.
func (s *State) Forget(ids []cluster.VolumeID, now time.Time) *Tx {
	tx := s.Begin(now)
	for _, id := range ids {
		tx.remove(removedKey(id))
	}
	return tx
}
