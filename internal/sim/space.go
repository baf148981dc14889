// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/transport/bio"
)

// setFull takes all room away from a device, or gives it back: what clients' writes
// have not got yet they do not get. Copies go on.
func (n *Node) setFull(full bool) {
	n.isFull = full
	if n.core != nil {
		n.core.SetReserve(n.reserve())
		n.schedule()
	}
}

func (n *Node) reserve() uint32 {
	if n.isFull {
		return 100
	}
	return 0
}

// fillNode takes a device's room for a while. Volumes trim some of what they hold at
// first: their next writes there need room.
func (w *World) fillNode(n *Node) {
	w.mark("a device without room")
	w.logf("%s is full", n.name)
	for _, v := range w.volumes {
		if v.serving() {
			row := uint64(v.width) * cluster.BlocksPerChunk
			q := &request{first: w.rng.Uint64N(v.size/block/row) * row, count: row}
			q.r.Op = bio.Trim
			v.guest.submit(q)
		}
	}
	w.after(w.between(10*ms, s1), evFault, n.id, func() {
		if !w.healing {
			n.setFull(true)
		}
	})
	w.after(w.between(2*s1, 9*s1), evFault, n.id, func() {
		w.logf("%s has room again", n.name)
		n.setFull(false)
	})
}
