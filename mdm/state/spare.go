// SPDX-License-Identifier: Apache-2.0

package state

import (
	"maps"
	"time"

	"braid/cluster"
)

// PlanSpare makes devices spare, which take no copies and whose copies move elsewhere
// first, or puts spares to use.
func (s *State) PlanSpare(ids []cluster.DeviceID, spare bool, m Membership, now time.Time) (*Tx, MovePlan, error) {
	if len(ids) == 0 {
		return nil, MovePlan{}, refuse(ErrInvalid, "which device? `scli device list` shows them")
	}
	tx := s.Begin(now)
	m.With, m.Without = maps.Clone(m.With), maps.Clone(m.Without)
	marks := &m.With
	if spare {
		marks = &m.Without
	}
	if *marks == nil {
		*marks = map[cluster.DeviceID]bool{}
	}
	for _, id := range ids {
		d := s.devices[id]
		switch {
		case d == nil:
			return nil, MovePlan{}, refuse(ErrNotFound, "spare device %d: there is none; `scli device list` shows "+
				"them", id)
		case d.Removing || d.RolledBack:
			return nil, MovePlan{}, refuse(ErrRefused, "device %d (%s) is on its way out of the cluster", id,
				deviceName(d))
		}
		(*marks)[id] = true
		s.putSpare(tx, d, spare)
	}
	plan, err := s.PlanMoves(m, now)
	if err == nil {
		err = plan.Room()
	}
	if err != nil {
		return nil, plan, prefixed("spare devices: ", err)
	}
	return tx, plan, nil
}

func (s *State) putSpare(tx *Tx, d *Device, spare bool) {
	if d.Spare == spare {
		return
	}
	next := *d
	next.Spare = spare
	tx.put(deviceKey(d.ID), next)
	if spare {
		tx.event(Info, "device-spare", deviceName(d), "device %d (%s) is spare now: its copies move elsewhere", d.ID,
			deviceName(d))
	} else {
		tx.event(Info, "device-used", deviceName(d), "device %d (%s) was a spare and takes copies now", d.ID,
			deviceName(d))
	}
}
