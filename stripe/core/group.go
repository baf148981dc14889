// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"maps"
	"slices"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// group is a placement group as the hot path needs it.
type group struct {
	id      cluster.PGID
	epoch   uint32
	attempt uint32 // the epoch that announced the target
	n       uint8  // in-sync devices: the first of members
	m       uint8  // members: those and the target, if there is one
	// collected: every in-sync device has been opened, and has told what its
	// activity log holds of the volume. Before that nothing passes (rules 8, 14).
	collected bool
	members   [MaxCopies]int32 // by device index

	lastWrite  uint64 // interval of the newest write that was acknowledged
	freshUntil int64  // rule 15, see readLease
	askAt      int64
}

// writeSet is who must apply a write: every in-sync replica, and from the epoch
// on that names it the resync target, which may answer that it skipped the write
// (rules 11, 23, 25).
func (g *group) writeSet() []int32 { return g.members[:g.m] }

// inSync are the replicas that serve reads and decide what a chunk holds.
func (g *group) inSync() []int32 { return g.members[:g.n] }

// target is the device that is being resynced, or none.
func (g *group) target() int32 {
	if g.m > g.n {
		return g.members[g.n]
	}
	return none
}

func (g *group) has(dev int32) bool {
	return slices.Contains(g.inSync(), dev)
}

func (g *group) equal(o *group) bool {
	return g.id == o.id && g.epoch == o.epoch && g.n == o.n && g.m == o.m && g.members == o.members
}

// groupOf is the index of the group that holds a chunk.
func (c *Core) groupOf(chunk uint64) int32 {
	return int32(c.cfg.Volume.PG(&c.set, chunk).Index())
}

// SetMap adopts a map. local, which may be nil, tells the devices of this host.
// An error means that the map is not usable and the old one stays.
func (c *Core) SetMap(now int64, m *cluster.Map, local func(*cluster.Device) bool) error {
	c.now = now
	v := m.Volumes[c.cfg.Volume.ID]
	set, table := m.Sets[c.cfg.Volume.PGSet], m.PGs[c.cfg.Volume.PGSet]
	if v == nil || set == nil || len(table) == 0 || int(set.Count) != len(table) {
		return fmt.Errorf("map version %d lacks volume %s or its placement groups (set %d)",
			m.Version, c.cfg.Volume.Name, c.cfg.Volume.PGSet)
	}
	for i, pg := range table {
		members := 0
		if pg != nil {
			members = len(pg.InSync)
			if pg.Target != 0 && !pg.Has(pg.Target) {
				members++
			}
		}
		if pg == nil || members > MaxCopies {
			return fmt.Errorf("map version %d: group %d of set %d is missing or has more than %d copies, the "+
				"one that is brought in sync included", m.Version, i, set.Number, MaxCopies)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.Devices)) { // the same map, the same run
		dev, d := m.Devices[id], &c.devs[c.device(id)]
		d.renew = d.mapInc != 0 && dev.Incarnation != d.mapInc && d.incKnown && dev.Incarnation != d.inc
		d.server, d.addr, d.faultSet, d.mapInc = dev.Server, dev.Addr, dev.FaultSet, dev.Incarnation
		d.local = local != nil && local(dev)
	}
	old := c.groups
	c.groups = c.makeGroups(table, old)
	c.size, c.version, c.set = v.Size, m.Version, *set
	if c.checkLost(table, old); c.lost != nil {
		return nil
	}
	c.adoptDevices()
	c.adoptPieces(old)
	c.adoptLocks()
	c.adoptJobs()
	c.adoptGates(old)
	c.releaseReads()
	c.routeOrphans()
	c.run()
	return nil
}

// checkLost is rule 5 for what happened while we did not look: every copy of a
// group has lost its cache, and mdm went on with what their disks held.
func (c *Core) checkLost(table []*cluster.PG, old []group) {
	for i, pg := range table {
		if i >= len(old) || pg.LostEpoch <= old[i].epoch || old[i].lastWrite <= c.flush.through ||
			c.cfg.Off.Has(rules.Verifier) || c.survives(&old[i], pg) {
			continue
		}
		c.lose(fmt.Errorf("volume %s: every copy of placement group %d lost its cache while "+
			"acknowledged writes were not flushed; detach, check the file system, attach again: %w",
			c.cfg.Volume.Name, pg.ID, ErrBroken))
		return
	}
}

// survives reports whether some copy that was in sync and is has everything that
// it acknowledged to us: we are bound to the very incarnation that mdm found after
// the loss, so what is not flushed was written since.
func (c *Core) survives(old *group, pg *cluster.PG) bool {
	return slices.ContainsFunc(old.inSync(), func(dev int32) bool {
		d := &c.devs[dev]
		return pg.Has(d.id) && d.broken == "" && d.incKnown && d.inc == d.mapInc
	})
}

func (c *Core) makeGroups(table []*cluster.PG, old []group) []group {
	groups := make([]group, len(table))
	for i, pg := range table {
		g := &groups[i]
		g.id, g.epoch, g.attempt = pg.ID, pg.Epoch, pg.TargetEpoch
		for _, id := range pg.InSync {
			g.members[g.n] = c.device(id)
			g.n++
		}
		g.m = g.n
		if pg.Target != 0 && !pg.Has(pg.Target) {
			g.members[g.m] = c.device(pg.Target)
			g.m++
		}
		if i < len(old) && old[i].id == g.id {
			g.collected, g.lastWrite = old[i].collected, old[i].lastWrite
		}
	}
	return groups
}

// device returns the index of a device, which is made on first sight.
func (c *Core) device(id cluster.DeviceID) int32 {
	if i, ok := c.devIndex[id]; ok {
		return i
	}
	i := int32(len(c.devs))
	c.devIndex[id] = i
	c.devs = append(c.devs, device{id: id, queue: emptyList, awaySince: max(c.now, 1),
		meter: &deviceMeter{}})
	for range deviceCopies {
		c.copies = append(c.copies, copyState{dev: i, frame: none, prev: none, next: none})
	}
	return i
}

// adoptDevices finds out who counts anywhere. A device that no longer does needs
// no flush and keeps no secrets: should it come back, it does so as new.
func (c *Core) adoptDevices() {
	for i := range c.devs {
		c.devs[i].wasInSync, c.devs[i].inSync, c.devs[i].member = c.devs[i].inSync, false, false
	}
	for i := range c.groups {
		g := &c.groups[i]
		for k, d := range g.writeSet() {
			c.devs[d].member = true
			c.devs[d].inSync = c.devs[d].inSync || k < int(g.n)
		}
	}
	for i := range c.devs {
		d := &c.devs[i]
		if d.member {
			if len(d.open) == 0 && d.reportAt == 0 {
				d.reportAt = c.now + reportFirst
			}
			if d.wasInSync && !d.inSync {
				c.demoted(int32(i))
			}
			if d.renew {
				// A disk error gives a device another incarnation under an open connection. Who
				// has nothing under way there would not hear of it.
				c.closeLinks(int32(i), "it has another incarnation, says mdm")
			}
			continue
		}
		d.reportAt = 0
		c.closeLinks(int32(i), "no group counts on the device any more")
		d.incKnown, d.broken, d.confirmed = false, "", 0
		d.unflushed, d.resolved = span{}, span{}
		c.dropFlush(int32(i))
		for _, ref := range []int32{c.listRef(int32(i)), c.confirmRef(int32(i))} {
			if c.copies[ref].kind != copyNone {
				c.removeCopy(ref)
			}
		}
	}
}

// demoted is for a device that is a target at most from now on: what it had
// acknowledged before counts no more.
func (c *Core) demoted(dev int32) {
	d := &c.devs[dev]
	if d.broken != "" {
		d.broken, d.incKnown = "", false
	}
	d.unflushed = span{}
	c.dropFlush(dev)
}

// adoptPieces lets what is under way follow its group: copies on devices that
// left are not waited for any more (the set shrank by CAS: rules 10, 16), and
// devices that joined get the write too.
func (c *Core) adoptPieces(old []group) {
	for i := range c.pieces[:c.pieceHigh] {
		p := &c.pieces[i]
		if !p.live {
			continue
		}
		was := p.group
		p.group = c.groupOf(p.chunk)
		g := &c.groups[p.group]
		if p.room == roomWaits && int(was) < len(old) && !old[was].equal(g) {
			c.askRoom(int32(i))
			continue
		}
		if p.parked || p.directed {
			continue
		}
		if int(was) < len(old) && old[was].equal(g) {
			if p.isWrite() {
				p.version = c.version
			}
			continue
		}
		if p.isWrite() {
			c.adoptWrite(int32(i), g)
		} else {
			c.adoptRead(int32(i), g)
		}
	}
}

func (c *Core) adoptWrite(pi int32, g *group) {
	p := &c.pieces[pi]
	reacking := p.reacks > 0
	first := pi * MaxCopies
	for ref := first; ref < first+MaxCopies; ref++ {
		cp := &c.copies[ref]
		switch {
		case cp.kind == copyNone:
		case !slices.Contains(g.writeSet(), cp.dev):
			c.removeCopy(ref)
		case cp.kind == copyDelayed && staleMap(cp.why):
			c.leaveList(ref)
			c.enqueue(ref)
		case cp.kind == copyDone && g.isForgotten(cp):
			p.open++
			c.enqueue(ref)
		}
	}
	p.room = roomNone // all of them are asked
	for k, d := range g.writeSet() {
		if k >= int(g.n) && c.cfg.Off.Has(rules.Adoption) {
			break
		}
		if !c.usedBy(pi, none, d) {
			c.enqueue(c.addCopy(pi, d))
		}
	}
	p.version = c.version
	if reacking && p.reacks == 0 {
		c.caughtUp()
	}
	if p.open == 0 && g.n > 0 {
		c.writeDone(pi)
	}
}

// isForgotten reports whether an answer comes from before the target's present
// attempt, which does not remember what it skipped or applied then.
func (g *group) isForgotten(cp *copyState) bool {
	return cp.dev == g.target() && cp.epoch < g.attempt
}

// staleMap tells the answers that a newer map cures.
func staleMap(s transport.Status) bool {
	return s == transport.StatusStaleEpoch || s == transport.StatusRefused
}

func (c *Core) adoptRead(pi int32, g *group) {
	first := pi * MaxCopies
	for ref := first; ref < first+MaxCopies && c.pieces[pi].live; ref++ {
		cp := &c.copies[ref]
		switch cp.kind {
		case copyInFlight:
			// Its payload may be on its way into the request's bytes: let it end.
			cp.unwanted = !g.has(cp.dev)
		case copyQueued, copyHeld:
			if !g.has(cp.dev) {
				c.pieces[pi].unhold(cp)
				c.leaveList(ref)
				c.reroute(ref)
			}
		case copyDelayed:
			if staleMap(cp.why) {
				c.leaveList(ref)
				c.reroute(ref)
			}
		}
	}
}

// Adopted is the newest map version such that every device in sync under it has
// been opened, and no write or flush issued under an older one is outstanding
// (rule 23). 0: the attach is not complete. A write under way follows the map: it
// goes to a new target as well and waits for its answer, so it counts as issued
// under the newest version.
func (c *Core) Adopted() uint64 {
	if c.gate.uncollected > 0 || c.groups == nil {
		return 0
	}
	v := c.version
	for i := range c.pieces[:c.pieceHigh] {
		if p := &c.pieces[i]; p.live && !p.parked && p.isWrite() {
			v = min(v, p.version)
		}
	}
	if c.flush.step == flushSending {
		v = min(v, c.flush.version)
	}
	return v
}

// HasTarget reports whether the map names a resync target.
func (c *Core) HasTarget() bool {
	return slices.ContainsFunc(c.groups, func(g group) bool { return g.target() != none })
}

// Version is that of the newest map.
func (c *Core) Version() uint64 { return c.version }

// Sound is the map version under which every in-sync device is connected, in the
// incarnation that the map names, and no acknowledged write is lost or waits to be
// resolved. 0: not now.
func (c *Core) Sound() uint64 {
	if c.lost != nil || c.gate.uncollected > 0 || c.resolver.suspects > 0 {
		return 0
	}
	for i := range c.devs {
		if d := &c.devs[i]; d.inSync && (!d.reachable() || d.inc != d.mapInc) {
			return 0
		}
	}
	return c.version
}

// Wanted calls out each device that the volume needs connections to.
func (c *Core) Wanted(do func(id cluster.DeviceID, broken bool)) {
	for i := range c.devs {
		if d := &c.devs[i]; d.member || c.mustFence(d) {
			do(d.id, d.broken != "")
		}
	}
}
