// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"slices"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// joining is the last step of some attempts: nothing is dirty, nothing is being
// copied, everything is flushed, and mdm is asked to call the copies in sync.
//
// From the moment that mdm is asked nothing may become dirty until the answer is
// known: the gate puts off what would (SetJoining), and mdm refuses when a
// volume was attached by a later map than the one that this device has adopted,
// because then a fence may just be making chunks dirty here (rule 27).
type joining struct {
	runs    []*run
	version uint64
	sent    bool
	op      Op
}

func (c *Core) startJoin() {
	if c.join != nil || c.gate.Adopted() != c.gate.Map().Version {
		return
	}
	j := &joining{version: c.gate.Adopted()}
	for _, r := range c.runs {
		if r.t.Compared() && r.t.Left() == 0 && r.active == 0 && !r.joined && c.now >= r.retryAt {
			r.t.SetJoining(true)
			j.runs = append(j.runs, r)
		}
	}
	if len(j.runs) == 0 {
		return
	}
	c.join = j
	m := c.gate.Map()
	var some cluster.VolumeID // the flush is of the whole device, in any volume's name
	for id := range m.Volumes {
		if c.store.Generation(id) != 0 && (some == 0 || id < some) {
			some = id
		}
	}
	if some == 0 {
		c.sendJoin()
		return
	}
	reset(&j.op.Req)
	j.op.Req.Op, j.op.Req.Volume, j.op.Req.Gen = store.OpFlush, some, c.store.Generation(some)
	c.toStore(&j.op, func(_ *Op, status transport.Status) {
		if status != transport.StatusOK {
			c.endJoin(nil)
			return
		}
		c.sendJoin()
	})
}

// sendJoin asks mdm for those that are still ready after the flush.
func (c *Core) sendJoin() {
	j := c.join
	kept := j.runs[:0]
	var list []Join
	for _, r := range j.runs {
		if r.dead || r.t.Left() > 0 {
			r.t.SetJoining(false)
			continue
		}
		kept = append(kept, r)
		list = append(list, Join{PG: r.t.PG, Attempt: r.t.Attempt})
	}
	j.runs = kept
	if len(list) == 0 {
		c.join = nil
		return
	}
	j.sent = true
	c.emit(Effect{Kind: EffectJoin, Joins: list, Version: j.version})
}

// Joined is mdm's answer to EffectJoin. Those that are not in refused are in
// sync, as the next map will say. known is false when there was no answer:
// nothing is assumed then, and the question is asked again (rule 16).
func (c *Core) Joined(now int64, refused []cluster.PGID, known bool) {
	c.now = now
	j := c.join
	if j == nil || !j.sent {
		return
	}
	if !known {
		j.sent = false
		c.sendJoin()
		return
	}
	c.endJoin(func(r *run) bool { return !slices.Contains(refused, r.t.PG) })
}

// endJoin lets the attempts go on that are not in sync now.
func (c *Core) endJoin(joined func(*run) bool) {
	for _, r := range c.join.runs {
		if joined != nil && joined(r) {
			r.joined = true // the gate stays as it is until the map says it
			continue
		}
		r.t.SetJoining(false)
		r.retryAt = c.now + retryAfter
	}
	c.join = nil
}
