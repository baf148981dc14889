// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"slices"
	"testing"
	"time"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
)

// fill makes the first device of block 0 full: it has one chunk, which holds the block
// that is returned, and no room for another one.
func (s *script) fill() (pair []*fakeDevice, kept int) {
	s.t.Helper()
	pair = s.inSync(0)
	for b := cluster.BlocksPerChunk; ; b++ {
		if s.key(b)/cluster.BlocksPerChunk != s.key(0)/cluster.BlocksPerChunk && slices.Contains(s.inSync(b), pair[0]) {
			s.mustEnd("write", s.write(at(b), block(5)), nil)
			pair[0].chunks = 1
			return pair, b
		}
	}
}

func at(b int) uint64 { return uint64(b) * cluster.BlockSize }

func (s *script) mustWait(r *bio.Request) {
	s.t.Helper()
	if s.isDone(r) {
		s.t.Fatalf("a write ends with %v, and there is no room for it", s.ended[r])
	}
}

func (s *script) holds(want []byte, devs ...*fakeDevice) {
	s.t.Helper()
	for _, d := range devs {
		if !bytes.Equal(d.current[s.key(0)], want) {
			s.t.Errorf("device %d does not hold what was written", d.id)
		}
	}
}

// Goal: a write that finds no room waits, holds up nothing but what overlaps, and ends
// well as soon as a trim has made room; copies never differ. Method: one device of two
// has no room.
func TestWriteWaitsForRoom(t *testing.T) {
	s := newScript(t, nil)
	pair, kept := s.fill()
	w := s.write(0, block(1))
	s.mustWait(w)
	if pair[1].current[s.key(0)] != nil {
		t.Error("the copy that had room keeps the write that waits")
	}
	s.mustEnd("overwrite", s.write(at(kept), block(6)), nil)
	s.mustEnd("read", s.begin(bio.Request{Op: bio.Read, Off: at(kept), Len: 4096, Data: block(0)}), nil)
	s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	s.sent, s.to = nil, nil
	for range 20 {
		s.tick(time.Second)
	}
	for i, h := range s.sent {
		if h.Op == transport.OpWrite && s.to[i] != pair[0].id {
			t.Fatalf("device %d is asked although device %d has no room", s.to[i], pair[0].id)
		}
	}
	if n := s.count(transport.OpWrite); n == 0 || n > 20 {
		t.Errorf("the write is tried %d times within 20 ticks", n)
	}
	s.mustWait(w)
	list := s.core.Waiting(s.now, int64(time.Second))
	if i := slices.IndexFunc(list, func(e Wait) bool { return e.Reason == WaitSpace }); i < 0 ||
		list[i].Device != pair[0].id || list[i].Requests != 1 || list[i].Op != bio.Write || list[i].NextAt == 0 {
		t.Errorf("what waits for room is told as %+v", list)
	}
	since := func() int64 {
		for _, e := range s.core.Waiting(s.now, int64(time.Second)) {
			if e.Reason == WaitSpace {
				return e.Since
			}
		}
		return 0
	}
	began := since()
	w2 := s.write(4096, block(2))
	w.Gone = true // the kernel has sent it again
	s.tick(time.Second)
	s.mustEnd("write of nobody", w, bio.ErrShutdown)
	if now := since(); began == 0 || now != began {
		t.Errorf("the device is full since %d, and since %d after a request was sent again", began, now)
	}
	w = s.write(0, block(1))
	after := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(7)})
	s.mustWait(w2)
	w2.Gone = true
	s.tick(time.Second)
	if n := s.core.Stats().Roomless; n != 1 {
		t.Errorf("%d requests wait for room, says the counter", n)
	}
	s.mustEnd("trim", s.begin(bio.Request{Op: bio.Trim, Off: at(kept), Len: 4096}), nil)
	s.tick(time.Second)
	s.mustEnd("write", w, nil)
	s.mustEnd("read", after, nil)
	if !bytes.Equal(after.Data, block(1)) {
		t.Error("a later read does not return what was written")
	}
	s.holds(block(1), pair...)
	s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	if n := s.core.Stats().Roomless; n != 0 {
		t.Errorf("%d requests wait for room at the end, says the counter", n)
	}
	if left := s.core.Left(); left != "" {
		t.Error(left)
	}
}

// Goal: a flush that began before the write found no room does not wait for it: only
// until the other copy has given it back. Method: the answer that there is no room is
// held back.
func TestFlushPassesAWriteWithoutRoom(t *testing.T) {
	s := newScript(t, nil)
	pair, kept := s.fill()
	s.hold[pair[0].id] = true
	w := s.write(0, block(1))
	f := s.begin(bio.Request{Op: bio.Flush})
	if s.isDone(f) {
		t.Fatal("a flush overtakes a write of its interval")
	}
	s.hold[pair[0].id] = false
	s.settle()
	s.mustEnd("flush", f, nil)
	s.mustWait(w)
	if len(pair[1].al) > 0 {
		t.Errorf("%d regions stay in the log of the copy that gave the write back", len(pair[1].al))
	}
	delete(pair[0].current, s.key(kept))
	s.tick(time.Second)
	s.mustEnd("write", w, nil)
	s.holds(block(1), pair...)
}

// Goal: writes that wait go on at once, all of them, where the device without room
// leaves their group. Method: the map drops it.
func TestNewMapEndsTheWaitForRoom(t *testing.T) {
	s := newScript(t, nil)
	pair, _ := s.fill()
	first, second := s.write(0, block(1)), s.write(4096, block(2))
	s.mustWait(first)
	s.mustWait(second)
	s.dropReplica(pair[0].id)
	s.settle()
	s.mustEnd("write", first, nil)
	s.mustEnd("write", second, nil)
	s.holds(block(1), pair[1])
}

// Goal: who gives up, is fenced, or is not there any more gets an error, and nothing
// else ends with one.
func TestWaitForRoomEnds(t *testing.T) {
	for name, end := range map[string]func(*script, *bio.Request){
		"given up": func(s *script, _ *bio.Request) { s.core.EndRoom(s.now, bio.ErrShutdown) },
		"gone": func(s *script, w *bio.Request) {
			w.Gone = true
			s.tick(time.Second)
		},
		"fenced": func(s *script, _ *bio.Request) { s.core.Fenced(s.now, "another") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newScript(t, nil)
			pair, kept := s.fill()
			w := s.write(0, block(1))
			s.mustWait(w)
			end(s, w)
			s.settle()
			s.mustEnd("write", w, bio.ErrShutdown)
			if name == "fenced" {
				return
			}
			s.mustEnd("overwrite", s.write(at(kept), block(6)), nil)
			if name == "given up" {
				s.mustEnd("write", s.write(0, block(2)), bio.ErrShutdown)
			}
			for _, d := range pair {
				if d.current[s.key(0)] != nil {
					t.Errorf("device %d holds a write that failed", d.id)
				}
			}
			s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
			if left := s.core.Left(); left != "" {
				t.Error(left)
			}
		})
	}
}

// Goal: writes that wait never take all slots: reads, trims and flushes go on, in order
// with what overlaps, and each write ends when there is room. Method: more writes than
// slots.
func TestWritesWithoutRoomLeaveSlots(t *testing.T) {
	s := newScript(t, func(c *simConfig) { c.requests = 8 })
	pair, kept := s.fill()
	var writes []*bio.Request
	for i := range 16 {
		writes = append(writes, s.write(at(i), block(byte(10+i))))
	}
	for _, w := range writes {
		s.mustWait(w)
	}
	if n := s.core.Stats().Roomless; n != 16 {
		t.Errorf("%d requests wait for room, says the counter", n)
	}
	s.mustEnd("read", s.begin(bio.Request{Op: bio.Read, Off: at(kept), Len: 4096, Data: block(0)}), nil)
	s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	gone := s.write(at(16), block(9))
	gone.Gone = true
	s.tick(time.Second)
	s.mustEnd("write of nobody", gone, bio.ErrShutdown)
	overlaps := s.begin(bio.Request{Op: bio.Read, Off: at(15), Len: 4096, Data: block(0)})
	if s.isDone(overlaps) {
		t.Error("a read overtakes a write to the same block")
	}
	s.mustEnd("trim", s.begin(bio.Request{Op: bio.Trim, Off: at(kept), Len: 4096}), nil)
	for range 20 {
		s.tick(50 * time.Millisecond)
	}
	for _, w := range writes {
		s.mustEnd("write", w, nil)
	}
	s.mustEnd("read", overlaps, nil)
	if !bytes.Equal(overlaps.Data, block(25)) {
		t.Error("the read returns other bytes")
	}
	s.holds(block(10), pair...)
	if left := s.core.Left(); left != "" {
		t.Error(left)
	}
}
