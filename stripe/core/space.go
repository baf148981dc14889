// SPDX-License-Identifier: Apache-2.0

package core

import (
	"slices"
	"time"

	"braid/cluster"
	"braid/transport/bio"
)

// A write that finds no room for its chunk on a device waits for room (unless
// Config.FailFull). First it is taken back from the copies that had room, as copies
// must not differ (rule 17): the chunk does not exist on the device without room, so
// the range read as zeroes everywhere. Then its piece has no copies, belongs to no
// interval and holds nothing up: no flush, no adoption of a map, no lock of a resync
// target. What waits is the request, and what overlaps with it.
//
//	writing --no room--> undoing --all trimmed--> waiting --it is time--> asking
//	   ^                                             ^                      |  |
//	   |                                             +------- no room ------+  |
//	   +------------------ it has room: the other copies get the write --------+
//
// It asks again as a new write of the present interval, and the device that had no
// room before the others: in vain it costs one frame. Of those that wait for a device
// the oldest asks, after pauses; where it finds room, more follow, two for each that
// succeeds. A piece whose group has changed asks at once.
type roomState uint8

const (
	roomNone roomState = iota
	roomWaits
	roomAsks // the device piece.full alone has been asked so far
)

// spaceState is about all writes that wait for room.
type spaceState struct {
	pieces   int      // have found no room and have not ended, those that ask again among them
	requests int      // that they belong to
	waiting  int      // of the pieces those that ask nobody now
	held     reqQueue // writes, and what overlaps with them, that get no slot as too many of those wait
	closed   error    // none may wait any more
}

// Pauses between two attempts to find room on a device.
const (
	roomFirst = int64(10 * time.Millisecond)
	roomMost  = int64(500 * time.Millisecond)
	// roomLinger is how soon after one write that had found no room the next one belongs
	// to the same want: the kernel drops requests that take long, and sends them again.
	roomLinger = int64(10 * time.Second)
	// roomMore is how many ask next when one has found room.
	roomMore = 2
)

// noRoom counts a piece that found no room on the device p.full, and whose copies are
// undone, as waiting.
func (c *Core) noRoom(pi int32) {
	p := &c.pieces[pi]
	for ref := pi * MaxCopies; ref < (pi+1)*MaxCopies; ref++ {
		c.copies[ref].kind = copyNone
	}
	c.gate.freed = c.gate.freed || c.gate.drains > 0
	if p.roomless == 0 {
		p.roomless = max(c.now, 1)
		c.space.pieces++
		q := &c.reqs[p.req]
		if q.roomless++; q.roomless == 1 {
			c.space.requests++
		}
		if c.space.pieces == 1 {
			c.emit(Effect{Kind: Room})
		}
	}
	p.undo, p.parked, p.room = false, true, roomWaits
	c.space.waiting++
	d := &c.devs[p.full]
	if d.roomless++; d.roomless == 1 {
		d.roomPause, d.roomAt = 0, 0
		if d.fullSince == 0 || c.now-d.fullUntil > roomLinger {
			d.fullSince = max(c.now, 1)
		}
	}
	if c.now >= d.roomAt {
		d.roomPause = min(max(2*d.roomPause, roomFirst), roomMost)
		d.roomAt = c.now + d.roomPause
	}
	c.want(d.roomAt)
	if !slices.Contains(c.groups[p.group].writeSet(), p.full) {
		c.askRoom(pi) // it has left meanwhile
	}
}

// leaveRoom takes a piece out of those that wait.
func (c *Core) leaveRoom(p *piece) {
	p.room, p.parked = roomNone, false
	c.space.waiting--
	d := &c.devs[p.full]
	d.roomless--
	d.fullUntil = c.now
}

// endRoom is for a piece that ends after it had found no room.
func (c *Core) endRoom(p *piece) {
	if p.room == roomWaits {
		c.leaveRoom(p)
	}
	p.room, p.roomless = roomNone, 0
	c.space.pieces--
	q := &c.reqs[p.req]
	if q.roomless--; q.roomless == 0 {
		c.space.requests--
	}
	if c.space.pieces == 0 {
		c.emit(Effect{Kind: Room})
	}
}

// askRoom lets a piece that waits try again.
func (c *Core) askRoom(pi int32) {
	p := &c.pieces[pi]
	c.leaveRoom(p)
	if c.gate.closed > 0 && c.isGated(p) {
		c.park(p)
		return
	}
	if !slices.Contains(c.groups[p.group].writeSet(), p.full) {
		c.launch(pi)
		return
	}
	p.interval, p.version, p.room = c.interval, c.version, roomAsks
	c.flush.fresh++
	c.enqueue(c.addCopy(pi, p.full))
}

// hasRoom goes on with a piece whose first copy has found room. It reports whether
// there are others to wait for.
func (c *Core) hasRoom(pi int32) bool {
	p := &c.pieces[pi]
	p.room = roomNone
	for _, d := range c.groups[p.group].writeSet() {
		if !c.usedBy(pi, none, d) {
			c.enqueue(c.addCopy(pi, d))
		}
	}
	c.devs[p.full].roomPause = 0
	for range roomMore {
		c.askNext(p.full)
	}
	return p.open > 0
}

// askNext lets the oldest piece ask that waits for a device.
func (c *Core) askNext(dev int32) {
	if c.devs[dev].roomless == 0 {
		return
	}
	oldest := none
	for i := range c.pieces[:c.pieceHigh] {
		if p := &c.pieces[i]; p.live && p.room == roomWaits && p.full == dev &&
			(oldest == none || p.roomless < c.pieces[oldest].roomless) {
			oldest = int32(i)
		}
	}
	c.askRoom(oldest)
}

// tickRoom lets those ask whose pause has ended, and ends what nobody waits for.
func (c *Core) tickRoom() {
	if c.space.waiting == 0 {
		return
	}
	for i := range c.pieces[:c.pieceHigh] {
		if p := &c.pieces[i]; p.live && p.room == roomWaits && c.reqs[p.req].r.Gone {
			c.giveUp(int32(i), bio.ErrShutdown)
		}
	}
	for n := c.space.held.n; n > 0; n-- {
		if r := c.space.held.pop(); r.Gone {
			c.completeNow(r, bio.ErrShutdown)
		} else {
			c.space.held.push(r)
		}
	}
	for i := range c.devs {
		d := &c.devs[i]
		if d.roomless == 0 {
			continue
		}
		if c.now >= d.roomAt {
			d.roomAt = c.now + max(d.roomPause, roomFirst)
			if !c.asks(int32(i)) {
				c.askNext(int32(i))
			}
		}
		if d.roomless > 0 {
			c.want(d.roomAt)
		}
	}
}

// asks reports whether some piece asks a device for room.
func (c *Core) asks(dev int32) bool {
	return slices.ContainsFunc(c.pieces[:c.pieceHigh], func(p piece) bool {
		return p.live && p.room == roomAsks && p.full == dev
	})
}

func (c *Core) giveUp(pi int32, err error) {
	c.reqs[c.pieces[pi].req].fail(err)
	c.freePiece(pi)
}

// EndRoom ends the writes that wait for room with an error, and so those that find
// none from now on.
func (c *Core) EndRoom(now int64, err error) {
	c.now = now
	if c.lost != nil {
		return
	}
	c.space.closed = err
	for i := range c.pieces[:c.pieceHigh] {
		if p := &c.pieces[i]; p.live && p.room == roomWaits {
			c.giveUp(int32(i), err)
		}
	}
	c.run()
}

// crowded reports whether so many writes wait for room that more would leave no slots
// to what needs none.
func (c *Core) crowded() bool {
	n := c.cfg.Requests
	return c.space.requests > 0 && c.space.requests >= n-max(n/4, 1)
}

// enter gives a request a slot, unless it is a write and too many wait for room. The
// order of requests that overlap stays.
func (c *Core) enter(r *bio.Request) {
	needsRoom := r.Op == bio.Write || r.Op == bio.WriteZeroes && r.Flags&bio.NoHole != 0
	if needsRoom && c.crowded() || c.space.held.n > 0 && c.space.overlaps(r) {
		c.space.held.push(r)
		return
	}
	c.start(r)
}

func (s *spaceState) overlaps(r *bio.Request) bool {
	first, end := r.Off&^blockMask, (r.Off+r.Len+blockMask)&^blockMask
	for h := s.held.head; h != nil; h = h.Dev.Next {
		if h.Off&^blockMask < end && first < (h.Off+h.Len+blockMask)&^blockMask {
			return true
		}
	}
	return false
}

// IsRoomless reports whether some write waits for room.
func (c *Core) IsRoomless() bool { return c.space.pieces > 0 }

// Roomless are the devices on which writes that wait have found no room, in no order.
func (c *Core) Roomless() (list []cluster.DeviceID) {
	if c.space.pieces == 0 {
		return nil
	}
	for i := range c.pieces[:c.pieceHigh] {
		p := &c.pieces[i]
		if p.live && p.roomless != 0 && !slices.Contains(list, c.devs[p.full].id) {
			list = append(list, c.devs[p.full].id)
		}
	}
	return list
}

// waitingRoom are writes that found no room.
func (c *Core) waitingRoom(w *waits, before int64) {
	for i := range c.devs {
		d := &c.devs[i]
		entry := Wait{Device: d.id, Server: d.server, Addr: d.addr, Reason: WaitSpace,
			Why:  "the device is full, and these writes need new space on it",
			Next: "add a device or free space: they go on by themselves", NextAt: d.roomAt}
		w.begin()
		for k := range c.pieces[:c.pieceHigh] {
			if p := &c.pieces[k]; p.live && p.roomless != 0 && p.full == int32(i) {
				c.count(w, &entry, p.req, p.roomless)
			}
		}
		if entry.Requests > 0 && d.fullSince != 0 {
			entry.Since = min(entry.Since, d.fullSince)
		}
		w.add(entry, before)
	}
	if n := c.space.held.n; n > 0 {
		w.requests(Wait{Reason: WaitSpace, Why: "so many writes wait for space that the slots left are kept for " +
			"what needs none", Next: "they go on when those have"}, c.space.held.head, n, before)
	}
}
