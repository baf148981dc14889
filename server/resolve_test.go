// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"testing"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/transport"
	"braid/transport/loop"
)

func groupHeader(op transport.Op, chunk uint64) transport.Header {
	return transport.Header{Op: op, PG: uint32(testPG), Epoch: epoch, Chunk: chunk}
}

// regions asks for the whole activity log of the session's volume.
func (p *peer) regions(h transport.Header) (list []transport.Region) {
	p.t.Helper()
	h.Op = transport.OpALList
	for {
		r := p.want(transport.StatusOK, h, nil)
		next, err := transport.DecodeRegions(r.data, func(x *transport.Region) { list = append(list, *x) })
		if err != nil {
			p.t.Fatal(err)
		}
		if h.Chunk = next; next == 0 {
			return list
		}
	}
}

// Goal: what a client needs to resolve: log, checksums, raw bytes, stamps and
// confirmations. And that another server reads the same without a session, and
// nothing else.
func TestResolveOps(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		d := newMemDisk(testDiskSize)
		format(t, d)
		m := newFakeManager()
		r := startRig(t, e, m, d)
		defer r.stop()
		p := r.dial(0)
		defer p.close()
		if s := p.open(3); s != transport.StatusOK {
			t.Fatalf("open: %v", s)
		}
		want := pattern(1, 8192)
		p.write(5, 4096, want)
		list := p.regions(transport.Header{})
		if len(list) != 1 || list[0].Chunk != 5 || list[0].Gen != 3 || list[0].Interval != 1 || list[0].Marks != 0 {
			t.Errorf("activity log: %+v", list)
		}
		check := func(p *peer, h transport.Header, gen, interval uint64) {
			t.Helper()
			var table transport.SumTable
			if err := table.Decode(p.want(transport.StatusOK, h, nil).data); err != nil {
				t.Fatal(err)
			}
			if !table.Stored || !table.Logged || table.Gen != gen || table.Interval != interval ||
				table.Present != (transport.Bitmap{6}) || table.Sums[1] != xxhash.Sum64(want[:4096]) ||
				table.Sums[2] != xxhash.Sum64(want[4096:]) {
				t.Errorf("checksum table: %+v", table.Present)
			}
		}
		check(p, groupHeader(transport.OpSums, 5), 3, 1)
		p.want(transport.StatusOK, transport.Header{Op: transport.OpConfirm}, nil)
		stamp := groupHeader(transport.OpStamp, 5)
		p.want(transport.StatusOK, stamp, nil)
		check(p, groupHeader(transport.OpSums, 5), 3, 0)

		q := r.dialAs(0, 0, transport.Peer)
		defer q.close()
		asPeer := func(h transport.Header) transport.Header { h.Interval = uint64(testVolume); return h }
		check(q, asPeer(groupHeader(transport.OpSums, 5)), 3, 0)
		h := asPeer(groupHeader(transport.OpCopy, 5))
		h.Offset, h.Length = 4096, 8192
		if rep := q.want(transport.StatusOK, h, nil); !bytes.Equal(rep.data, want) ||
			transport.VerifySums(rep.data, rep.sums) >= 0 {
			t.Error("the copy differs")
		}
		h.Chunk = 6
		if rep := q.want(transport.StatusOK, h, nil); rep.Flags&transport.FlagHole == 0 {
			t.Error("no hole where nothing is stored")
		}
		if list := q.regions(asPeer(transport.Header{})); len(list) != 1 || list[0].Chunk != 5 {
			t.Errorf("activity log: %+v", list)
		}
		rep := q.want(transport.StatusOK, asPeer(transport.Header{Op: transport.OpTags}), nil)
		var tags []transport.TagEntry
		next, err := transport.DecodeTags(rep.data, func(x *transport.TagEntry) { tags = append(tags, *x) })
		if err != nil || next != 0 || len(tags) != 1 || tags[0] != (transport.TagEntry{Chunk: 5, Gen: 3, Blocks: 2}) {
			t.Errorf("tags: %+v, next %d, %v", tags, next, err)
		}
		q.want(transport.StatusRefused, asPeer(readHeader(5, 4096, 4096)), nil)
		q.want(transport.StatusRefused, transport.Header{Op: transport.OpConfirm}, nil)
		other := cluster.VolumeID(8)
		m.edit(func(m *cluster.Map) {
			v := *m.Volumes[testVolume]
			v.ID = other
			m.Volumes[other] = &v
		})
		unseen := groupHeader(transport.OpSums, 1)
		unseen.Interval = uint64(other)
		eventually(t, "the new volume to be known", func() bool {
			q.send(unseen, nil)
			return q.receive().Status == transport.StatusOK
		})
		unseen = transport.Header{Op: transport.OpALList, Interval: uint64(other)}
		if list := q.regions(unseen); len(list) != 0 {
			t.Errorf("a volume that was never opened has a log: %+v", list)
		}
	})
}

// Goal: a target skips live writes and says so; a device without a role refuses.
func TestTargetSkips(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Pool, m, d)
	defer r.stop()
	p := r.dial(0)
	defer p.close()
	if s := p.open(3); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	block := pattern(2, 4096)
	p.write(0, 0, block)
	m.edit(func(m *cluster.Map) {
		m.PGs[1] = []*cluster.PG{{ID: testPG, Epoch: 2, Replicas: []cluster.DeviceID{1, 99},
			InSync: []cluster.DeviceID{99}, Target: 1, TargetEpoch: 2}}
	})
	h := writeHeader(0, 0, 4096, 0)
	h.Epoch = 2
	for _, op := range []transport.Op{transport.OpWrite, transport.OpTrim, transport.OpZero, transport.OpStamp} {
		h.Op = op
		var data []byte
		if op == transport.OpWrite {
			data = pattern(3, 4096)
		}
		if rep := p.want(transport.StatusOK, h, data); rep.Flags&transport.FlagSkipped == 0 {
			t.Errorf("op %d was not skipped", op)
		}
	}
	p.flush()
	if list := p.regions(transport.Header{}); len(list) != 1 || list[0].Marks == 0 {
		t.Errorf("the entry of a stale copy is not kept: %+v", list)
	}
	rd := readHeader(0, 0, 4096)
	rd.Epoch = 2
	p.want(transport.StatusRefused, rd, nil)
}
