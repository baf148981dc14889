// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"testing"

	"braid/cluster"
	"braid/transport"
	"braid/transport/loop"
)

// setGroup publishes testPG as given, under the next epoch.
func (m *fakeManager) setGroup(edit func(*cluster.PG)) (epoch uint32) {
	m.edit(func(next *cluster.Map) {
		pg := *next.PGs[1][0]
		edit(&pg)
		pg.Epoch++
		if pg.TargetEpoch = 0; pg.Target != 0 {
			pg.TargetEpoch = pg.Epoch
		}
		next.PGs[1] = []*cluster.PG{&pg}
		epoch = pg.Epoch
	})
	return epoch
}

func (m *fakeManager) group() cluster.PG {
	m.mu.Lock()
	defer m.mu.Unlock()
	return *m.current.PGs[1][0]
}

// Goal: a device that missed writes gets them from the other one by itself, under
// the locks of the volume's client, and then serves reads. Method: two devices of
// one server, a client with a connection to each, a manager whose first answer to
// the join is lost.
func TestDeviceIsResynced(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		a, b := newMemDisk(testDiskSize), newMemDisk(testDiskSize)
		format(t, a)
		format(t, b)
		m := newFakeManager()
		r := startRig(t, e, m, a, b)
		defer r.stop()
		pa, pb := r.dial(0), r.dial(1)
		defer pa.close()
		defer pb.close()
		m.setVolume(func(v *cluster.Volume) { v.Generation, v.Attached = 3, true })
		for _, p := range []*peer{pa, pb} {
			if s := p.open(3); s != transport.StatusOK {
				t.Fatalf("open: %v", s)
			}
		}
		old, missed := pattern(1, 8192), pattern(2, 8192)
		now := m.group().Epoch
		put := func(p *peer, chunk uint64, data []byte) reply {
			h := writeHeader(chunk, 4096, len(data), 0)
			h.Epoch = now
			return p.want(transport.StatusOK, h, data)
		}
		for chunk := range uint64(3) {
			put(pa, chunk, old)
			put(pb, chunk, old)
		}
		now = m.setGroup(func(pg *cluster.PG) { pg.InSync = []cluster.DeviceID{1} })
		put(pa, 1, missed)
		put(pa, 5, missed)
		now = m.setGroup(func(pg *cluster.PG) { pg.Target = 2 })
		// A live write comes to the target too; it is answered, applied or not.
		put(pa, 2, missed)
		put(pb, 2, missed)

		// The client gives each chunk that it is asked for.
		for m.group().Target != 0 {
			select {
			case q := <-pb.replies:
				if q.Flags&transport.FlagReply != 0 || q.Op != transport.OpLock && q.Op != transport.OpUnlock ||
					q.Session != pb.session {
					t.Fatalf("the server sends %+v", q.Header)
				}
				answer := &transport.Msg{Header: transport.Header{Op: q.Op, Flags: transport.FlagReply, ID: q.ID,
					Session: q.Session, Chunk: q.Chunk}}
				pb.loop.Call(func() { pb.conn.Send(answer) })
			case <-m.changed():
			case <-t.Context().Done():
				t.Fatal("no end of the resync")
			}
		}
		now = m.group().Epoch
		for len(pb.replies) > 0 {
			<-pb.replies
		}
		for chunk, want := range map[uint64][]byte{0: old, 1: missed, 2: missed, 5: missed} {
			h := readHeader(chunk, 4096, len(want))
			h.Epoch = now
			if got := pb.want(transport.StatusOK, h, nil); !bytes.Equal(got.data, want) {
				t.Errorf("chunk %d differs after the resync", chunk)
			}
		}
	})
}

// changed is closed when the map changes.
func (m *fakeManager) changed() <-chan struct{} {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.change
}

func (m *fakeManager) setVolume(edit func(*cluster.Volume)) {
	m.edit(func(next *cluster.Map) {
		v := *next.Volumes[testVolume]
		edit(&v)
		next.Volumes[testVolume] = &v
	})
}
