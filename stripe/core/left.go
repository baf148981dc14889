// SPDX-License-Identifier: Apache-2.0

package core

import "fmt"

// Left names what requests, flushes, locks or frames have left behind, or is
// empty. For tests, of a core that nobody asks for anything: the links, and the
// timers of lease and flush, are all that stands then.
func (c *Core) Left() string {
	if frames := len(c.frames) - len(c.freeFrames); c.lost != nil {
		if n := c.requests(); n+frames > 0 {
			return fmt.Sprintf("%d requests and %d frames of a volume that is lost", n, frames)
		}
		return ""
	}
	for _, x := range []struct {
		what string
		n    int
	}{
		{"requests", c.requests()},
		{"request slots", int(c.jobBase) - len(c.freeReqs)},
		{"pieces", len(c.pieces) - len(c.freePieces) - len(c.jobFree)},
		{"frames", len(c.frames) - len(c.freeFrames)},
		{"ranges locked", c.locks.Used()},
		{"requests granted, starving or held", len(c.granted) + len(c.starving) + len(c.held)},
		{"copies delayed, orphaned or held", c.delayed.n + c.orphans.n + c.reads.held.n},
		{"pieces parked", c.gate.parked},
		{"drains", c.gate.drains},
		{"writes counted by the flush", c.flush.old + c.flush.fresh + c.flush.open},
		{"chunk locks", len(c.locking.locks)},
		{"answers to locks", len(c.locking.answers)},
		{"reads in flight", c.readsOut},
		{"effects", len(c.effects)},
	} {
		if x.n != 0 {
			return fmt.Sprintf("%d %s", x.n, x.what)
		}
	}
	for i := range c.devs {
		if d := &c.devs[i]; d.inFlight != 0 || d.queue.n != 0 {
			return fmt.Sprintf("%d frames and %d copies for device %d", d.inFlight, d.queue.n, d.id)
		}
	}
	return ""
}
