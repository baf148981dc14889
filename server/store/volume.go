// SPDX-License-Identifier: Apache-2.0

package store

import (
	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// volume is what the device knows of one volume: the generation it serves.
type volume struct {
	id      cluster.VolumeID
	gen     cluster.Generation // admitted from now on
	durable cluster.Generation // persisted
	logSeq  uint64             // group of its newest fence record
	drained cluster.Tag        // newest drained flush that completed here
	isNoted bool               // its fence record waits for a commit
	dropped bool
	// Requests are counted in two phases; a fence starts a new phase and waits for
	// the old one to empty. fencing is the fence that does so, and those that need
	// the same; draining waits for its turn.
	phase    uint8
	inflight [2]uint32
	fencing  reqQueue
	draining reqQueue
}

func (c *Core) volume(id cluster.VolumeID) *volume {
	v := c.volumes[id]
	if v == nil {
		v = &volume{id: id}
		c.volumes[id] = v
		c.vols = append(c.vols, v)
	}
	return v
}

// admitVolume checks the request's generation and counts it (rule 14).
func (c *Core) admitVolume(r *Request) transport.Status {
	v := c.volumes[r.Volume]
	switch {
	case v == nil || v.dropped || r.Gen > v.gen:
		return transport.StatusNoSession
	case r.Gen < v.gen && !c.cfg.Off.Has(rules.Fence):
		return transport.StatusFenced
	}
	r.vol, r.phase = v, v.phase
	v.inflight[v.phase]++
	return transport.StatusOK
}

// fence is rule 14: stop admitting, drain what is in flight, persist the
// generation, reply. A generation that is already persisted drains all the
// same: its client reconnects and must not be overtaken by what it sent before.
func (c *Core) fence(r *Request) {
	v := c.volume(r.Volume)
	r.Value = uint64(v.gen)
	if r.Gen < v.gen || v.dropped || r.Gen == 0 {
		c.reply(r, transport.StatusFenced)
		return
	}
	v.gen = r.Gen
	if c.cfg.Off.Has(rules.Fence) {
		c.fenceReply(v, r)
		return
	}
	v.draining.push(r)
	c.fenceDrained(v)
}

// fenceDrained moves the fences of a volume on when a phase has emptied.
func (c *Core) fenceDrained(v *volume) {
	for {
		if v.fencing.head == nil {
			if v.draining.head == nil {
				return
			}
			v.fencing.join(&v.draining)
			v.phase ^= 1
		}
		if v.inflight[v.phase^1] != 0 {
			return
		}
		// Persisting waits for a commit; without one to write the reply is due now.
		if v.durable >= v.gen {
			for r := v.fencing.pop(); r != nil; r = v.fencing.pop() {
				c.fenceReply(v, r)
			}
			continue
		}
		c.noteFence(v)
		c.log.fences.join(&v.fencing)
	}
}

// noteFence has the next commit persist the volume's generation.
func (c *Core) noteFence(v *volume) {
	if !v.isNoted {
		v.isNoted = true
		c.log.noted = append(c.log.noted, v)
	}
}

func (c *Core) fenceReply(v *volume, r *Request) {
	r.Value = uint64(v.gen)
	st := transport.StatusOK
	if r.Gen < v.gen { // a newer one overtook it
		st = transport.StatusFenced
	}
	c.reply(r, st)
}

// Generation persisted for a volume; 0: none.
func (c *Core) Generation(id cluster.VolumeID) cluster.Generation {
	if v := c.volumes[id]; v != nil {
		return v.durable
	}
	return 0
}

// Generations calls fn for every volume with a persisted generation (rule 21:
// mdm never gives out one that does not exceed them).
func (c *Core) Generations(fn func(cluster.VolumeID, cluster.Generation)) {
	for _, v := range c.vols {
		if v.durable != 0 && !v.dropped {
			fn(v.id, v.durable)
		}
	}
}

// licensed reports whether a drained flush covers the entry's last write
// (rules 1 and 3).
func (c *Core) licensed(e *alEntry) bool {
	v := c.volumes[cluster.VolumeID(e.key.volume)]
	if v == nil || v.drained.Gen == 0 {
		return false
	}
	if e.gen == uint64(v.drained.Gen) {
		return e.interval <= v.drained.Interval
	}
	// A region of an older generation belongs to the resolver, unless this device
	// resolves by itself.
	return c.cfg.LocalResolve && e.gen < uint64(v.drained.Gen)
}
