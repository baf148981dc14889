// SPDX-License-Identifier: Apache-2.0

package core

import (
	"slices"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// A resync target copies a chunk under its lock (rule 12): while it holds it no
// write to the chunk is under way or begins. What was under way when it asked has
// ended everywhere, also at the target, which has skipped it; so what the source
// holds then is what the copy brings.
//
// A lock ends with OpUnlock, with its connection, and with the attempt. The
// target stops copying in each of these cases before it serves another request
// of this session.
type chunkLock struct {
	link    int32
	id      uint64
	chunk   uint64
	pg      cluster.PGID
	attempt uint32
	epoch   uint32 // in which it was asked for
	granted bool
}

// locking is what the core knows of targets' locks.
type locking struct {
	locks   []chunkLock
	answers []answer // that wait for a free frame
}

type answer struct {
	link int32
	head transport.Header
}

// Request takes a request of a server, which is complete: OpLock or OpUnlock.
func (c *Core) Request(now int64, l int32, h *transport.Header) {
	c.now = now
	if c.lost != nil || c.links[l].state != linkOpen {
		return
	}
	switch {
	case h.Session != c.links[l].session:
		c.answer(l, h, transport.StatusNoSession)
	case h.Op == transport.OpUnlock:
		c.dropLocks(func(k *chunkLock) bool { return k.link == l && k.chunk == h.Chunk })
		c.answer(l, h, transport.StatusOK)
	case h.Op == transport.OpLock:
		if status := c.lock(l, h); status != lockWaits {
			c.answer(l, h, status)
		}
	default:
		c.answer(l, h, transport.StatusInvalid)
	}
	c.run()
}

// lockWaits says that the answer comes later.
const lockWaits = transport.Status(0xffff)

func (c *Core) lock(l int32, h *transport.Header) transport.Status {
	g := &c.groups[c.groupOf(h.Chunk)]
	st := c.gate.chunks[h.Chunk]
	held := 0
	for i := range c.locking.locks {
		if k := &c.locking.locks[i]; k.link == l {
			if held++; k.chunk == h.Chunk {
				return transport.StatusInvalid
			}
		}
	}
	switch {
	case uint32(g.id) != h.PG:
		return transport.StatusInvalid
	case h.Epoch < g.epoch:
		// Its source may not be in sync any more.
		return transport.StatusStaleEpoch
	case h.Epoch > g.epoch, held >= maxChunkLocks:
		return transport.StatusRetry
	case g.target() != c.links[l].dev:
		return transport.StatusRefused
	case !g.collected || st != nil && st.suspect:
		return transport.StatusRetry // when it is resolved, it is dirty there again
	case c.cfg.Off.Has(rules.ChunkLock):
		return transport.StatusOK
	}
	c.chunkGate(h.Chunk).locks++
	c.gate.drains++
	c.gate.freed = true
	c.locking.locks = append(c.locking.locks, chunkLock{link: l, id: h.ID, chunk: h.Chunk, pg: g.id,
		attempt: g.attempt, epoch: g.epoch})
	return lockWaits
}

// grantLocks answers those whose chunk no write is under way to.
func (c *Core) grantLocks() {
	for i := range c.locking.locks {
		k := &c.locking.locks[i]
		if k.granted || c.isWriting(k.chunk) {
			continue
		}
		k.granted = true
		c.gate.drains--
		c.answer(k.link, &transport.Header{Op: transport.OpLock, ID: k.id, Chunk: k.chunk},
			transport.StatusOK)
	}
}

// dropLocks ends the locks that match. Writes that waited for them go on.
func (c *Core) dropLocks(match func(*chunkLock) bool) {
	var open []uint64
	c.locking.locks = slices.DeleteFunc(c.locking.locks, func(k chunkLock) bool {
		if !match(&k) {
			return false
		}
		if !k.granted {
			c.gate.drains--
		}
		c.gate.chunks[k.chunk].locks--
		open = append(open, k.chunk)
		return true
	})
	for _, chunk := range open {
		c.openChunk(chunk)
	}
}

// voidLocks ends those of a connection that has broken.
func (c *Core) voidLocks(l int32) {
	if len(c.locking.locks) > 0 {
		c.dropLocks(func(k *chunkLock) bool { return k.link == l })
	}
	c.locking.answers = slices.DeleteFunc(c.locking.answers, func(a answer) bool { return a.link == l })
}

// adoptLocks ends those of attempts that a new map has ended, and those that still
// wait: what they wait for may now end without the copy that the target chose as its
// source. A lock that was granted stays, as no write to the chunk has ended since.
func (c *Core) adoptLocks() {
	if len(c.locking.locks) == 0 {
		return
	}
	over := func(k *chunkLock) bool {
		g := &c.groups[k.pg.Index()]
		return g.target() != c.links[k.link].dev || g.attempt != k.attempt || !k.granted && g.epoch != k.epoch
	}
	for i := range c.locking.locks {
		if k := &c.locking.locks[i]; !k.granted && over(k) {
			c.answer(k.link, &transport.Header{Op: transport.OpLock, ID: k.id, Chunk: k.chunk},
				transport.StatusStaleEpoch)
		}
	}
	c.dropLocks(over)
}

func (c *Core) answer(l int32, h *transport.Header, status transport.Status) {
	head := transport.Header{Op: h.Op, Flags: transport.FlagReply, Status: status, ID: h.ID,
		Session: c.links[l].session, Chunk: h.Chunk}
	c.locking.answers = append(c.locking.answers, answer{link: l, head: head})
}

// tellRot tells a device that a range which it sent does not match its checksums
// (rule 22): it looks for itself, and mends what rotted from another copy. The
// reader has gone on to one.
func (c *Core) tellRot(l int32, p *piece) {
	if c.links[l].state != linkOpen || len(c.locking.answers) >= maxChunkLocks {
		return
	}
	g := &c.groups[p.group]
	head := transport.Header{Op: transport.OpMend, Session: c.links[l].session, PG: uint32(g.id), Epoch: g.epoch,
		Chunk: p.chunk, Offset: p.off, Length: p.length}
	c.locking.answers = append(c.locking.answers, answer{link: l, head: head})
}

// sendAnswer sends one, when there is a free frame.
func (c *Core) sendAnswer() bool {
	if len(c.freeFrames) == 0 {
		return false
	}
	a := c.locking.answers[0]
	c.locking.answers = slices.Delete(c.locking.answers, 0, 1)
	fi := c.freeFrames[len(c.freeFrames)-1]
	c.freeFrames = c.freeFrames[:len(c.freeFrames)-1]
	c.frameHigh = max(c.frameHigh, int(fi)+1)
	f := &c.frames[fi]
	*f = Frame{Header: a.head, uses: f.uses + 1, used: true, ended: true, copy: none, req: none,
		dev: c.links[a.link].dev, link: a.link, at: c.now}
	if a.head.Op == transport.OpMend {
		f.Header.ID = uint64(f.uses)<<32 | uint64(fi) // its reply finds nobody
		c.stats.Frames[transport.OpMend]++
	}
	c.emit(Effect{Kind: Send, Frame: fi, Link: a.link})
	return true
}
