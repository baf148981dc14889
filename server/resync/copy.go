// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"braid/cluster"
	"braid/cluster/rules"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

const (
	blocks    = cluster.BlocksPerChunk
	blockSize = cluster.BlockSize
	// transfersAtOnce bounds the pieces of a chunk that are under way together.
	transfersAtOnce = 8
)

// chunkCopy is one chunk under way (rule 12):
//
//  1. its client, where there is one, keeps its hands off it: no write of it is in
//     flight anywhere, and what this device has skipped is on the source by now;
//  2. checksums of bytes just read, from the source's disk and from ours;
//  3. the region is in the durable activity log with the target mark: a half
//     copied chunk is never taken for a whole one, whatever happens (rule 20);
//  4. blocks that differ are read from the source and written, those that the
//     source lacks are trimmed;
//  5. the chunk takes the source's tag, the mark goes with the flush that covers
//     all of it;
//  6. if nothing has marked the chunk since step 2 began, it is clean.
//
// A write that comes while the lock is lost marks the chunk, and the copy counts
// for nothing. It cannot overwrite that write: the write was skipped, as its
// chunk was not clean.
type chunkCopy struct {
	core   *Core
	run    *run // nil: idle
	key    gate.Key
	mark   uint64
	source Source
	lock   Lock
	locked bool // asked for, or held
	failed bool
	wait   int64 // ns until the group is tried again, after a failure
	left   int   // operations under way

	mine, theirs transport.SumTable
	pieces       []piece // to be transferred
	buf          []byte  // a chunk
	sums         [8 * blocks]byte
	local, peer  Op
	transfers    [transfersAtOnce]Op
}

// piece is a range of blocks that is copied or trimmed.
type piece struct {
	first, count int
	trim         bool
}

func newCopy(c *Core) *chunkCopy {
	x := &chunkCopy{core: c}
	x.local.c, x.peer.c = x, x
	for i := range x.transfers {
		x.transfers[i].c = x
	}
	return x
}

// startCopies gives free buffers to dirty chunks, one group after another.
func (c *Core) startCopies() {
	for _, x := range c.copies {
		if x.run != nil {
			continue
		}
		if c.tokens <= 0 || !c.startCopy(x) {
			return
		}
	}
}

func (c *Core) startCopy(x *chunkCopy) bool {
	for range c.runs {
		c.turn++
		r := c.runs[c.turn%len(c.runs)]
		if !r.t.Compared() || r.t.Left() == 0 || c.now < r.retryAt {
			continue
		}
		for range triesPerPass {
			k, ok := r.t.Next()
			if !ok {
				break
			}
			if c.begin(x, r, k) {
				return true
			}
		}
		if x.run == nil {
			r.retryAt = c.now + retryAfter
		}
	}
	return false
}

// begin starts on a chunk. It reports false where that is not possible now, or
// not necessary any more.
func (c *Core) begin(x *chunkCopy, r *run, k gate.Key) bool {
	m := c.gate.Map()
	v := m.Volumes[k.Volume]
	persisted := c.store.Generation(k.Volume)
	// A volume's first client may have come here before the map that tells of it.
	if v == nil || max(v.Generation, persisted, c.gate.Newest(k.Volume)) == 0 {
		r.t.Clean(k, r.t.LastMark(k)) // deleted, or never written to: dropping it is not our part
		return false
	}
	s, ok := c.source(r)
	w, needed := c.gate.Writer(k.Volume, persisted)
	if c.cfg.Off.Has(rules.ChunkLock) {
		needed = false
	}
	if !ok || needed && w.Conn == 0 {
		r.t.Requeue(k)
		return false
	}
	x.run, x.key, x.source, x.mark = r, k, s, 0
	x.locked, x.failed, x.wait, x.pieces = false, false, 0, x.pieces[:0]
	if x.buf == nil {
		x.buf = c.cfg.Aligned(cluster.ChunkSize)
	}
	r.active++
	// What it costs is to read the chunk on both sides; few blocks differ.
	c.tokens -= cluster.ChunkSize
	c.pace.done += cluster.ChunkSize
	switch {
	case needed:
		_, epoch := c.gate.Role(r.t.PG)
		c.lastID++
		x.locked = true
		x.lock = Lock{ID: c.lastID, Writer: w, PG: r.t.PG, Epoch: epoch, Chunk: k.Chunk}
		c.emit(Effect{Kind: EffectLock, Lock: x.lock})
	case persisted == 0:
		// The volume was never opened here: the store has to know its generation.
		reset(&x.local.Req)
		x.local.Req.Op, x.local.Req.Volume, x.local.Req.Gen = store.OpFence, k.Volume, v.Generation
		x.left++
		c.toStore(&x.local, func(_ *Op, status transport.Status) {
			x.left--
			if x.goesOn(status) {
				x.failed = true // begin anew: a client may have come meanwhile
				x.end()
			}
		})
	default:
		x.compare()
	}
	return true
}

// LockAnswer is the client's answer to a Lock.
func (c *Core) LockAnswer(now int64, id uint64, status transport.Status) {
	c.now = now
	for _, x := range c.copies {
		if x.run == nil || !x.locked || x.lock.ID != id || x.left > 0 {
			continue
		}
		if status == transport.StatusOK {
			// The word of a client that was fenced meanwhile is worth nothing: its
			// successor may have been told here that a write was skipped.
			w := x.lock.Writer
			status = c.gate.Confirm(w.Conn, w.Handle)
		}
		if status != transport.StatusOK {
			x.locked = false
		}
		if x.goesOn(status) {
			x.compare()
		}
		return
	}
}

// ConnClosed says that a client's connection is gone, and its locks with it.
func (c *Core) ConnClosed(now int64, id gate.ConnID) {
	c.now = now
	for _, x := range c.copies {
		if x.run == nil || !x.locked || x.lock.Writer.Conn != id {
			continue
		}
		x.locked, x.failed, x.wait = false, true, retryAfter
		if x.left == 0 {
			x.end()
		}
	}
}

// goesOn ends the copy when an operation has failed or the attempt is over, as
// soon as nothing is under way any more.
func (x *chunkCopy) goesOn(status transport.Status) bool {
	c := x.core
	if status != transport.StatusOK && !x.failed {
		x.failed, x.wait = true, retryAfter
		if status == transport.StatusNoSpace {
			x.wait = fullAfter
			c.stats.Stuck = "the device is full"
		}
	}
	if x.run.dead {
		x.failed = true
	}
	if x.failed {
		if x.left == 0 {
			x.end()
		}
		return false
	}
	return true
}

// request prepares a local operation on the chunk.
func (x *chunkCopy) request(op *Op, kind store.Op) *store.Request {
	reset(&op.Req)
	r := &op.Req
	r.Op, r.Volume, r.Layer, r.Chunk = kind, x.key.Volume, x.key.Layer, x.key.Chunk
	r.Gen = x.core.store.Generation(r.Volume)
	return r
}

// ask prepares a request to the source about the chunk.
func (x *chunkCopy) ask(op *Op, kind transport.Op) *transport.Header {
	_, epoch := x.core.gate.Role(x.run.t.PG)
	op.Header = transport.Header{Op: kind, PG: uint32(x.run.t.PG), Epoch: epoch, Chunk: x.key.Chunk,
		Interval: uint64(x.key.Volume)}
	return &op.Header
}

// compare is step 2. What is marked from here on, the copy may have missed.
func (x *chunkCopy) compare() {
	c := x.core
	x.mark = x.run.t.LastMark(x.key)
	r := x.request(&x.local, store.OpSums)
	r.Data, r.Length, r.Table = x.buf, cluster.ChunkSize, &x.mine
	x.left += 2
	c.toStore(&x.local, func(_ *Op, status transport.Status) { x.summed(status) })
	x.ask(&x.peer, transport.OpSums)
	if len(x.peer.Dst) < transport.SumTableSize {
		x.peer.Dst = make([]byte, transport.SumTableSize)
	}
	c.toPeer(&x.peer, x.source.Device, func(op *Op, status transport.Status) {
		if status == transport.StatusOK && (int(op.Header.Payload) != transport.SumTableSize ||
			x.theirs.Decode(op.Dst[:transport.SumTableSize]) != nil) {
			status = transport.StatusInvalid
		}
		if status == transport.StatusIO || status == transport.StatusInvalid {
			x.run.turn++ // another source next time
		}
		x.summed(status)
	})
}

func (x *chunkCopy) summed(status transport.Status) {
	x.left--
	if !x.goesOn(status) || x.left > 0 {
		return
	}
	if !x.usable() {
		return
	}
	x.plan()
	if len(x.pieces) > 0 {
		r := x.request(&x.local, store.OpMark)
		r.Marks = store.MarkTarget
		x.left++
		x.core.toStore(&x.local, func(_ *Op, status transport.Status) {
			x.left--
			if x.goesOn(status) {
				x.transfer()
			}
		})
		return
	}
	t, o := &x.mine, &x.theirs
	if t.Stored == o.Stored && t.Gen == o.Gen && t.Interval == o.Interval && !t.Logged {
		x.end() // the same, and our log has nothing to say of it
		return
	}
	x.stamp()
}

// usable looks for damage at the source. Rotten blocks are never copied. Torn
// ones are only where no other source has better (rule 22).
func (x *chunkCopy) usable() bool {
	none := transport.Bitmap{}
	rotten := x.theirs.Rot != none
	if !rotten && (x.theirs.Torn == none || x.run.turn >= len(x.run.sources)) {
		return true
	}
	x.run.turn++
	x.failed, x.wait = true, retryAfter
	if rotten && x.run.turn > len(x.run.sources) {
		x.wait = fullAfter
		x.core.stats.Stuck = "a block of the source does not match its checksum and has to be repaired there"
	}
	x.end()
	return false
}

// plan lists what differs, in runs of blocks.
func (x *chunkCopy) plan() {
	x.pieces = x.pieces[:0]
	t, o := &x.mine, &x.theirs
	for i := 0; i < blocks; i++ {
		trim := t.Present.Has(i) && !o.Present.Has(i)
		fetch := o.Present.Has(i) && (!t.Present.Has(i) || t.Sums[i] != o.Sums[i] || t.Torn.Has(i) || t.Rot.Has(i))
		if !trim && !fetch {
			continue
		}
		if n := len(x.pieces); n > 0 && x.pieces[n-1].trim == trim && x.pieces[n-1].first+x.pieces[n-1].count == i {
			x.pieces[n-1].count++
			continue
		}
		x.pieces = append(x.pieces, piece{first: i, count: 1, trim: trim})
	}
}

// transfer is step 4: some pieces at a time, each read into its place in the
// buffer and written from there.
func (x *chunkCopy) transfer() {
	for i := range x.transfers {
		if op := &x.transfers[i]; !op.busy && len(x.pieces) > 0 {
			p := x.pieces[len(x.pieces)-1]
			x.pieces = x.pieces[:len(x.pieces)-1]
			x.left++
			x.begin(op, p)
		}
	}
	if x.left == 0 {
		x.stamp()
	}
}

func (x *chunkCopy) begin(op *Op, p piece) {
	c := x.core
	op.at, op.n = p.first, p.count
	if p.trim {
		r := x.request(op, store.OpTrim)
		r.Offset, r.Length = uint32(p.first*blockSize), uint32(p.count*blockSize)
		c.toStore(op, x.transferred)
		return
	}
	h := x.ask(op, transport.OpCopy)
	h.Offset, h.Length = uint32(p.first*blockSize), uint32(p.count*blockSize)
	op.Dst = x.buf[p.first*blockSize : (p.first+p.count)*blockSize]
	c.toPeer(op, x.source.Device, x.fetched)
}

// fetched writes what the source has sent.
func (x *chunkCopy) fetched(op *Op, status transport.Status) {
	c := x.core
	if status == transport.StatusOK && (op.Header.Flags&transport.FlagHole != 0 ||
		int(op.Header.Payload) != len(op.Dst) || transport.VerifySums(op.Dst, op.sums) >= 0) {
		status = transport.StatusBadSum // changed since step 2, or garbled: compare anew
	}
	if status != transport.StatusOK || x.failed || x.run.dead {
		x.transferred(op, status)
		return
	}
	c.stats.BytesRead += uint64(len(op.Dst))
	r := x.request(op, store.OpWrite)
	r.IsCopy = true
	r.Offset, r.Length, r.Data = uint32(op.at*blockSize), uint32(len(op.Dst)), op.Dst
	r.Sums = x.sums[8*op.at : 8*(op.at+op.n)]
	copy(r.Sums, op.sums)
	c.toStore(op, x.transferred)
}

func (x *chunkCopy) transferred(op *Op, status transport.Status) {
	if status == transport.StatusOK && op.Req.Op == store.OpWrite {
		x.core.stats.BytesCopied += uint64(op.n) * blockSize
	}
	x.left--
	if x.goesOn(status) {
		x.transfer()
	}
}

// stamp is step 5.
func (x *chunkCopy) stamp() {
	r := x.request(&x.local, store.OpStamp)
	r.Tag = cluster.Tag{Gen: cluster.Generation(x.theirs.Gen), Interval: x.theirs.Interval}
	r.Unlog = !x.theirs.Logged // as on the source: its entry speaks of other copies, too
	x.left++
	x.core.toStore(&x.local, func(_ *Op, status transport.Status) {
		x.left--
		if x.goesOn(status) {
			x.end()
		}
	})
}

// end is step 6, or the end of a copy that failed.
func (x *chunkCopy) end() {
	c, r := x.core, x.run
	x.run = nil
	r.active--
	if x.locked {
		x.locked = false
		c.emit(Effect{Kind: EffectUnlock, Lock: x.lock})
	}
	if r.dead {
		return
	}
	if !x.failed && r.t.Clean(x.key, x.mark) {
		c.stats.Copied++
		return
	}
	c.stats.Repeated++
	r.t.Requeue(x.key)
	if x.failed {
		r.retryAt = max(r.retryAt, c.now+x.wait)
	}
}
