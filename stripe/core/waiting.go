// SPDX-License-Identifier: Apache-2.0

package core

import (
	"fmt"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
)

// WaitReason says in one word why requests wait.
type WaitReason string

// The reasons.
const (
	WaitNotConnected WaitReason = "not-connected" // the device cannot be reached
	WaitBroken       WaitReason = "broken"        // the device forgot acknowledged writes
	WaitDecision     WaitReason = "no-in-sync"    // no in-sync copy can be reached
	WaitAnswer       WaitReason = "answer"        // the device has the request
	WaitRetry        WaitReason = "retry"         // the device refused for now
	WaitLease        WaitReason = "read-lease"    // data is there, confirmations are not
	WaitRange        WaitReason = "range-lock"    // an earlier request overlaps
	WaitFence        WaitReason = "fence"         // an older session may still read
	WaitLogs         WaitReason = "activity-logs" // the attach has not read them all
	WaitResolve      WaitReason = "resolve"       // what an older session left is compared
	WaitResync       WaitReason = "resync"        // the chunk is just being copied
	WaitPressure     WaitReason = "activity-log-full"
	WaitSlots        WaitReason = "slots"
	WaitFlush        WaitReason = "flush"
	WaitSpace        WaitReason = "space" // the device is full
)

// Wait is a group of requests that wait for the same thing.
type Wait struct {
	Device   cluster.DeviceID // 0: not one device
	Server   string
	Addr     string
	Reason   WaitReason
	Why      string
	Next     string // what happens next, by itself
	NextAt   int64  // when; 0: that is not known
	Requests int
	Since    int64 // of the oldest, in the caller's time
	// The oldest of them.
	Op       bio.Op
	Off, Len uint64
}

type waits struct {
	list []Wait
	seen map[int32]bool // request slots counted for the current entry
}

// Waiting tells what requests have been waiting for longer than patience ns.
// For people: it allocates.
func (c *Core) Waiting(now, patience int64) []Wait {
	w := waits{}
	before := now - patience
	for i := range c.devs {
		c.waitingOn(&w, int32(i), before)
	}
	c.waitingReads(&w, before)
	c.waitingGates(&w, before)
	c.waitingRoom(&w, before)
	c.waitingRanges(&w, before)
	if n := c.pending.n; n > 0 {
		e := Wait{Reason: WaitSlots, Why: fmt.Sprintf("all %d request slots are in use", len(c.reqs)-maxJobs),
			Next: "each request that ends lets one in"}
		w.requests(e, c.pending.head, n, before)
	}
	if n := len(c.held); n > 0 {
		e := Wait{Reason: WaitPressure, Why: fmt.Sprintf("activity logs are %d%% full; a flush is under way",
			c.pressure/10), Next: "the flush makes room, then the writes go on"}
		w.requests(e, c.reqs[c.held[0]].r, n, before)
	}
	if f := &c.flush; f.step != flushIdle && f.active.n > 0 {
		e := Wait{Reason: WaitFlush, Why: fmt.Sprintf("a flush waits for %d earlier pieces of writes", f.old),
			Next: "it is sent to the devices when they have ended"}
		if f.step == flushSending {
			e.Why, e.Next = fmt.Sprintf("a flush waits for %d devices", f.open), "it ends with the last answer"
		}
		w.requests(e, f.active.head, f.active.n+f.next.n, before)
	}
	if n := c.flush.late.n; n > 0 {
		e := Wait{Reason: WaitResolve, Why: fmt.Sprintf("flushes wait until %d chunks that an older session left "+
			"are resolved", c.resolver.suspects), Next: "they go on by themselves"}
		w.requests(e, c.flush.late.head, n, before)
	}
	return w.list
}

// waitingOn looks at what is queued for, or in flight to, one device.
func (c *Core) waitingOn(w *waits, dev int32, before int64) {
	d := &c.devs[dev]
	entry := Wait{Device: d.id, Server: d.server, Addr: d.addr}
	switch {
	case d.broken != "":
		entry.Reason = WaitBroken
		entry.Why = "its copies are not to be trusted (" + d.broken +
			"); waiting for the metadata manager to drop it"
		entry.Next = "I/O goes on without it as soon as the metadata manager has decided"
	case len(d.open) == 0:
		entry.Reason, entry.Why = WaitNotConnected, "not connected"
		entry.Next = c.afterLoss(dev)
	default:
		entry.Reason, entry.Why = WaitAnswer, "sent, no answer yet"
		entry.Next = "a server that is silent for 2 s is given up; a disk that takes 5 s counts as failed"
	}
	w.begin()
	for i := range c.copies {
		cp := &c.copies[i]
		if cp.dev != dev || cp.kind == copyNone || cp.kind == copyDone || cp.kind == copyHeld {
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
			entry.Reason, entry.Why = WaitRetry, "it answers \""+statusText(cp.why)+"\""
			entry.Next, entry.NextAt = "sent again", cp.at
			if cp.why == transport.StatusNoSpace { // of the resolver
				entry.Reason = WaitSpace
				entry.Next = "add a device or free space: it goes on by itself"
			}
		}
		c.count(w, &entry, slot, since)
	}
	w.add(entry, before)
}

// afterLoss says how I/O goes on when a device stays away.
func (c *Core) afterLoss(dev int32) string {
	alone, shared := 0, 0
	for i := range c.groups {
		switch g := &c.groups[i]; {
		case !g.has(dev):
		case g.n == 1 && g.members[0] == dev:
			alone++
		default:
			shared++
		}
	}
	switch {
	case alone > 0 && shared > 0:
		return fmt.Sprintf("%d of its %d groups go on without it as soon as the metadata manager has decided; "+
			"of %d no other copy is in sync, so these wait for its return", shared, alone+shared, alone)
	case alone > 0:
		return "no other copy is in sync: only its return helps; nothing is lost meanwhile"
	}
	return "I/O goes on without it as soon as the metadata manager has taken it out of the in-sync sets"
}

// waitingReads are reads that find no replica, and those whose data may be old.
func (c *Core) waitingReads(w *waits, before int64) {
	w.begin()
	entry := Wait{Reason: WaitDecision, Why: "no in-sync replica can be reached",
		Next: "connections are tried all the time; the first server that returns answers"}
	for ref := c.orphans.head; ref != none; ref = c.copies[ref].next {
		c.count(w, &entry, c.pieceOf(ref).req, c.copies[ref].since)
	}
	w.add(entry, before)
	w.begin()
	entry = Wait{Reason: WaitLease, Why: "the data is there, but not every copy's server has confirmed of late that " +
		"this client still has the volume", Next: "asked again every 50 ms; a server that stays away is taken out by " +
		"the metadata manager"}
	for ref := c.reads.held.head; ref != none; ref = c.copies[ref].next {
		c.count(w, &entry, c.pieceOf(ref).req, c.copies[ref].since)
	}
	w.add(entry, before)
}

// waitingGates are requests to chunks that are closed.
func (c *Core) waitingGates(w *waits, before int64) {
	entries := []Wait{
		{Reason: WaitFence, Why: "servers that an older session may still read from have not been reached",
			Next: "requests pass when all are, or when that session's lease has run out", NextAt: c.gate.holdUntil},
		{Reason: WaitLogs, Why: fmt.Sprintf("the activity logs of %d groups have not been read since the attach",
			c.gate.uncollected), Next: "they are read as soon as their servers answer"},
		{Reason: WaitResolve, Why: fmt.Sprintf("%d chunks may differ between copies since an older session ended; "+
			"they are being compared, those that are asked for first", c.resolver.suspects),
			Next: "each opens when it is equal on all copies"},
		{Reason: WaitResync, Why: "the chunk is just being copied to a returning or new copy",
			Next: "writes go on when the copy is done"},
	}
	for e := range entries {
		w.begin()
		for i := range c.pieces[:min(c.pieceHigh, int(c.jobPieces))] {
			p := &c.pieces[i]
			if r := c.reqs[max(p.req, 0)].r; p.live && p.parked && p.room != roomWaits && r != nil && c.gateOf(p) == e {
				c.count(w, &entries[e], p.req, max(r.Dev.Stamp, 1))
			}
		}
		w.add(entries[e], before)
	}
}

// gateOf is what keeps a piece, as an index of the entries of waitingGates.
func (c *Core) gateOf(p *piece) int {
	st := c.gate.chunks[p.chunk]
	switch {
	case c.gate.holding:
		return 0
	case !c.groups[p.group].collected:
		return 1
	case st != nil && st.suspect:
		return 2
	}
	return 3
}

// waitingRanges are requests that overlap with earlier ones.
func (c *Core) waitingRanges(w *waits, before int64) {
	w.begin()
	entry := Wait{Reason: WaitRange, Next: "they go on in the order of their arrival"}
	oldest := none
	for i := range c.reqs[:c.jobBase] {
		if q := &c.reqs[i]; q.r != nil && q.phase == phaseLock && q.r.Trace.Granted == 0 {
			c.count(w, &entry, int32(i), max(q.r.Dev.Stamp, 1))
			if oldest == none || q.r.Dev.Stamp < c.reqs[oldest].r.Dev.Stamp {
				oldest = int32(i)
			}
		}
	}
	if oldest == none {
		return
	}
	o := &c.reqs[oldest]
	entry.Why = "an earlier request to the same blocks has not ended"
	for i := range c.reqs[:c.jobBase] {
		q := &c.reqs[i]
		if q.r != nil && int32(i) != oldest && q.r.Trace.Granted != 0 && q.first < o.end && o.first < q.end {
			entry.Why = fmt.Sprintf("an earlier %v of %s at %d to the same blocks has not ended", q.op,
				cluster.FormatSize(q.r.Len), q.r.Off)
			break
		}
	}
	w.add(entry, before)
}

func (w *waits) begin() { w.seen = map[int32]bool{} }

// count adds a request slot to an entry; slots below 0 stand for flushes.
func (c *Core) count(w *waits, e *Wait, slot int32, since int64) {
	if e.Since == 0 || since < e.Since {
		e.Since = since
		e.Op, e.Off, e.Len = bio.Flush, 0, 0
		if slot >= 0 && c.reqs[slot].r != nil {
			r := c.reqs[slot].r
			e.Op, e.Off, e.Len = r.Op, r.Off, r.Len
		}
	}
	if !w.seen[slot] {
		w.seen[slot] = true
		e.Requests++
	}
}

// requests adds an entry for n requests, the oldest of which is given.
func (w *waits) requests(e Wait, oldest *bio.Request, n int, before int64) {
	e.Requests, e.Since = n, max(oldest.Dev.Stamp, 1)
	e.Op, e.Off, e.Len = oldest.Op, oldest.Off, oldest.Len
	w.add(e, before)
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
	case transport.StatusNoSpace:
		return "no space left on the device"
	case transport.StatusLogFull:
		return "its activity log is full, a flush makes room"
	}
	return "failed"
}
