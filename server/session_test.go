// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"testing"

	"braid/cluster"
	"braid/transport"
	"braid/transport/loop"
)

// Goal: a newer generation ends the older one for good, on its connection, when
// it comes back, and after a restart.
func TestNewGenerationFences(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		d := newMemDisk(testDiskSize)
		format(t, d)
		m := newFakeManager()
		r := startRig(t, e, m, d)
		old, young := r.dial(0), r.dial(0)
		if s := old.open(3); s != transport.StatusOK {
			t.Fatalf("open 3: %v", s)
		}
		want := pattern(1, 4096)
		old.write(0, 0, want)
		fence := transport.OpenRequest{Volume: uint64(testVolume), Generation: 4}
		payload := fence.Encode(make([]byte, transport.OpenRequestSize))
		young.want(transport.StatusOK, transport.Header{Op: transport.OpFence}, payload)
		late := pattern(2, 4096)
		old.want(transport.StatusFenced, writeHeader(0, 0, 4096, 0), late)
		old.want(transport.StatusFenced, readHeader(0, 0, 4096), nil)
		if s := old.open(3); s != transport.StatusFenced {
			t.Errorf("the fenced client opens again: %v", s)
		}
		if s := young.open(4); s != transport.StatusOK {
			t.Fatalf("open 4: %v", s)
		}
		if got := young.read(0, 0, 4096); !bytes.Equal(got, want) {
			t.Error("the fenced client has changed a byte")
		}
		old.close()
		young.close()
		r.kill()

		r = startRig(t, e, m, d.powerLoss(1))
		old = r.dial(0)
		if s := old.open(3); s != transport.StatusFenced {
			t.Errorf("the fenced client opens after a restart: %v", s)
		}
		old.close()
		r.stop()
	})
}

// Goal: a client that connects anew ends its own old session, by link; its other
// links and other volumes go on.
func TestReopenReplacesTheSameLink(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	r := startRig(t, loop.Auto, newFakeManager(), d)
	first, again, other := r.dial(0), r.dial(0), r.dialLink(0, 1)
	for _, p := range []*peer{first, other, again} {
		if s := p.open(1); s != transport.StatusOK {
			t.Fatalf("open: %v", s)
		}
	}
	first.want(transport.StatusNoSession, writeHeader(0, 0, 4096, 0), pattern(1, 4096))
	other.write(0, 0, pattern(1, 4096))
	again.write(0, 4096, pattern(2, 4096))
	again.want(transport.StatusOK, transport.Header{Op: transport.OpClose}, nil)
	again.want(transport.StatusNoSession, readHeader(0, 0, 4096), nil)
	again.want(transport.StatusNoSession, transport.Header{Op: transport.OpClose}, nil)
	for _, p := range []*peer{first, again, other} {
		p.close()
	}
	r.stop()
}

// Goal: each request that makes no sense is refused with the right status, and
// the connection lives on.
func TestRefusals(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	m := newFakeManager()
	r := startRig(t, loop.Auto, m, d)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	block := pattern(1, 4096)
	p.write(0, 0, block)
	with := func(h transport.Header, edit func(*transport.Header)) transport.Header {
		edit(&h)
		return h
	}
	rd, wr := readHeader(0, 0, 4096), writeHeader(0, 0, 4096, 0)
	open := transport.OpenRequest{Volume: uint64(testVolume)}
	for _, c := range []struct {
		name string
		h    transport.Header
		data []byte
		want transport.Status
	}{
		{"unaligned offset", with(rd, func(h *transport.Header) { h.Offset = 512 }), nil, transport.StatusInvalid},
		{"unaligned length", with(rd, func(h *transport.Header) { h.Length = 100 }), nil, transport.StatusInvalid},
		{"no length", with(rd, func(h *transport.Header) { h.Length = 0 }), nil, transport.StatusInvalid},
		{"beyond the chunk", with(rd, func(h *transport.Header) { h.Offset = 1<<20 - 4096; h.Length = 8192 }),
			nil, transport.StatusInvalid},
		{"huge length", with(rd, func(h *transport.Header) { h.Length = 0xfffff000 }), nil, transport.StatusInvalid},
		{"wrapping range", with(rd, func(h *transport.Header) { h.Offset = 0xfffff000; h.Length = 8192 }),
			nil, transport.StatusInvalid},
		{"write without payload", wr, nil, transport.StatusInvalid},
		{"write with another length", with(wr, func(h *transport.Header) { h.Length = 8192 }), block,
			transport.StatusInvalid},
		{"unknown session", with(rd, func(h *transport.Header) { h.Session = 12345 }), nil, transport.StatusNoSession},
		{"an op of servers only", with(rd, func(h *transport.Header) { h.Op = transport.OpLock }), nil,
			transport.StatusRefused},
		{"old epoch", with(rd, func(h *transport.Header) { h.Epoch = 0 }), nil, transport.StatusStaleEpoch},
		{"open without generation", transport.Header{Op: transport.OpOpen},
			open.Encode(make([]byte, transport.OpenRequestSize)), transport.StatusInvalid},
		{"open with garbage", transport.Header{Op: transport.OpOpen}, []byte("garbage"), transport.StatusInvalid},
		{"open without payload", transport.Header{Op: transport.OpOpen}, nil, transport.StatusInvalid},
	} {
		t.Run(c.name, func(t *testing.T) {
			p.t = t
			p.want(c.want, c.h, c.data)
		})
	}
	p.t = t
	for name, h := range map[string]transport.Header{
		"newer epoch":   with(rd, func(h *transport.Header) { h.Epoch = 99 }),
		"unknown group": with(rd, func(h *transport.Header) { h.PG = 77 }),
		"unknown set":   with(rd, func(h *transport.Header) { h.PG = uint32(cluster.MakePGID(3, 0)) }),
	} {
		p.send(h, nil)
		if rep := p.receive(); rep.Status != transport.StatusRetry {
			t.Errorf("%s: %v, want retry", name, rep.Status)
		}
	}
	m.edit(func(next *cluster.Map) { // the device is no longer in sync
		next.PGs[1] = []*cluster.PG{{ID: testPG, Epoch: 2, Replicas: []cluster.DeviceID{1},
			InSync: []cluster.DeviceID{9}}}
	})
	p.want(transport.StatusRefused, with(rd, func(h *transport.Header) { h.Epoch = 2 }), nil)
	p.close()
	r.stop()
}

// Goal: a block that does not match its checksum is refused whole, and what was
// there before stays.
func TestBadSumIsRefused(t *testing.T) {
	d := newMemDisk(testDiskSize)
	format(t, d)
	r := startRig(t, loop.Auto, newFakeManager(), d)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	want := pattern(1, 32<<10)
	p.write(0, 0, want)
	sums := transport.BlockSums(make([]byte, 8*8), want)
	bad := pattern(2, 32<<10)
	copy(bad, want[:4096]) // the first block fits its sum, the others do not
	h := writeHeader(0, 0, len(bad), 0)
	h.ID, h.Session = 999, p.session
	msg := &transport.Msg{Header: h, Sums: sums, Payload: [][]byte{bad}}
	p.loop.Call(func() { p.conn.Send(msg) })
	if rep := p.receive(); rep.Status != transport.StatusBadSum {
		t.Fatalf("answered with %v", rep.Status)
	}
	if got := p.read(0, 0, len(want)); !bytes.Equal(got, want) {
		t.Error("a refused write has changed bytes")
	}
	p.close()
	r.stop()
}
