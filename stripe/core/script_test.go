// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
)

// script is a sim without chance: everything is delivered at once and in order,
// unless a test holds it back.
type script struct {
	*sim
	t      *testing.T
	hold   map[cluster.DeviceID]bool // frames to these devices stay on the way
	answer func(d *fakeDevice, h *transport.Header) transport.Status
	sent   []transport.Header
	to     []cluster.DeviceID // in step with sent
}

func newScript(t *testing.T, edit func(*simConfig)) *script {
	cfg := simConfig{seed: 1, unit: 65536, width: 8, size: 64 << 20, devices: 4, replicas: 2, groups: 8}
	if edit != nil {
		edit(&cfg)
	}
	s := &script{sim: newSim(cfg), t: t, hold: map[cluster.DeviceID]bool{}}
	s.ended = map[*bio.Request]error{}
	if s.fail != nil {
		t.Fatal(s.fail)
	}
	if cfg.refuse != 0 {
		s.answer = func(_ *fakeDevice, h *transport.Header) transport.Status {
			if h.Op == cfg.refuse {
				return transport.StatusRetry
			}
			return transport.StatusOK
		}
	}
	for _, d := range s.devs {
		if d.id != cfg.down {
			s.up(d)
		}
	}
	s.settle()
	return s
}

func (s *script) up(d *fakeDevice) {
	if id := s.core.LinkUp(s.now, d.id, uint32(d.id), cluster.Incarnation(d.inc)); id >= 0 {
		s.links[id] = &fakeLink{dev: d, state: linkOpen}
	}
}

func (s *script) linkOf(d *fakeDevice) (int32, *fakeLink) {
	for id, l := range s.links {
		if l.dev == d {
			return id, l
		}
	}
	s.t.Fatalf("device %d has no link", d.id)
	return none, nil
}

// settle delivers until nothing moves.
func (s *script) settle() {
	for moved := true; moved; {
		moved = s.effects()
		for _, id := range s.linkIDs() {
			l := s.links[id]
			if l.state == linkClosing {
				s.sim.closeLink(id)
				moved = true
				continue
			}
			for len(l.frames) > 0 && !s.hold[l.dev.id] {
				moved = true
				s.deliver(id, l)
			}
		}
	}
	if s.fail != nil {
		s.t.Fatal(s.fail)
	}
}

func (s *script) deliver(id int32, l *fakeLink) {
	f := l.frames[0]
	l.frames = l.frames[1:]
	s.capture(f)
	s.core.Sent(s.now, f.frame)
	if f.h.Flags&transport.FlagReply != 0 {
		return // an answer to the server
	}
	status := transport.StatusOK
	if s.answer != nil {
		status = s.answer(l.dev, &f.h)
	}
	r := l.dev.reply(f.h, status)
	if status == transport.StatusOK {
		var err error
		if r, err = l.dev.execute(f); err != nil {
			s.t.Fatal(err)
		}
	}
	p := &pendingReply{fakeReply: r}
	dst, wanted, err := s.core.Incoming(id, &p.h)
	if err != nil {
		s.t.Fatal(err)
	}
	p.dst, p.wanted = dst, wanted
	s.land(p, len(p.payload))
	s.core.Reply(s.now, id, &p.h, p.sums, nil)
	s.effects()
}

func (s *script) effects() (any bool) {
	for {
		list := s.core.Effects()
		if len(list) == 0 {
			return any
		}
		any = true
		for _, e := range list {
			if e.Kind == Send {
				s.sent = append(s.sent, s.core.Frame(e.Frame).Header)
				s.to = append(s.to, s.links[e.Link].dev.id)
			}
			s.sim.effect(e)
		}
	}
}

func (s *script) begin(r bio.Request) *bio.Request {
	s.core.Submit(s.now, &r)
	s.settle()
	return &r
}

func (s *script) write(off uint64, data []byte) *bio.Request {
	return s.begin(bio.Request{Op: bio.Write, Off: off, Len: uint64(len(data)), Data: data})
}

func (s *script) isDone(r *bio.Request) bool {
	_, ok := s.ended[r]
	return ok
}

func (s *script) mustEnd(what string, r *bio.Request, want error) {
	s.t.Helper()
	switch err, ok := s.ended[r]; {
	case !ok:
		s.t.Fatalf("%s has not ended; waiting: %+v", what, s.core.Waiting(s.now, 0))
	case !errors.Is(err, want) || (want == nil) != (err == nil):
		s.t.Fatalf("%s ends with %v, want %v", what, err, want)
	}
}

func (s *script) count(op transport.Op) (n int) {
	for _, h := range s.sent {
		if h.Op == op {
			n++
		}
	}
	return n
}

func (s *script) tick(d time.Duration) {
	s.now += int64(d)
	s.core.Tick(s.now)
	s.settle()
}

func block(b byte) []byte { return bytes.Repeat([]byte{b}, 4096) }

// Goal: one frame per chunk and replica. Method: count them for 1 MiB.
func TestOneFramePerChunk(t *testing.T) {
	s := newScript(t, nil)
	s.mustEnd("write", s.write(0, make([]byte, 1<<20)), nil)
	if n := s.count(transport.OpWrite); n != 16 {
		t.Errorf("a 1 MiB write took %d frames, want 8 for each of 2 copies", n)
	}
	r := s.begin(bio.Request{Op: bio.Read, Len: 1 << 20, Data: make([]byte, 1<<20)})
	s.mustEnd("read", r, nil)
	if n := s.count(transport.OpRead); n != 8 {
		t.Errorf("a 1 MiB read took %d frames, want 8", n)
	}
}

// Goal: a flush goes to devices written since their last flush and to no other;
// without such there is none. Method: count flush frames.
func TestFlushGoesToWrittenDevices(t *testing.T) {
	s := newScript(t, nil)
	s.mustEnd("flush of nothing", s.begin(bio.Request{Op: bio.Flush}), nil)
	s.mustEnd("write", s.write(0, block(1)), nil)
	s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	s.mustEnd("second flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	if n := s.count(transport.OpFlush); n != 2 {
		t.Errorf("%d flush frames, want one for each copy of the block", n)
	}
}

// Goal: a flush waits for earlier writes, later ones flow on, and flushes that
// come meanwhile share one. Method: hold one device's frames back.
func TestDrainedFlush(t *testing.T) {
	s := newScript(t, nil)
	s.mustEnd("write", s.write(0, block(1)), nil)
	late := s.devs[s.inSync(1)[0].id-1]
	s.hold[late.id] = true
	slow := s.write(4096, block(2))
	flush := s.begin(bio.Request{Op: bio.Flush})
	if s.isDone(slow) || s.isDone(flush) || s.count(transport.OpFlush) != 0 {
		t.Fatal("the flush does not wait for the write before it (rule 1)")
	}
	var other int // a block of which the held device has no copy
	for slices.Contains(s.inSync(other), late) {
		other += 16
	}
	next := s.write(uint64(other)*4096, block(3))
	s.mustEnd("a write after the flush", next, nil)
	second, third := s.begin(bio.Request{Op: bio.Flush}), s.begin(bio.Request{Op: bio.Flush})
	if s.isDone(second) || s.isDone(third) {
		t.Fatal("a later flush overtakes")
	}
	s.hold[late.id] = false
	s.settle()
	for _, r := range []*bio.Request{slow, flush, second, third} {
		s.mustEnd("everything", r, nil)
	}
	if s.core.stats.Flushes != 2 {
		t.Errorf("%d flushes ran, want 2: those that wait share one", s.core.stats.Flushes)
	}
}

// Goal: a write that waits for room in an activity log does not block the flush
// that makes room, and that flush goes out only after the copy that was applied
// under the old interval is applied under the new one (rules 1, 18). Method: one
// copy refuses; the other's second ack is held back.
func TestStuckWriteMovesToTheNextInterval(t *testing.T) {
	s := newScript(t, nil)
	pair := s.inSync(0)
	s.mustEnd("an earlier write", s.write(0, block(1)), nil)
	full := true
	s.answer = func(d *fakeDevice, h *transport.Header) transport.Status {
		if h.Op == transport.OpWrite && d == pair[0] && h.Interval == 1 {
			s.hold[d.id] = true // what comes next stays on the way
		}
		if full && d == pair[1] && h.Op == transport.OpWrite {
			return transport.StatusLogFull
		}
		return transport.StatusOK
	}
	w := s.write(4096, block(2)) // its refusal starts a flush of interval 1
	last := s.sent[len(s.sent)-1]
	if last.Op != transport.OpWrite || last.Interval != 2 || s.to[len(s.to)-1] != pair[0].id {
		t.Fatalf("the last frame is %+v to device %d, want the write again, in interval 2",
			last, s.to[len(s.to)-1])
	}
	if n := s.count(transport.OpFlush); n != 0 {
		t.Fatal("the flush goes out although a copy of interval 1 is outstanding")
	}
	s.hold[pair[0].id] = false
	s.settle()
	if n := s.count(transport.OpFlush); n != 2 || s.isDone(w) {
		t.Fatalf("%d flush frames, want 2; write done: %v", n, s.isDone(w))
	}
	full = false
	s.tick(time.Second)
	s.mustEnd("the write", w, nil)
	s.mustEnd("a flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	for _, d := range pair {
		if !bytes.Equal(d.durable[s.key(1)], block(2)) {
			t.Errorf("device %d does not hold the block", d.id)
		}
	}
}

// Goal: ENOSPC is never one-sided: the copy that took the write gives it back
// before the request fails. Method: one device has no room, and writes do not wait.
func TestNoSpaceIsUndone(t *testing.T) {
	s := newScript(t, func(c *simConfig) { c.failFull = true })
	pair := s.inSync(0)
	pair[0].chunks = 1
	pair[0].current[99<<8] = block(9)
	s.mustEnd("write", s.write(0, block(1)), bio.ErrNoSpace)
	if n := len(pair[1].current); n != 0 {
		t.Errorf("the other copy keeps %d blocks of a write that failed", n)
	}
	if n := s.count(transport.OpTrim); n != 1 {
		t.Errorf("%d trims, want 1", n)
	}
	r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(7)})
	s.mustEnd("read", r, nil)
	if !bytes.Equal(r.Data, make([]byte, 4096)) {
		t.Error("the block does not read as before the write")
	}
}

// Goal: a device that cannot write leaves the in-sync set before the write ends;
// the volume goes on (rule 17). Method: EIO from one of two copies.
func TestWriteErrorDropsTheDevice(t *testing.T) {
	s := newScript(t, nil)
	bad := s.inSync(0)[0]
	s.answer = func(d *fakeDevice, h *transport.Header) transport.Status {
		if d == bad && h.Op == transport.OpWrite {
			return transport.StatusIO
		}
		return transport.StatusOK
	}
	w := s.write(0, block(1))
	if s.isDone(w) || s.marks["drop-replica"] != 0 {
		t.Fatal("the error is believed at once")
	}
	s.tick(time.Second)
	s.mustEnd("write", w, nil)
	if s.marks["drop-replica"] != 1 {
		t.Errorf("%d reports of the device, want 1", s.marks["drop-replica"])
	}
	if len(s.inSync(0)) != 1 {
		t.Error("the device is still in sync")
	}
	s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
}

// Goal: an error of the only copy fails the request and nothing else. Method:
// one replica, EIO.
func TestWriteErrorOfTheOnlyCopy(t *testing.T) {
	s := newScript(t, func(c *simConfig) { c.replicas = 1 })
	s.answer = func(_ *fakeDevice, h *transport.Header) transport.Status {
		if h.Op == transport.OpWrite {
			return transport.StatusIO
		}
		return transport.StatusOK
	}
	w := s.write(0, block(1))
	s.tick(time.Second)
	s.mustEnd("write", w, bio.ErrIO)
	s.answer = nil
	s.mustEnd("the next write", s.write(0, block(2)), nil)
}

// Goal: a failed flush is not sent again; the device leaves, and the flush is
// that of the others (rule 19). Method: EIO on flush from one copy.
func TestFlushErrorDropsTheDevice(t *testing.T) {
	s := newScript(t, nil)
	bad := s.inSync(0)[0]
	s.mustEnd("write", s.write(0, block(1)), nil)
	s.answer = func(d *fakeDevice, h *transport.Header) transport.Status {
		if d == bad && h.Op == transport.OpFlush {
			return transport.StatusIO
		}
		return transport.StatusOK
	}
	s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	n := 0
	for i, h := range s.sent {
		if h.Op == transport.OpFlush && s.to[i] == bad.id {
			n++
		}
	}
	if n != 1 || s.marks["drop-replica"] != 1 {
		t.Errorf("%d flushes to the device, %d reports; want 1 and 1", n, s.marks["drop-replica"])
	}
}

// Goal: where the only copy lost acked writes, the volume fails for good and
// says why (rule 5). Method: one replica, power loss before the flush.
func TestLastCopyBroken(t *testing.T) {
	s := newScript(t, func(c *simConfig) { c.replicas = 1 })
	d := s.inSync(0)[0]
	s.mustEnd("write", s.write(0, block(1)), nil)
	id, _ := s.linkOf(d)
	s.sim.closeLink(id)
	waiting := s.write(8192, block(2))
	d.inc++
	s.up(d)
	s.settle()
	s.mustEnd("a write that waited", waiting, bio.ErrIO)
	if err := s.core.Err(); !errors.Is(err, ErrBroken) || !strings.Contains(err.Error(), "last in-sync copy") {
		t.Errorf("the reason is %v", err)
	}
	s.mustEnd("a later write", s.write(0, block(3)), bio.ErrIO)
}

// Goal: a new incarnation without unflushed writes is accepted, and what was
// acked of an incomplete write is sent again (rule 5). Method: as said.
func TestNewIncarnationAccepted(t *testing.T) {
	s := newScript(t, nil)
	pair := s.inSync(0)
	s.hold[pair[1].id] = true
	w := s.write(0, block(1))
	id, _ := s.linkOf(pair[0])
	s.sim.closeLink(id)
	pair[0].powerLoss(func() bool { return true })
	s.up(pair[0])
	s.settle()
	if !bytes.Equal(pair[0].current[s.key(0)], block(1)) {
		t.Error("what the device had acked was not sent again")
	}
	if s.isDone(w) || s.marks["drop-replica"] != 0 {
		t.Fatal("the write ended early, or the device was dropped")
	}
	s.hold[pair[1].id] = false
	s.settle()
	s.mustEnd("write", w, nil)
}

// Goal: a fenced client stops, and says so. Method: one StatusFenced.
func TestFencedStopsEverything(t *testing.T) {
	s := newScript(t, nil)
	s.hold[s.devs[0].id], s.hold[s.devs[1].id] = true, true
	var stuck []*bio.Request
	for i := range 16 {
		stuck = append(stuck, s.write(uint64(i)<<20, block(1)))
	}
	s.answer = func(*fakeDevice, *transport.Header) transport.Status { return transport.StatusFenced }
	s.hold = map[cluster.DeviceID]bool{}
	s.settle()
	for _, r := range stuck {
		if err := s.ended[r]; err != nil && !errors.Is(err, bio.ErrShutdown) {
			t.Errorf("a write ended with %v", err)
		}
		if !s.isDone(r) {
			t.Error("a write was left")
		}
	}
	if !errors.Is(s.core.Err(), ErrFenced) {
		t.Errorf("the reason is %v", s.core.Err())
	}
}

// Goal: an abort does not give memory back while a reply is landing in it.
// Method: stop between Incoming and Reply.
func TestAbortWaitsForTheTransport(t *testing.T) {
	s := newScript(t, nil)
	s.mustEnd("write", s.write(0, block(1)), nil)
	for _, d := range s.devs {
		s.hold[d.id] = true
	}
	r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(0)})
	id, l := s.linkOf(s.devs[s.to[len(s.to)-1]-1])
	f := l.frames[0]
	s.capture(f)
	reply, err := l.dev.execute(f)
	if err != nil {
		t.Fatal(err)
	}
	if _, wanted, err := s.core.Incoming(id, &reply.h); !wanted || err != nil {
		t.Fatalf("the reply is not wanted: %v", err)
	}
	s.core.Abort(s.now, bio.ErrShutdown)
	s.effects()
	if s.isDone(r) {
		t.Fatal("the read ended while its reply was landing")
	}
	s.settle() // closes the links
	s.mustEnd("read", r, bio.ErrShutdown)
}

// Goal: replies that make no sense close the connection before a byte lands.
// Method: a table of headers.
func TestHostileReplies(t *testing.T) {
	for name, edit := range map[string]func(*transport.Header){
		"a request":      func(h *transport.Header) { h.Flags = 0 },
		"short payload":  func(h *transport.Header) { h.Payload = 4095 },
		"long payload":   func(h *transport.Header) { h.Payload = 8192 },
		"no checksums":   func(h *transport.Header) { h.Sums = 0 },
		"another op":     func(h *transport.Header) { h.Op = transport.OpWrite },
		"hole with data": func(h *transport.Header) { h.Flags |= transport.FlagHole },
	} {
		s := newScript(t, nil)
		s.hold[1], s.hold[2], s.hold[3], s.hold[4] = true, true, true, true
		s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(0)})
		id, l := s.linkOf(s.devs[s.to[len(s.to)-1]-1])
		h := l.frames[0].h
		h.Flags, h.Interval, h.Payload, h.Sums, h.Offset = transport.FlagReply, l.dev.inc, 4096, 1, 0
		edit(&h)
		if _, wanted, err := s.core.Incoming(id, &h); wanted || err == nil {
			t.Errorf("%s: wanted %v, error %v", name, wanted, err)
		}
	}
	s := newScript(t, nil)
	for _, h := range []transport.Header{{ID: 1 << 40}, {ID: ^uint64(0)}, {ID: 1<<32 | 5}} {
		h.Op, h.Flags, h.Payload, h.Sums = transport.OpRead, transport.FlagReply, 4096, 1
		if _, wanted, err := s.core.Incoming(0, &h); wanted || err != nil {
			t.Errorf("an unknown id %x: wanted %v, error %v", h.ID, wanted, err)
		}
		s.core.Reply(s.now, 0, &h, nil, nil)
	}
}

// Goal: activity-log pressure makes the client flush by itself (rule 18), and so
// does time. Method: as said; count flushes.
func TestInternalFlush(t *testing.T) {
	s := newScript(t, nil)
	for _, d := range s.devs {
		d.alCap = 4
	}
	for i := range 3 {
		s.mustEnd("write", s.write(uint64(i)<<23, block(1)), nil)
	}
	s.now += int64(time.Second)
	for i := range 8 {
		s.mustEnd("write", s.write(uint64(i%8)<<23, block(2)), nil)
	}
	if s.core.stats.Flushes == 0 {
		t.Error("full activity logs led to no flush")
	}
	s.tick(time.Minute)
	before := s.core.stats.Flushes
	s.mustEnd("write", s.write(0, block(3)), nil)
	s.tick(DefaultFlushEvery - time.Millisecond)
	if s.core.stats.Flushes != before {
		t.Error("flushed too early")
	}
	s.tick(2 * time.Millisecond)
	if s.core.stats.Flushes != before+1 {
		t.Error("what was written was not flushed in time")
	}
}

// Goal: block status tells data and holes in the volume's order, whatever the
// striping. Method: data at chosen blocks of odd shapes; compare.
func TestBlockStatus(t *testing.T) {
	for _, width := range []uint32{1, 3, 8} {
		s := newScript(t, func(c *simConfig) { c.unit, c.width = 8192, width })
		data := map[uint64]bool{}
		for _, b := range []uint64{3, 4, 5, 17, 255, 256, uint64(width)*256 - 1, uint64(width) * 256} {
			s.mustEnd("write", s.write(b*4096, block(1)), nil)
			data[b] = true
		}
		for _, off := range []uint64{0, 4096, 4096*3 + 17, 200 * 4096, (uint64(width)*256 - 40) * 4096} {
			r := &bio.Request{Op: bio.BlockStatus, Off: off, Len: 1 << 20}
			s.core.Submit(s.now, r)
			s.settle()
			s.mustEnd("block status", r, nil)
			at := off
			for _, e := range r.Extents {
				for end := at + e.Length; at < end; at = (at + 4096) &^ 4095 {
					if data[at/4096] == e.Hole {
						t.Fatalf("W=%d off=%d: block %d is told as hole=%v", width, off, at/4096, e.Hole)
					}
				}
			}
			if at <= off || at > off+1<<20+4095 {
				t.Fatalf("W=%d off=%d: the answer covers up to %d", width, off, at)
			}
		}
	}
}
