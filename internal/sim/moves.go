// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/mdm/state"
)

// moveOne plans that a group which holds data lies on other devices.
func (m *Mdm) moveOne() {
	w := m.w
	v := w.volumes[w.rng.IntN(len(w.volumes))]
	pg := w.pgOf(v, w.rng.Uint64N(v.size/cluster.ChunkSize))
	if !m.up || pg == nil {
		return
	}
	var want []cluster.DeviceID
	for _, i := range w.rng.Perm(len(w.nodes)) {
		if d := w.nodes[i].dev; len(want) < w.cfg.Replicas && m.m.Devices[d] != nil {
			want = append(want, d)
		}
	}
	if len(want) < w.cfg.Replicas {
		return
	}
	w.mark("a group is to move")
	m.commit(m.st.Move(state.MovePlan{Moves: []state.Move{{PG: pg.ID, Want: want}}}, "by chance", m.time()))
	m.tend()
}

// remove plans that a device is emptied and removed, or takes that back.
func (m *Mdm) remove(n *Node) {
	if !m.up || m.m.Devices[n.dev] == nil {
		return
	}
	n.leaving = !n.leaving
	tx, plan, err := m.st.PlanRemoval([]cluster.DeviceID{n.dev}, n.leaving, state.Membership{}, m.time())
	if err != nil {
		n.leaving = false
		return
	}
	m.w.mark("a device is to be removed, or no longer")
	m.w.logf("mdm: %s is to be removed: %v", n.name, n.leaving)
	m.commit(tx)
	m.commit(m.st.Move(plan, "removal", m.time()))
	m.tend()
}

// readErrors has a device read nothing for a while.
func (w *World) readErrors(n *Node) {
	w.mark("read errors")
	n.disk.failRead = []span{{0, n.disk.Size()}}
	w.after(w.between(50*ms, 3*s1), evFault, n.id, func() { n.disk.failRead = nil })
}
