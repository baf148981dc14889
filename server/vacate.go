// SPDX-License-Identifier: Apache-2.0

package server

import (
	"braid/cluster"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// vacate frees what this device holds of groups that do not list it any more.
//
// The map that says so is a fence (rule 24): nothing is admitted for such a group
// from then on, and the chunks go when what was admitted before has ended, so no
// reader of an older map finds a hole. A device that the map does not list at all
// keeps everything: it may have been taken for another.
func (d *device) vacate() {
	m, own := d.gate.Map(), d.gate.Device()
	if m == nil || d.vacated == m.Version || d.vacating || d.gate.Adopted() != m.Version ||
		own == 0 || m.Devices[own] == nil || d.state != deviceServing {
		return
	}
	version := m.Version
	if !d.vacancies(m, own) {
		d.vacated = version
		return
	}
	d.vacating = true
	d.own(store.Request{Op: store.OpVacate, Gone: d.isForeign}, func(status transport.Status) {
		d.vacating = false
		if status != transport.StatusOK {
			d.member = nil // with the next map
			d.log.Warn("chunks of groups that lie elsewhere now were not freed", "status", status)
			return
		}
		d.vacated = version
		d.refreshReport()
		d.tell()
		d.vacate()
	})
}

// vacancies reports whether the device has left a group since the last time, or
// may have before its start.
func (d *device) vacancies(m *cluster.Map, own cluster.DeviceID) bool {
	left := d.member == nil
	if left {
		d.member = map[uint32][]bool{}
	}
	for set, table := range m.PGs {
		was := d.member[set]
		now := make([]bool, len(table))
		for i, pg := range table {
			now[i] = pg != nil && pg.Member(own)
			left = left || i < len(was) && was[i] && !now[i]
		}
		d.member[set] = now
	}
	return left
}

// isForeign reports whether a chunk belongs to a group of which the newest map
// gives this device no copy, and nothing of an older map is under way there.
func (d *device) isForeign(id cluster.VolumeID, chunk uint64) bool {
	m, own := d.gate.Map(), d.gate.Device()
	v := m.Volumes[id]
	if v == nil || own == 0 || m.Devices[own] == nil {
		return false
	}
	pg := m.VolumePG(v, chunk)
	if pg == nil || pg.Member(own) || d.gate.Draining(pg.ID) {
		return false
	}
	role, _ := d.gate.Role(pg.ID)
	return role == gate.RoleNone
}
