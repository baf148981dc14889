// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"

	"braid/cluster"
	"braid/transport"
)

// Wait is one reason for which requests wait.
type Wait struct {
	Device   cluster.DeviceID // 0: not one device
	Server   string
	Addr     string
	Why      string
	Requests int
	Since    int64 // of the oldest, in the caller's time
}

type waits struct {
	list []Wait
	seen map[int32]bool // request slots counted for the current entry
}

// Waiting tells what requests have been waiting for longer than patience ns.
// For people: it allocates.
func (c *Core) Waiting(now, patience int64) []Wait {
	w := waits{}
	for i := range c.devs {
		c.waitingOn(&w, int32(i), now-patience)
	}
	entry := Wait{Why: "no in-sync replica can be reached"}
	w.seen = map[int32]bool{}
	for ref := c.orphans.head; ref != none; ref = c.copies[ref].next {
		w.count(&entry, c.pieceOf(ref).req, c.copies[ref].since)
	}
	w.add(entry, now-patience)
	if n := c.pending.n; n > 0 {
		w.add(Wait{Why: fmt.Sprintf("all %d request slots are in use", len(c.reqs)), Requests: n,
			Since: c.pending.head.Dev.Stamp}, now-patience)
	}
	if n := len(c.held); n > 0 {
		w.add(Wait{Why: "activity logs are nearly full; a flush is under way", Requests: n,
			Since: c.reqs[c.held[0]].r.Dev.Stamp}, now-patience)
	}
	if f := &c.flush; f.step != flushIdle && f.active.n > 0 {
		why := "a flush waits for earlier writes"
		if f.step == flushSending {
			why = "a flush waits for devices"
		}
		w.add(Wait{Why: why, Requests: f.active.n + f.next.n, Since: f.active.head.Dev.Stamp},
			now-patience)
	}
	return w.list
}

func (c *Core) waitingOn(w *waits, dev int32, before int64) {
	d := &c.devs[dev]
	entry := Wait{Device: d.id, Server: d.server, Addr: d.addr}
	switch {
	case d.broken != "":
		entry.Why = "its copies are not to be trusted (" + d.broken +
			"); waiting for the metadata manager to drop it"
	case len(d.open) == 0:
		entry.Why = "not connected"
	default:
		entry.Why = "sent, no answer yet"
	}
	w.seen = map[int32]bool{}
	for i := range c.copies {
		cp := &c.copies[i]
		if cp.dev != dev || cp.kind == copyNone || cp.kind == copyDone {
			continue
		}
		since, slot := cp.since, int32(-2-dev)
		if cp.kind == copyInFlight && since == 0 {
			since = c.frames[cp.frame].at
		}
		if since == 0 || since > before {
			continue
		}
		if p := c.pieceOf(int32(i)); p != nil {
			slot = p.req
		}
		if cp.kind == copyDelayed {
			entry.Why = "it answers \"" + statusText(cp.why) + "\""
		}
		w.count(&entry, slot, since)
	}
	w.add(entry, before)
}

func (w *waits) count(e *Wait, slot int32, since int64) {
	if e.Since == 0 || since < e.Since {
		e.Since = since
	}
	if !w.seen[slot] {
		w.seen[slot] = true
		e.Requests++
	}
}

func (w *waits) add(e Wait, before int64) {
	if e.Requests > 0 && e.Since <= before {
		w.list = append(w.list, e)
	}
}

func statusText(s transport.Status) string {
	switch s {
	case transport.StatusStaleEpoch:
		return "the client's map is old"
	case transport.StatusRefused:
		return "not served here"
	case transport.StatusBadSum:
		return "bytes were damaged on the way"
	case transport.StatusRetry:
		return "not now"
	}
	return "failed"
}
