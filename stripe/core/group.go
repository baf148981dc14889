// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"
	"maps"
	"slices"

	"braid/cluster"
	"braid/transport"
)

// group is a placement group as the hot path needs it.
type group struct {
	id     cluster.PGID
	epoch  uint32
	n      uint8            // in-sync devices
	inSync [MaxCopies]int32 // by device index
}

// writeSet is who must apply a write: every in-sync replica.
//
// Resync's place (rules 23, 25): from the epoch that names a target on, writes
// and flushes go there too, and its answer, applied or skipped, is waited for.
func (g *group) writeSet() []int32 { return g.inSync[:g.n] }

// resolved reports whether reads and writes of the group may go out.
//
// The attach's place (rules 4, 6, 8): a region that some replica's activity log
// names must be resolved and stamped before any I/O to it.
func (g *group) resolved() bool { return true }

// live reports whether a read's reply may be given to the front end.
//
// The lease's place (rule 15): it may, while every in-sync replica has confirmed
// our generation within the lease; looked at after the reply has arrived.
func (g *group) live() bool { return true }

func (g *group) has(dev int32) bool {
	for _, d := range g.inSync[:g.n] {
		if d == dev {
			return true
		}
	}
	return false
}

func (g *group) equal(o *group) bool {
	return g.id == o.id && g.epoch == o.epoch && g.n == o.n && g.inSync == o.inSync
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
	groups := make([]group, len(table))
	for i, pg := range table {
		if pg == nil || len(pg.InSync) > MaxCopies {
			return fmt.Errorf("map version %d: group %d of set %d is missing or has more than %d "+
				"in-sync replicas", m.Version, i, set.Number, MaxCopies)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(m.Devices)) { // the same map, the same run
		dev, d := m.Devices[id], &c.devs[c.device(id)]
		d.server, d.addr = dev.Server, dev.Addr
		d.local = local != nil && local(dev)
	}
	for i, pg := range table {
		g := &groups[i]
		g.id, g.epoch = pg.ID, pg.Epoch
		for _, id := range pg.InSync {
			g.inSync[g.n] = c.device(id)
			g.n++
		}
	}
	c.size, c.version, c.set = v.Size, m.Version, *set
	old := c.groups
	c.groups = groups
	c.adoptDevices()
	c.adoptPieces(old)
	c.routeOrphans()
	c.run()
	return nil
}

// device returns the index of a device, which is made on first sight.
func (c *Core) device(id cluster.DeviceID) int32 {
	if i, ok := c.devIndex[id]; ok {
		return i
	}
	i := int32(len(c.devs))
	c.devIndex[id] = i
	c.devs = append(c.devs, device{id: id, queue: emptyList, awaySince: max(c.now, 1)})
	c.copies = append(c.copies, copyState{dev: i, frame: none, prev: none, next: none})
	return i
}

// adoptDevices finds out who is in sync anywhere. A device that no longer is
// needs no flush and keeps no secrets: should it come back, it does so as new.
func (c *Core) adoptDevices() {
	for i := range c.devs {
		c.devs[i].inSync = false
	}
	for i := range c.groups {
		for _, d := range c.groups[i].inSync[:c.groups[i].n] {
			c.devs[d].inSync = true
		}
	}
	for i := range c.devs {
		d := &c.devs[i]
		if d.inSync {
			continue
		}
		c.closeLinks(int32(i), "no group counts on the device any more")
		d.incKnown, d.broken = false, ""
		d.firstUnflushed, d.lastUnflushed = 0, 0
		c.dropFlush(int32(i))
	}
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
		case !g.has(cp.dev):
			c.removeCopy(ref)
		case cp.kind == copyDelayed && staleMap(cp.why):
			c.leaveList(ref)
			c.enqueue(ref)
		}
	}
	for _, d := range g.writeSet() {
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
		case copyQueued:
			if !g.has(cp.dev) {
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

// Adopted is the newest map version such that no write issued under an older
// one is outstanding (rule 23).
func (c *Core) Adopted() uint64 {
	v := c.version
	for i := range c.pieces[:c.pieceHigh] {
		if p := &c.pieces[i]; p.live && p.isWrite() {
			v = min(v, p.version)
		}
	}
	return v
}

// Wanted calls out each device that the volume needs connections to.
func (c *Core) Wanted(do func(id cluster.DeviceID, broken bool)) {
	for i := range c.devs {
		if d := &c.devs[i]; d.inSync {
			do(d.id, d.broken != "")
		}
	}
}
