// SPDX-License-Identifier: Apache-2.0

package core

import (
	"bytes"
	"fmt"
	"maps"
	"slices"

	"braid/cluster"
	"braid/transport"
)

// fakeDevice is what a device does with frames, in memory. Fault model: current
// is what reads see, durable what survives a power loss; in between lies a
// volatile cache, of which a power loss keeps any subset of blocks. Its activity
// log holds alCap chunks; only a drained flush empties it.
type fakeDevice struct {
	id       cluster.DeviceID
	inc      uint64
	up       bool
	current  map[uint64][]byte // by chunk*256+block; absent: hole
	durable  map[uint64][]byte
	flushedI uint64 // highest interval that a drained flush covered
	dirty    int    // writes since the last flush
	al       map[uint64]uint64
	alCap    int
	silent   bool // it does not tell its pressure
	chunks   int  // how many chunks it has room for; 0: any
	flushes  int
}

func newFakeDevice(id cluster.DeviceID) *fakeDevice {
	return &fakeDevice{id: id, inc: 1000 + uint64(id), up: true, current: map[uint64][]byte{},
		durable: map[uint64][]byte{}, al: map[uint64]uint64{}}
}

// fakeReply is a reply on its way back.
type fakeReply struct {
	h       transport.Header
	sums    []byte
	payload []byte
}

func (d *fakeDevice) pressure() uint32 {
	if d.alCap == 0 || d.silent {
		return 0
	}
	return uint32(len(d.al) * 1000 / d.alCap)
}

func (d *fakeDevice) reply(h transport.Header, s transport.Status) fakeReply {
	r := h
	r.Flags |= transport.FlagReply
	r.Status, r.Interval, r.Offset = s, d.inc, d.pressure()
	r.Payload, r.Sums = 0, 0
	return fakeReply{h: r}
}

// execute serves one frame. An error is a violation by the client.
func (d *fakeDevice) execute(f *wireFrame) (fakeReply, error) {
	h := f.h
	switch h.Op {
	case transport.OpRead:
		return d.read(h), nil
	case transport.OpStatus:
		r := d.reply(h, transport.StatusOK)
		r.payload = make([]byte, bitmapSize)
		for b := range uint64(cluster.BlocksPerChunk) {
			if d.current[h.Chunk*cluster.BlocksPerChunk+b] != nil {
				r.payload[b/8] |= 1 << (b % 8)
			}
		}
		r.h.Payload = bitmapSize
		return r, nil
	case transport.OpFlush:
		d.flush(h.Interval)
		return d.reply(h, transport.StatusOK), nil
	}
	return d.write(h, f)
}

func (d *fakeDevice) read(h transport.Header) fakeReply {
	r := d.reply(h, transport.StatusOK)
	payload := make([]byte, h.Length)
	hole := true
	for off := uint32(0); off < h.Length; off += cluster.BlockSize {
		if b := d.current[d.key(h, off)]; b != nil {
			copy(payload[off:], b)
			hole = false
		}
	}
	if hole {
		r.h.Flags |= transport.FlagHole
		return r
	}
	r.payload = payload
	r.sums = make([]byte, sumsOf(h.Length))
	transport.BlockSums(r.sums, payload)
	r.h.Payload, r.h.Sums = h.Length, uint16(len(r.sums)/8)
	return r
}

func (d *fakeDevice) key(h transport.Header, off uint32) uint64 {
	return h.Chunk*cluster.BlocksPerChunk + uint64((h.Offset+off)/cluster.BlockSize)
}

func (d *fakeDevice) write(h transport.Header, f *wireFrame) (fakeReply, error) {
	if h.Length == 0 || h.Length%cluster.BlockSize != 0 || h.Offset%cluster.BlockSize != 0 ||
		h.Offset+h.Length > cluster.ChunkSize {
		return fakeReply{}, fmt.Errorf("device %d: malformed %+v", d.id, h)
	}
	if h.Interval <= d.flushedI {
		return fakeReply{}, fmt.Errorf("device %d: a write of interval %d after flush %d (invariant 7)",
			d.id, h.Interval, d.flushedI)
	}
	if h.Op == transport.OpWrite && (len(f.payload) != int(h.Length) ||
		len(f.sums) != sumsOf(h.Length) || transport.VerifySums(f.payload, f.sums) >= 0) {
		return fakeReply{}, fmt.Errorf("device %d: bytes changed before they were sent (rule 22): %+v", d.id, h)
	}
	if _, logged := d.al[h.Chunk]; !logged && d.alCap > 0 && len(d.al) >= d.alCap {
		return d.reply(h, transport.StatusRetry), nil
	}
	if h.Op == transport.OpWrite && d.chunks > 0 && !d.roomFor(h.Chunk) {
		return d.reply(h, transport.StatusNoSpace), nil
	}
	d.al[h.Chunk] = max(d.al[h.Chunk], h.Interval)
	d.dirty++
	for off := uint32(0); off < h.Length; off += cluster.BlockSize {
		if h.Op == transport.OpWrite {
			d.current[d.key(h, off)] = slices.Clone(f.payload[off : off+cluster.BlockSize])
		} else {
			delete(d.current, d.key(h, off))
		}
	}
	if h.Flags&transport.FlagFUA != 0 {
		for off := uint32(0); off < h.Length; off += cluster.BlockSize {
			d.persist(d.key(h, off))
		}
	}
	return d.reply(h, transport.StatusOK), nil
}

func (d *fakeDevice) roomFor(chunk uint64) bool {
	have := map[uint64]bool{}
	for k := range d.current {
		have[k/cluster.BlocksPerChunk] = true
	}
	return have[chunk] || len(have) < d.chunks
}

func (d *fakeDevice) persist(key uint64) {
	if b := d.current[key]; b != nil {
		d.durable[key] = b
	} else {
		delete(d.durable, key)
	}
}

func (d *fakeDevice) flush(interval uint64) {
	d.durable = maps.Clone(d.current)
	d.flushedI = max(d.flushedI, interval)
	d.dirty = 0
	d.flushes++
	for chunk, last := range d.al {
		if last <= interval {
			delete(d.al, chunk)
		}
	}
}

// powerLoss keeps any subset of what was not flushed.
func (d *fakeDevice) powerLoss(coin func() bool) {
	keys := map[uint64]bool{}
	for k := range d.current {
		keys[k] = true
	}
	for k := range d.durable {
		keys[k] = true
	}
	for _, k := range slices.Sorted(maps.Keys(keys)) {
		if !bytes.Equal(d.current[k], d.durable[k]) && coin() {
			if b := d.durable[k]; b != nil {
				d.current[k] = b
			} else {
				delete(d.current, k)
			}
		}
	}
	d.durable = maps.Clone(d.current)
	d.inc += 100
	d.dirty = 0
}
