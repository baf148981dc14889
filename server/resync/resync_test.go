// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"slices"
	"testing"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/server/disk"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

type ticket struct{ gate.Ticket }

func (w *world) bad(format string, args ...any) {
	w.t.Helper()
	w.differs = true
	if w.off == 0 {
		w.t.Errorf(format, args...)
	}
}

// stale makes C miss something of every kind.
func stale(t *testing.T) *world { return staleWithout(t, 0) }

func staleWithout(t *testing.T, off rules.Off) *world {
	w := newWorld(t, 1, off)
	for c := range uint64(6) {
		for b := range uint32(8) {
			w.put(c, b)
		}
	}
	w.flush()
	return w
}

// Goal: what differs is copied, and little else; a copy with a larger tag is
// rolled back, what the source lacks is trimmed (rule 9).
func TestStaleCopyIsBroughtBack(t *testing.T) {
	w := stale(t)
	w.missAll()
	w.announce()
	w.connect(devC)
	w.joined()
	s := w.core.Stats()
	const differing = 3 * 4096 // chunk 1, 2 and 6; the others are trims
	if s.BytesCopied < differing || s.BytesCopied > differing*12/10 || s.BytesRead != s.BytesCopied {
		t.Errorf("copied %d bytes, read %d; %d differ", s.BytesCopied, s.BytesRead, differing)
	}
	if w.core.Busy() || s.Groups != 0 {
		t.Errorf("at rest: %+v", s)
	}
}

// Goal: a target that has met a volume's first client copies what it skipped for it,
// also as long as its map says that nobody has ever attached the volume.
func TestClientComesBeforeItsMap(t *testing.T) {
	w := stale(t)
	w.missAll()
	gen := w.gen
	w.gen = 0
	w.announce()
	w.gen = gen
	w.connect(devC)
	w.joined()
	if w.core.Stats().BytesCopied == 0 {
		t.Error("nothing was copied")
	}
}

// missAll evicts C after a write that only C has, with a tag larger than
// anybody's, and changes chunks that it has.
func (w *world) missAll() {
	w.interval = 9
	f := w.issue(1, 3, false)
	w.deliver(f, devC) // never acked: its tag is larger than anybody's
	w.flight = nil
	w.interval = 2
	w.evict()
	w.put(2, 1)
	w.put(6, 4)
	trim := w.issue(3, 0, true)
	w.deliver(trim, devA)
	for b := range uint32(8) {
		trim := w.issue(4, b, true)
		w.deliver(trim, devA)
	}
	w.flush()
}

// Goal: a volume without a client is copied without locks; an empty device gets
// everything, and its log empties by itself.
func TestEmptyDevice(t *testing.T) {
	w := stale(t)
	w.evict()
	for _, id := range []cluster.DeviceID{devA, devB, devC} {
		w.disconnect(id)
	}
	n := w.nodes[devC]
	n.disk = disk.NewMem(diskSize)
	if _, err := store.Format(n.disk, cluster.UUID{33}, cluster.UUID{9}, nil); err != nil {
		t.Fatal(err)
	}
	n.start()
	w.core = w.newCore()
	w.detached = true
	w.announce()
	w.hook = func(e *Effect) {
		if e.Kind == EffectLock {
			t.Error("a lock was asked for")
		}
	}
	w.joined()
	if s := w.core.Stats(); s.BytesCopied != 6*8*4096 {
		t.Errorf("copied %d bytes", s.BytesCopied)
	}
	for range 10 {
		n.core.Idle()
		n.settle()
	}
	if al := n.core.Stats().AL; al != 0 {
		t.Errorf("%d entries are left in the log", al)
	}
}

// Goal: the loss of the source, of the lock, and of the target's memory each make
// the resync start over where it has to, and nothing is lost.
func TestInterruptions(t *testing.T) {
	prepare := func(t *testing.T) *world {
		w := stale(t)
		w.evict()
		for c := range uint64(6) {
			w.put(c, 9)
			w.put(c, 11)
		}
		w.announce()
		w.connect(devC)
		return w
	}
	once := func(w *world, kind EffectKind, op transport.Op, do func()) {
		w.hook = func(e *Effect) {
			if e.Kind == kind && (op == 0 || e.Op.Header.Op == op) {
				w.hook = nil
				do()
			}
		}
	}
	for _, op := range []transport.Op{transport.OpTags, transport.OpALList, transport.OpSums, transport.OpCopy} {
		t.Run("source dies", func(t *testing.T) {
			w := prepare(t)
			once(w, EffectPeer, op, func() {
				w.disconnect(devB)
				w.nodes[devB].down = true
				w.core.PeerDown(w.now, devB)
				w.publish(func(pg *cluster.PG) { pg.InSync = []cluster.DeviceID{devA} })
			})
			w.joined()
		})
		t.Run("first source dies", func(t *testing.T) {
			w := prepare(t)
			var killed bool
			once(w, EffectPeer, op, func() {
				killed = true
				w.core.PeerDown(w.now, devA) // its connection only
			})
			w.joined()
			if !killed {
				t.Error("nothing was interrupted")
			}
		})
	}
	t.Run("lock lost", func(t *testing.T) {
		w := prepare(t)
		once(w, EffectPeer, transport.OpCopy, func() {
			chunk := w.held[0].Chunk
			w.disconnect(devC)
			f := w.issue(chunk, 9, false) // the lock is void: the client goes on
			w.deliver(f, devA)
			w.connect(devC)
			w.deliver(f, devC)
		})
		w.joined()
	})
	t.Run("target restarts", func(t *testing.T) {
		for _, op := range []transport.Op{transport.OpTags, transport.OpSums, transport.OpCopy} {
			w := prepare(t)
			w.hook = nil
			once(w, EffectPeer, op, func() { w.crashTarget() })
			w.joined()
		}
	})
	t.Run("mdm's answer is lost", func(t *testing.T) {
		w := prepare(t)
		w.unknown = 3
		w.joined()
	})
	t.Run("no lock without a connection", func(t *testing.T) {
		w := prepare(t)
		w.disconnect(devC)
		for range 500 {
			w.step()
		}
		if s := w.core.Stats(); s.Copied != 0 || s.Compared != 1 {
			t.Errorf("%+v", s)
		}
		w.connect(devC)
		w.joined()
	})
}

// crashTarget has C lose power; mdm gives it a new attempt.
func (w *world) crashTarget() {
	n := w.nodes[devC]
	w.disconnect(devC)
	n.disk = n.disk.Crash(w.rnd, nil)
	w.queue = nil
	n.start()
	w.core = w.newCore()
	w.evict()
	w.announce()
	w.connect(devC)
}

// Goal: an attach during the run makes what only C had got dirty (rule 27).
func TestAttachDuringTheRun(t *testing.T) {
	for _, off := range []rules.Off{0, rules.Set(rules.AttachDirties)} {
		w := stale(t)
		w.off = off
		w.nodes[devC].gate = gate.New(off)
		w.core = w.newCore()
		w.evict()
		w.announce()
		w.connect(devC)
		for range 2000 {
			if s := w.core.Stats(); s.Compared == 1 && s.Dirty == 0 {
				break
			}
			w.step()
		}
		f := w.issue(5, 2, false)
		w.queue = slices.DeleteFunc(w.queue, func(e Effect) bool { return e.Kind == EffectJoin })
		w.deliver(f, devC) // clean there: applied; A never gets it
		w.attach()
		if w.core.join != nil && w.core.join.sent {
			w.core.Joined(w.now, []cluster.PGID{w.pg().ID}, true)
		}
		w.joined()
		if w.differs != (off != 0) {
			t.Errorf("off %v: differs is %v", off, w.differs)
		}
	}
}

// Goal: the larger tag of a stale copy counts for nothing, and the test above
// would notice if it did (rule 9).
func TestDirectionMatters(t *testing.T) {
	w := staleWithout(t, rules.Set(rules.Direction))
	w.missAll()
	// Only the tag tells: the entry in C's log is gone.
	w.nodes[devC].submit(&store.Request{Op: store.OpStamp, Volume: volume, Gen: w.gen, Chunk: 1, Unlog: true,
		Tag: cluster.Tag{Gen: w.gen, Interval: 9}})
	w.nodes[devC].submit(&store.Request{Op: store.OpFlush, Volume: volume, Gen: w.gen})
	for range 5 {
		w.nodes[devC].core.Idle()
		w.nodes[devC].settle()
	}
	w.announce()
	w.connect(devC)
	w.joined()
	if !w.differs {
		t.Error("without the rule the copies are equal all the same")
	}
}
