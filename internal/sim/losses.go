// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"

	"braid/cluster"
	"braid/mdm/state"
	"braid/server/store"
	"braid/transport"
	"braid/transport/bio"
)

// Losses that seeds draw: devices that never return, fresh ones that come, and writes
// that land at another place. Two such losses of one group at a time would lose its
// data rightly; the guards here keep a seed from that.

// setGrace sets how long a device may be away, and has the manager plan by it.
func (w *World) setGrace() {
	m := w.mdm
	next := m.st.Settings()
	next.Grace = w.cfg.Grace
	tx, err := m.st.Set(next, m.time())
	if err != nil {
		w.failf("grace: %v", err)
		return
	}
	m.commit(tx)
	w.after(s1, evFault, 0, w.tendLosses)
}

// tendLosses is what an operator and the manager's planner do once a second.
func (w *World) tendLosses() {
	w.after(s1, evFault, 0, w.tendLosses)
	m := w.mdm
	for _, n := range w.nodes {
		if n.gone && n.state == nodeDown && w.isNeeded(n) {
			w.logf("%s is found again: nobody else has what it holds", n.name)
			n.gone = false
			n.start()
		}
	}
	if !m.up || w.isSpoilt() {
		return
	}
	w.markLosses()
	if plan, err := m.st.PlanMoves(state.Membership{}, m.time()); err == nil && len(plan.Moves) > 0 {
		w.mark("groups move because devices have changed")
		m.commit(m.st.Move(plan, "devices changed", m.time()))
		m.tend()
	}
}

// markLosses also removes the lost devices that no group counts on any more.
func (w *World) markLosses() {
	m := w.mdm
	for _, n := range w.nodes {
		d := m.m.Devices[n.dev]
		if d == nil {
			continue
		}
		member, inSync := w.counts(n)
		switch {
		case n.gone && n.state == nodeDown && !member:
			tx, err := m.st.RemoveDevice(n.dev, true, m.time())
			if err != nil {
				w.failf("remove a device that holds nothing: %v", err)
				return
			}
			w.logf("mdm: %s is removed", n.name)
			w.mark(markGrace)
			m.commit(tx)
		case n.fresh && inSync:
			w.mark(markFresh)
		}
	}
}

// counts reports whether any group counts on a node, and whether as a copy in sync.
func (w *World) counts(n *Node) (member, inSync bool) {
	for _, table := range w.mdm.m.PGs {
		for _, pg := range table {
			member = member || pg.Member(n.dev) || pg.Target == n.dev
			inSync = inSync || pg.Has(n.dev)
		}
	}
	return member, inSync
}

// isNeeded reports whether a group has no copy but those that are gone, or none that is
// up and, as far as the manager knows, has lost nothing: it restarted before the loss.
func (w *World) isNeeded(n *Node) bool {
	unclean := func(cluster.VolumeID) bool { return false }
	for _, table := range w.mdm.m.PGs {
		for _, pg := range table {
			if !pg.Has(n.dev) {
				continue
			}
			if ok, _ := w.mdm.st.MayLeave(pg.ID, n.dev, unclean); !ok && w.othersAreUp(pg, n) {
				return true
			}
		}
	}
	return false
}

// othersAreUp reports whether the manager waits for no other copy of a group to return.
func (w *World) othersAreUp(pg *cluster.PG, n *Node) bool {
	return w.mdm.up && !slices.ContainsFunc(pg.InSync, func(id cluster.DeviceID) bool {
		o := w.nodeOf(id)
		if o == nil || o == n || o.gone {
			return false
		}
		_, _, up := w.mdm.st.Reach(id)
		return !up
	})
}

// loseNode ends a node for good, where its groups have others that are up.
func (w *World) loseNode(n *Node) {
	left := 0
	for _, o := range w.nodes {
		if o.gone && w.mdm.m.Devices[o.dev] != nil {
			return // one at a time
		}
		if !o.gone && o.dev != 0 {
			left++
		}
	}
	if n.state != nodeUp || left <= w.cfg.Replicas {
		return
	}
	for _, table := range w.mdm.m.PGs {
		for _, pg := range table {
			if pg.Has(n.dev) && !slices.ContainsFunc(pg.InSync, func(id cluster.DeviceID) bool {
				o := w.nodeOf(id)
				return o != nil && o != n && o.state == nodeUp
			}) {
				return
			}
		}
	}
	w.mark("a device is lost")
	w.logf("%s is lost", n.name)
	n.kill(true)
	n.gone = true
}

// freshNode adds a server with an empty device, one more than there were at the most.
func (w *World) freshNode(*Node) {
	left := 0
	for _, o := range w.nodes {
		if !o.gone {
			left++
		}
	}
	if left > w.cfg.Servers || len(w.nodes) >= 2*w.cfg.Servers {
		return
	}
	i := len(w.nodes)
	n := newNode(w, i, w.cfg.diskSize(i))
	n.cfg, n.fresh = w.nodes[0].cfg, true
	w.nodes = append(slices.Clip(w.nodes), n)
	w.mark("a fresh device comes")
	w.logf("%s comes with a fresh device", n.name)
	n.start()
}

// strayFor is how long a disk waits for a write to lead astray.
const strayFor = 2 * s1

// strayNode has the next write of one block land on another block of the same device,
// where every group of the cluster is whole and all else is well. Until that is mended
// nothing happens to copies: a second fault would take the only good one.
func (w *World) strayNode(n *Node) {
	if n.state != nodeUp || !w.isWhole() {
		return
	}
	var at []int64
	for _, v := range w.volumes {
		for chunk := range v.size / cluster.ChunkSize {
			p := n.core.Peek(v.id, 0, chunk)
			for b := range uint64(cluster.BlocksPerChunk) {
				if p.Known && n.content(&p, b) != nil {
					at = append(at, p.At+int64(b)*block)
				}
			}
		}
	}
	if len(at) == 0 {
		return
	}
	n.disk.astray, n.disk.oneBlock = at[w.rng.IntN(len(at))], true
	w.logf("the next block that %s writes lands at byte %d", n.name, n.disk.astray)
	w.after(strayFor, evFault, n.id, func() { n.disk.astray = 0 })
	w.after(20*ms, evFault, n.id, func() { w.searchStray(n, w.now) })
}

// isWhole reports whether no fault is under way and no group lacks a copy.
func (w *World) isWhole() bool {
	if !w.mdm.up || w.isSpoilt() || slices.ContainsFunc(w.plan.cuts, func(p cutPair) bool { return p.until > w.now }) {
		return false
	}
	for _, n := range w.nodes {
		if n.gone {
			continue
		}
		if n.state != nodeUp || n.clean || n.cutOff || n.disk.stalled > w.now || n.disk.failRead != nil ||
			n.disk.failNext != (diskFault{}) {
			return false
		}
		for _, s := range n.conns {
			if s.c.dying || s.c.clog[0] > w.now || s.c.clog[1] > w.now {
				return false
			}
		}
	}
	for _, v := range w.volumes {
		if !v.serving() || v.client.cutOff || v.client.core.Sound() == 0 {
			return false
		}
	}
	for _, table := range w.mdm.m.PGs {
		for _, pg := range table {
			if len(pg.InSync) != w.cfg.Replicas || pg.Target != 0 {
				return false
			}
			for _, id := range pg.InSync {
				if o := w.nodeOf(id); o == nil || o.state != nodeUp {
					return false
				}
			}
		}
	}
	return true
}

// isSpoilt reports whether a write went astray, or may, and is not mended.
func (w *World) isSpoilt() bool {
	return slices.ContainsFunc(w.nodes, func(n *Node) bool { return n.disk.astray != 0 || len(n.disk.wrong) > 0 })
}

// searchStray reads what a stray write spoilt until all of it is mended. A client reads a
// block from the same copy each time, as long as that one answers; when it has had the time
// to find what it can find, the server looks itself, as a scrub would. What nothing refers
// to any more needs no mending.
func (w *World) searchStray(n *Node, since int64) {
	d := n.disk
	if n.state == nodeUp {
		d.wrong = slices.DeleteFunc(d.wrong, func(at int32) bool {
			v, first := w.blockAt(n, at)
			if v == nil || !v.serving() {
				return v == nil
			}
			if w.now-since > scrubAfter {
				n.scrub(v, first, at)
			} else {
				v.guest.submit(&request{r: bio.Request{Op: bio.Read}, first: first, count: 1})
			}
			if !slices.ContainsFunc(v.guest.live, func(q *request) bool { return q.r.Op == bio.Flush }) {
				v.guest.submit(&request{r: bio.Request{Op: bio.Flush}})
			}
			return false
		})
	}
	if d.astray != 0 || len(d.wrong) > 0 {
		w.after(50*ms, evFault, n.id, func() { w.searchStray(n, since) })
	}
}

// scrubAfter is when a scrub comes to what no client has met.
const scrubAfter = strayFor + s1

// scrub reads a block of the node's own, at that sector, and has it mended where it does not
// match its checksum. One that does holds what it should: the same bytes went astray.
func (n *Node) scrub(v *Volume, first uint64, sector int32) {
	if n.mending != nil {
		return
	}
	chunk, at := v.locate(first)
	h := transport.Header{Chunk: chunk, Offset: uint32(at * block), Length: block}
	j := &job{req: store.Request{Op: store.OpRead, Volume: v.id, Gen: n.core.Generation(v.id), Chunk: chunk,
		Offset: h.Offset, Length: h.Length, Data: make([]byte, block), Sums: make([]byte, 8)}}
	life := n.life
	j.then = func(s transport.Status) {
		matches := s == transport.StatusOK && (j.req.Hole || transport.VerifySums(j.req.Data, j.req.Sums) < 0)
		switch {
		case n.life != life:
		case matches && !slices.Contains(n.disk.righted, sector):
			n.disk.wrong = slices.DeleteFunc(n.disk.wrong, func(at int32) bool { return at == sector })
		case matches: // mended, and nobody has anything to flush
			if n.disk.failNext == (diskFault{}) && n.disk.lies == 0 {
				_ = n.disk.Flush()
			}
		case n.mending == nil:
			n.mendFrom(v, h)
		}
	}
	n.submit(j)
}

// blockAt names the block whose place on a node's disk a sector is.
func (w *World) blockAt(n *Node, at int32) (*Volume, uint64) {
	for _, v := range w.volumes {
		for chunk := range v.size / cluster.ChunkSize {
			p := n.core.Peek(v.id, 0, chunk)
			b := int64(at) - p.At/sectorSize
			if p.Stored && b >= 0 && b < cluster.BlocksPerChunk && mayHold(&p, uint64(b)) {
				return v, v.block(chunk, uint64(b))
			}
		}
	}
	return nil, 0
}

// mayHold reports whether a block is present, or nobody knows at this instant.
func mayHold(p *store.Peek, b uint64) bool { return !p.Known || p.Present[b/8]&(1<<(b%8)) != 0 }
