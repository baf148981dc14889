// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"errors"
	"slices"
	"testing"
	"time"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
	"braid/transport/bio"
)

// oneGroup is a script with one group on devices 1 and 2, and 3 to spare.
func oneGroup(t *testing.T, edit func(*simConfig)) *script {
	return newScript(t, func(c *simConfig) {
		c.devices, c.replicas, c.groups, c.unit, c.width = 3, 2, 1, 1<<20, 1
		if edit != nil {
			edit(c)
		}
	})
}

// inLog makes the older session have left a chunk in the devices' activity logs.
func inLog(chunk uint64, devs ...*fakeDevice) {
	for _, d := range devs {
		d.suspects[chunk] = 0
	}
}

func put(d *fakeDevice, key uint64, b []byte) {
	if d.current[key], d.durable[key] = b, b; b == nil {
		delete(d.current, key)
		delete(d.durable, key)
	}
}

// unbroken says which devices have kept what the older session was told.
func unbroken(ids ...cluster.DeviceID) func(cluster.PGID, cluster.DeviceID, cluster.Incarnation) bool {
	return func(_ cluster.PGID, id cluster.DeviceID, inc cluster.Incarnation) bool {
		return slices.Contains(ids, id) && inc == cluster.Incarnation(1000+uint64(id))
	}
}

// Goal: no request passes to a suspect chunk before its copies are equal, stamped
// and flushed (rules 4, 8); the source is the copy that has kept everything (rule
// 6), whichever way that goes: blocks that it lacks are trimmed elsewhere (rule
// 9). Method: copies that differ in three ways; either device is the source.
func TestResolve(t *testing.T) {
	for _, source := range []cluster.DeviceID{1, 2} {
		s := oneGroup(t, func(c *simConfig) {
			c.before.Source = unbroken(source)
			c.prepare = func(s *sim) {
				put(s.devs[0], 3, block(1))
				put(s.devs[1], 3, block(2))
				put(s.devs[0], 9, block(3))
				put(s.devs[1], 200, block(4))
				put(s.devs[0], 100, block(5))
				put(s.devs[1], 100, block(5))
				inLog(0, s.devs[0])
			}
		})
		want := map[uint64][]byte{100: block(5)}
		if source == 1 {
			want[3], want[9] = block(1), block(3)
		} else {
			want[3], want[200] = block(2), block(4)
		}
		zero := make([]byte, 4096)
		for _, key := range []uint64{3, 9, 100, 200} {
			r := s.begin(bio.Request{Op: bio.Read, Off: key * 4096, Len: 4096, Data: block(9)})
			s.mustEnd("read", r, nil)
			expect := want[key]
			if expect == nil {
				expect = zero
			}
			if !bytes.Equal(r.Data, expect) {
				t.Errorf("source %d: block %d reads as %d", source, key, r.Data[0])
			}
			for _, d := range s.devs[:2] {
				held := d.durable[key]
				if held == nil {
					held = zero
				}
				if !bytes.Equal(held, expect) {
					t.Errorf("source %d: device %d does not hold block %d durably", source, d.id, key)
				}
			}
		}
		if s.devs[0].stamps != 1 || s.devs[1].stamps != 1 || len(s.devs[0].suspects) != 0 {
			t.Errorf("stamps: %d and %d, want one each", s.devs[0].stamps, s.devs[1].stamps)
		}
		if all, n := s.core.Collected(); !all || n != 0 {
			t.Errorf("collected %v, %d suspects left", all, n)
		}
	}
}

// Goal: requests to other chunks of a collected group pass at once, those to the
// suspect one after the flush. Method: hold the answers to OpSums back.
func TestOnlySuspectChunksWait(t *testing.T) {
	s := oneGroup(t, func(c *simConfig) {
		c.prepare = func(s *sim) { inLog(0, s.devs[0], s.devs[1]) }
		c.refuse = transport.OpSums
	})
	waits := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)})
	write := s.write(8192, block(7))
	s.mustEnd("a write elsewhere", s.write(1<<20, block(1)), nil)
	s.mustEnd("a flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	if s.isDone(waits) || s.isDone(write) {
		t.Fatal("a request passed to a chunk that is not resolved (rule 8)")
	}
	if w := s.core.Waiting(s.now, -1); len(w) == 0 {
		t.Error("nobody is told why requests wait")
	}
	s.answer = nil
	s.tick(time.Second)
	s.mustEnd("the read", waits, nil)
	s.mustEnd("the write", write, nil)
}

// Goal: nothing passes before every in-sync device of the group has been opened
// and has told its log (rules 10, 14), or has been taken out. Method: one device
// is down; then mdm evicts it.
func TestAttachWaitsForEveryCopy(t *testing.T) {
	s := oneGroup(t, func(c *simConfig) {
		c.down = 2
		c.prepare = func(s *sim) { inLog(0, s.devs[0], s.devs[1]) }
	})
	r := s.begin(bio.Request{Op: bio.Read, Off: 1 << 20, Len: 4096, Data: block(9)})
	if s.isDone(r) || s.core.Adopted() != 0 {
		t.Fatal("a group opens though a copy of it may serve the older session")
	}
	s.tick(2 * time.Second)
	if s.marks["report"] == 0 {
		t.Error("the device is not reported")
	}
	s.dropReplica(2)
	s.settle()
	s.mustEnd("the read", r, nil)
	s.mustEnd("a read of the suspect chunk", s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)}), nil)
	if s.core.Adopted() != s.m.Version {
		t.Errorf("adopted %d, want %d", s.core.Adopted(), s.m.Version)
	}
}

// Goal: a guest that kept running is not served where no copy holds all that it
// was told (rule 6); a fresh attach is. Method: no device is a source.
func TestNoSource(t *testing.T) {
	for _, alive := range []bool{true, false} {
		s := oneGroup(t, func(c *simConfig) {
			c.before = Before{GuestAlive: alive, Source: unbroken()}
			c.prepare = func(s *sim) { inLog(0, s.devs[1]) }
		})
		r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)})
		if !alive {
			s.mustEnd("read", r, nil)
			continue
		}
		s.mustEnd("read", r, bio.ErrIO)
		if !errors.Is(s.core.Err(), ErrNoSource) {
			t.Errorf("the reason is %v", s.core.Err())
		}
	}
}

// Goal: a guest that kept running is not served by a copy that was whole at the
// attach and has lost its cache since, though this session wrote nothing there
// (rule 6). Method: the group's only copy is reborn while its chunk is resolved, or
// after that: then nothing is lost.
func TestSourceForgetsDuringTheResolve(t *testing.T) {
	for _, late := range []bool{false, true} {
		s := oneGroup(t, func(c *simConfig) {
			c.before = Before{GuestAlive: true, Source: unbroken(1)}
			c.prepare = func(s *sim) { inLog(0, s.devs[0]) }
			c.refuse = transport.OpStamp
		})
		s.dropReplica(2)
		s.settle()
		r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)})
		if late {
			s.answer = nil
			s.tick(time.Second)
			s.mustEnd("read", r, nil)
		}
		s.reborn(s.devs[0])
		s.answer = nil
		s.tick(time.Second)
		if late {
			inLog(0, s.devs[0])
			s.mustEnd("a later read", s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)}), nil)
			continue
		}
		s.mustEnd("read", r, bio.ErrIO)
		if !errors.Is(s.core.Err(), ErrNoSource) {
			t.Errorf("the reason is %v", s.core.Err())
		}
	}
}

// Goal: a flush of a guest that kept running covers what the older session
// acknowledged: it ends when that is resolved and durable. Method: hold OpSums.
func TestFlushWaitsForTheOldSession(t *testing.T) {
	s := oneGroup(t, func(c *simConfig) {
		c.before = Before{GuestAlive: true, Source: unbroken(1, 2)}
		c.prepare = func(s *sim) { inLog(0, s.devs[0]) }
		c.refuse = transport.OpSums
	})
	f := s.begin(bio.Request{Op: bio.Flush})
	if s.isDone(f) {
		t.Fatal("the flush ends though an acknowledged write may be on one copy only")
	}
	s.answer = nil
	s.tick(time.Second)
	s.mustEnd("flush", f, nil)
}

// Goal: a torn block gives way to a whole copy, and where all are torn one is
// taken, on all copies (rule 22). Method: a fresh attach after all crashed.
func TestTornBlocks(t *testing.T) {
	s := oneGroup(t, func(c *simConfig) {
		c.prepare = func(s *sim) {
			put(s.devs[0], 1, block(1))
			put(s.devs[1], 1, block(2))
			s.devs[0].torn[1] = true
			put(s.devs[0], 2, block(3))
			put(s.devs[1], 2, block(4))
			s.devs[0].torn[2], s.devs[1].torn[2] = true, true
			inLog(0, s.devs[0], s.devs[1])
		}
	})
	s.mustEnd("read", s.begin(bio.Request{Op: bio.Read, Len: 8192, Data: make([]byte, 8192)}), nil)
	if !bytes.Equal(s.devs[0].durable[1], block(2)) || !bytes.Equal(s.devs[1].durable[1], block(2)) {
		t.Error("the torn copy won")
	}
	if !bytes.Equal(s.devs[0].durable[2], s.devs[1].durable[2]) || len(s.devs[0].torn)+len(s.devs[1].torn) != 0 {
		t.Error("torn blocks stay")
	}
}

// Goal: requests are held until each device of the older session is fenced, or
// its lease is over (rules 15, 26). Method: a third device is to be fenced.
func TestHoldForTheOldLease(t *testing.T) {
	for _, comes := range []bool{true, false} {
		s := oneGroup(t, func(c *simConfig) {
			c.before = Before{Fence: []cluster.DeviceID{3}, Wait: 3 * time.Second}
			c.down = 3
		})
		r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)})
		if s.isDone(r) {
			t.Fatal("a request passes while the older session may be served")
		}
		wanted := false
		s.core.Wanted(func(id cluster.DeviceID, _ bool) { wanted = wanted || id == 3 })
		if !wanted {
			t.Error("the device is not wanted")
		}
		if comes {
			if l := s.core.LinkUp(s.now, 3, 1, 1003); l >= 0 {
				t.Error("a device that is a member of no group gets a link")
			}
			s.settle()
		} else {
			s.tick(3 * time.Second)
		}
		s.mustEnd("read", r, nil)
	}
}

// withTarget names device 3 as the target of group 0.
func (s *script) withTarget(attempt uint32) {
	next := *s.m
	next.Version++
	pg := *s.m.PGs[1][0]
	pg.Epoch++
	pg.Target, pg.TargetEpoch = 3, pg.Epoch
	if attempt == 0 {
		pg.Target, pg.TargetEpoch = 0, 0
	}
	next.PGs = map[uint32][]*cluster.PG{1: {&pg}}
	s.m = &next
	if err := s.core.SetMap(s.now, s.m, nil); err != nil {
		s.t.Fatal(err)
	}
	s.settle()
	if attempt != 0 {
		if _, ok := s.findLink(s.devs[2]); !ok {
			s.up(s.devs[2])
		}
		s.settle()
	}
}

func (s *script) findLink(d *fakeDevice) (int32, bool) {
	for id, l := range s.links {
		if l.dev == d {
			return id, true
		}
	}
	return none, false
}

// Goal: from the epoch on that names a target, writes and flushes go there and
// need its answer, skipped or not; reads never do (rule 23). A write under way
// follows the map. Method: hold the target; count.
func TestTargetGetsWrites(t *testing.T) {
	s := oneGroup(t, nil)
	s.hold[2] = true
	early := s.write(0, block(1))
	s.hold[3] = true
	s.withTarget(1)
	s.hold[2] = false
	s.settle()
	late := s.write(4096, block(2))
	if s.isDone(early) || s.isDone(late) {
		t.Fatal("a write ends without the target's answer")
	}
	s.devs[2].target[0] = true
	s.hold[3] = false
	s.settle()
	s.mustEnd("the write under way", early, nil)
	s.mustEnd("a later one", late, nil)
	if len(s.devs[2].current) != 0 {
		t.Error("the target did not skip")
	}
	s.mustEnd("flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	if s.devs[2].flushes != 1 {
		t.Errorf("the target was flushed %d times", s.devs[2].flushes)
	}
	for range 8 {
		s.mustEnd("read", s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)}), nil)
	}
	for i, h := range s.sent {
		if h.Op == transport.OpRead && s.to[i] == 3 {
			t.Fatal("a target is read from")
		}
	}
}

// Goal: what a target answered in an older attempt does not count in the next.
// Method: a write is skipped, the other copy is slow, the attempt changes.
func TestTargetOfANewAttempt(t *testing.T) {
	s := oneGroup(t, nil)
	s.withTarget(1)
	s.devs[2].target[0] = true
	s.hold[2] = true
	w := s.write(0, block(1))
	s.devs[2].target = map[uint64]bool{}
	s.withTarget(2)
	s.hold[2] = false
	s.settle()
	s.mustEnd("write", w, nil)
	if !bytes.Equal(s.devs[2].current[0], block(1)) {
		t.Error("the target compared, found both copies old, and has not got the write")
	}
}

func (s *script) lockFrame(op transport.Op, chunk, id uint64) int32 {
	l, ok := s.findLink(s.devs[2])
	if !ok {
		s.t.Fatal("no link to the target")
	}
	pg := s.m.PGs[1][0]
	h := transport.Header{Op: op, ID: id, Session: 3, Chunk: chunk, PG: uint32(pg.ID), Epoch: pg.Epoch}
	if _, wanted, err := s.core.Incoming(l, &h); wanted || err != nil {
		s.t.Fatalf("Incoming: %v %v", wanted, err)
	}
	s.core.Request(s.now, l, &h)
	s.settle()
	return l
}

func (s *script) lockAnswer(id uint64) (transport.Status, bool) {
	for _, h := range s.sent {
		if h.Op == transport.OpLock && h.ID == id && h.Flags == transport.FlagReply {
			return h.Status, true
		}
	}
	return 0, false
}

// Goal: a chunk's lock is granted when no write to it is under way, keeps writes
// off and lets reads pass, and ends by OpUnlock, by the loss of the connection,
// and with the attempt (rule 12). Method: one after the other.
func TestChunkLock(t *testing.T) {
	s := oneGroup(t, nil)
	s.withTarget(1)
	s.hold[1] = true
	before := s.write(0, block(1))
	s.lockFrame(transport.OpLock, 0, 77)
	if _, ok := s.lockAnswer(77); ok {
		t.Fatal("granted while a write is under way")
	}
	s.hold[1] = false
	s.settle()
	s.mustEnd("the write under way", before, nil)
	if st, ok := s.lockAnswer(77); !ok || st != transport.StatusOK {
		t.Fatalf("the lock is answered %v, %v", st, ok)
	}
	during := s.write(4096, block(2))
	s.mustEnd("a read", s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)}), nil)
	s.mustEnd("a write elsewhere", s.write(1<<20, block(2)), nil)
	s.mustEnd("a flush", s.begin(bio.Request{Op: bio.Flush}), nil)
	if s.isDone(during) {
		t.Fatal("a write passes while its chunk is copied")
	}
	s.lockFrame(transport.OpUnlock, 0, 78)
	s.mustEnd("the write that waited", during, nil)

	l := s.lockFrame(transport.OpLock, 0, 79)
	during = s.write(4096, block(3))
	s.sim.closeLink(l)
	s.settle()
	s.up(s.devs[2])
	s.settle()
	s.mustEnd("a write after the connection was lost", during, nil)

	s.lockFrame(transport.OpLock, 0, 80)
	during = s.write(4096, block(4))
	s.withTarget(0)
	s.mustEnd("a write after the attempt has ended", during, nil)
	if n := len(s.core.gate.chunks) + s.core.gate.closed + s.core.gate.drains; n != 0 {
		t.Errorf("%d left behind", n)
	}
}

// Goal: a lock is for those who see the group as the client does: the source may
// have left the in-sync set since. Method: older and newer epochs.
func TestChunkLockOfAnotherEpoch(t *testing.T) {
	s := oneGroup(t, nil)
	s.withTarget(1)
	s.m.PGs[1][0].Epoch-- // lockFrame speaks from this map
	s.lockFrame(transport.OpLock, 0, 1)
	s.m.PGs[1][0].Epoch += 2
	s.lockFrame(transport.OpLock, 0, 2)
	if st, _ := s.lockAnswer(1); st != transport.StatusStaleEpoch {
		t.Errorf("an old epoch: %v", st)
	}
	if st, _ := s.lockAnswer(2); st != transport.StatusRetry {
		t.Errorf("a new epoch: %v", st)
	}
}

// Goal: a lock that waits is not granted in a later epoch: the write that it waited
// for has ended without a copy, and that may be the one the target copies from.
func TestChunkLockThatWaitedTooLong(t *testing.T) {
	s := oneGroup(t, nil)
	s.withTarget(1)
	s.hold[1] = true
	w := s.write(0, block(1))
	s.lockFrame(transport.OpLock, 0, 77)
	s.dropReplica(1)
	s.settle()
	s.mustEnd("the write without the copy that is away", w, nil)
	if st, ok := s.lockAnswer(77); !ok || st != transport.StatusStaleEpoch {
		t.Errorf("the lock is answered %v, %v", st, ok)
	}
	if n := len(s.core.locking.locks) + s.core.gate.drains; n != 0 {
		t.Errorf("%d left behind", n)
	}
}

// Goal: a read ends only when each copy has confirmed the generation within the
// lease (rule 15), and an idle client finds out by asking. Method: time passes
// while one copy is out of reach; then it answers, or is evicted.
func TestZombieRead(t *testing.T) {
	for _, evicted := range []bool{false, true} {
		s := oneGroup(t, nil)
		s.mustEnd("read", s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)}), nil)
		s.hold[2] = true
		s.tick(2 * DefaultLease)
		var r *bio.Request
		for range 3 { // whichever copy it asks first
			r = s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)})
		}
		s.tick(time.Second)
		if s.isDone(r) {
			t.Fatal("a read ends though a copy may have been fenced long ago")
		}
		if evicted {
			s.dropReplica(2)
		} else {
			s.hold[2] = false
		}
		s.settle()
		s.mustEnd("read", r, nil)
	}
}

// Goal: a session that a copy no longer knows as the newest reads nothing old.
// Method: the held read's confirmation is refused.
func TestZombieIsFenced(t *testing.T) {
	s := oneGroup(t, nil)
	s.tick(2 * DefaultLease)
	s.answer = func(d *fakeDevice, h *transport.Header) transport.Status {
		if d.id == 2 {
			return transport.StatusFenced
		}
		return transport.StatusOK
	}
	r := s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)})
	s.tick(time.Second)
	s.mustEnd("read", r, bio.ErrShutdown)
}

// Goal: the rules are really what holds these back. Method: switch them off.
func TestRulesOff(t *testing.T) {
	s := oneGroup(t, func(c *simConfig) {
		c.off = rules.Set(rules.ResolveFirst)
		c.prepare = func(s *sim) { inLog(0, s.devs[0]) }
		c.refuse = transport.OpSums
	})
	s.mustEnd("a read of an unresolved chunk", s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)}), nil)
	s = oneGroup(t, func(c *simConfig) { c.off = rules.Set(rules.ZombieReads) })
	s.hold[2] = true
	s.tick(2 * DefaultLease)
	done := 0
	for range 4 {
		if s.isDone(s.begin(bio.Request{Op: bio.Read, Len: 4096, Data: block(9)})) {
			done++
		}
	}
	if done == 0 {
		t.Error("a zombie reads nothing although the rule is off")
	}
}
