// SPDX-License-Identifier: Apache-2.0

package core

import (
	"errors"
	"maps"
	"testing"
	"time"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
)

// lossMap tells that every copy of group 0 lost its cache, and in which
// incarnations its devices are now.
func (s *script) lossMap() {
	next := *s.m
	next.Version++
	pg := *s.m.PGs[1][0]
	pg.Epoch++
	pg.LostEpoch = pg.Epoch
	next.PGs = map[uint32][]*cluster.PG{1: {&pg}}
	next.Devices = map[cluster.DeviceID]*cluster.Device{}
	for id, d := range s.m.Devices {
		copied := *d
		copied.Incarnation = cluster.Incarnation(s.devs[id-1].inc)
		next.Devices[id] = &copied
	}
	s.m = &next
	if err := s.core.SetMap(s.now, s.m, nil); err != nil {
		s.t.Fatal(err)
	}
	s.settle()
}

// reborn closes the device's connection and opens one under a new incarnation.
func (s *script) reborn(d *fakeDevice) {
	id, _ := s.linkOf(d)
	s.sim.closeLink(id)
	d.inc += 100
	s.settle()
	s.up(d)
	s.settle()
}

// Goal: when all copies of a group lost their caches, a volume fails if it had
// acknowledged writes that were not flushed, and does not if all of them were
// made since, in the incarnations that are left: mdm's word may come late.
func TestLossIsToldFromLateNews(t *testing.T) {
	for _, late := range []bool{false, true} {
		s := oneGroup(t, nil)
		s.mustEnd("a write", s.write(0, block(1)), nil)
		s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
		if !late {
			s.mustEnd("a write that the loss may have hit", s.write(0, block(2)), nil)
			for _, d := range s.devs[:2] {
				d.inc += 100
			}
			s.lossMap()
			if !errors.Is(s.lost, ErrBroken) {
				t.Errorf("the volume goes on: %v", s.lost)
			}
			continue
		}
		for _, d := range s.devs[:2] {
			s.reborn(d)
		}
		s.mustEnd("a write after the loss", s.write(0, block(3)), nil)
		s.lossMap()
		if s.lost != nil {
			t.Errorf("the volume is lost: %v", s.lost)
		}
		s.mustEnd("the next flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	}
}

// Goal: a drained flush names the map under which it was drained, also when it is
// sent again after newer maps: a device that is always one map behind must come
// to serve it. Method: a device that refuses every newer version.
func TestFlushKeepsItsMap(t *testing.T) {
	s := oneGroup(t, nil)
	s.mustEnd("a write", s.write(0, block(1)), nil)
	known, seen := s.m.Version, 0
	s.answer = func(_ *fakeDevice, h *transport.Header) transport.Status {
		switch {
		case h.Op != transport.OpFlush:
			return transport.StatusOK
		case seen < 2, h.Chunk > known:
			seen++
			return transport.StatusRetry
		}
		return transport.StatusOK
	}
	f := s.begin(bio.Request{Op: bio.Flush})
	for range 20 {
		s.withTarget(0)
		s.tick(time.Duration(retryMost))
	}
	s.mustEnd("the flush", f, nil)
}

// Goal: a write whose fate is unknown, on a device whose activity log is full by
// now, does not keep the flush from going out that alone makes room: the refusal
// says that it was never applied. Method: its connection breaks before it is
// delivered; other chunks have filled the log.
func TestUnknownWriteMeetsAFullLog(t *testing.T) {
	s := oneGroup(t, nil)
	s.mustEnd("an earlier write", s.write(0, block(1)), nil)
	d := s.devs[0]
	s.hold[d.id] = true
	w := s.write(4096, block(2))
	d.alCap = len(d.al)
	delete(d.al, 0) // the log holds another chunk instead
	d.al[77] = 1
	id, _ := s.linkOf(d)
	s.sim.closeLink(id) // the frame is lost, and the core cannot know
	s.settle()
	s.hold[d.id] = false
	flush := s.begin(bio.Request{Op: bio.Flush})
	s.up(d)
	s.settle()
	for range 5 {
		s.tick(time.Duration(retryMost))
	}
	s.mustEnd("the flush", flush, nil)
	s.mustEnd("the write", w, nil)
}

// Goal: who has nothing under way on a device hears of its new incarnation from mdm
// and connects again to see; not when the connection knows it already, or the map is
// what is late. Method: maps, one incarnation after the other.
func TestMapNamesANewIncarnation(t *testing.T) {
	s := oneGroup(t, nil)
	d := s.devs[0]
	tell := func() {
		next := *s.m
		next.Version++
		next.Devices = maps.Clone(s.m.Devices)
		for _, d := range s.devs {
			device := *next.Devices[d.id]
			device.Incarnation = cluster.Incarnation(d.inc)
			next.Devices[d.id] = &device
		}
		s.m = &next
		if err := s.core.SetMap(s.now, s.m, nil); err != nil {
			t.Fatal(err)
		}
		s.settle()
	}
	tell()
	first, ok := s.findLink(d)
	if !ok {
		t.Fatal("not connected at first")
	}
	d.inc += 100 // under the open connection
	tell()
	if l, ok := s.findLink(d); ok && l == first {
		t.Fatal("the old connection stays")
	}
	if _, ok := s.findLink(d); !ok {
		s.up(d)
		s.settle()
	}
	if s.core.Sound() != s.m.Version {
		t.Errorf("sound in version %d, the map is %d", s.core.Sound(), s.m.Version)
	}
	s.reborn(d)
	now, _ := s.findLink(d)
	tell() // late
	if l, ok := s.findLink(d); !ok || l != now {
		t.Error("a connection that knows it already was closed")
	}
}
