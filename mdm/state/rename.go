// SPDX-License-Identifier: Apache-2.0

package state

import (
	"time"

	"braid/cluster"
)

// RenameVolume plans another name. Nothing else changes: servers and clients know
// volumes by number, so that it may be attached. With a number, the volume may be
// called the new name already: the answer to an earlier call got lost.
func (s *State) RenameVolume(id cluster.VolumeID, name, to string, now time.Time) (*Tx, *Volume, error) {
	op := "rename volume " + name + ": "
	v := s.volumeByName(name)
	if id != 0 {
		v = s.volumes[id]
	}
	switch {
	case v == nil || v.Name != name && (id == 0 || v.Name != to):
		return nil, nil, refuse(ErrNotFound, "%sthere is no such volume; `scli volume list` shows all", op)
	case v.Name == to:
		return s.Begin(now), v, nil
	}
	if err := checkName(op, to); err != nil {
		return nil, nil, err
	}
	if s.volumeByName(to) != nil {
		return nil, nil, refuse(ErrExists, "%sthe name %s is in use; `scli volume list` shows all", op, to)
	}
	tx := s.Begin(now)
	next := *v
	next.Name = to
	tx.put(volumeKey(v.ID), next)
	tx.event(Info, "volume-renamed", to, "volume %s is called %s from now on", name, to)
	return tx, &next, nil
}

// NameOf returns what a volume is called by now. Callers that hold one know its
// number; that of callers of an older version is 0, and the name stands.
func (s *State) NameOf(id cluster.VolumeID, name string) (string, error) {
	switch v := s.volumes[id]; {
	case id == 0:
		return name, nil
	case v == nil:
		return "", refuse(ErrNotFound, "volume %s (number %d) was deleted", name, id)
	default:
		return v.Name, nil
	}
}
