// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// vacate frees what the node holds of groups that lie elsewhere, as package
// server does it: with the map that says so adopted, so that nothing which an
// older one admitted finds a hole (rule 24).
func (n *Node) vacate() {
	m := n.gate.Map()
	if n.vacating || n.clean || n.state != nodeUp || n.dev == 0 || m == nil || n.vacated >= m.Version ||
		n.gate.Adopted() != m.Version || m.Devices[n.dev] == nil {
		return
	}
	version := m.Version
	foreign := false
	for _, v := range n.w.volumes {
		for chunk := range v.size / cluster.ChunkSize {
			foreign = foreign || n.core.Peek(v.id, 0, chunk).Stored && n.isForeign(v.id, chunk)
		}
	}
	if !foreign {
		n.vacated = version
		return
	}
	n.vacating = true
	life := n.life
	n.own(store.Request{Op: store.OpVacate, Gone: n.isForeign}, func(s transport.Status) {
		if n.life != life {
			return
		}
		n.vacating = false
		if s == transport.StatusOK {
			n.vacated = version
			n.w.mark("chunks vacated")
			n.w.logf("%s has freed what lies elsewhere by map %d", n.name, version)
			n.vacate()
		}
	})
}

func (n *Node) isForeign(id cluster.VolumeID, chunk uint64) bool {
	m := n.gate.Map()
	v := m.Volumes[id]
	if v == nil || m.Devices[n.dev] == nil {
		return false
	}
	pg := m.VolumePG(v, chunk)
	if pg == nil || pg.Member(n.dev) || n.gate.Draining(pg.ID) {
		return false
	}
	role, _ := n.gate.Role(pg.ID)
	return role == gate.RoleNone
}
