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
	suspects map[uint64]uint8 // what an older session left in the activity log: marks by chunk
	torn     map[uint64]bool  // blocks, by key
	target   map[uint64]bool  // chunks that it skips, as a resync target
	stamps   int
}

func newFakeDevice(id cluster.DeviceID) *fakeDevice {
	return &fakeDevice{id: id, inc: 1000 + uint64(id), up: true, current: map[uint64][]byte{},
		durable: map[uint64][]byte{}, al: map[uint64]uint64{},
		suspects: map[uint64]uint8{}, torn: map[uint64]bool{}, target: map[uint64]bool{}}
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
	case transport.OpRead, transport.OpCopy:
		return d.read(h), nil
	case transport.OpConfirm, transport.OpMend:
		return d.reply(h, transport.StatusOK), nil
	case transport.OpALList:
		return d.list(h), nil
	case transport.OpSums:
		return d.sums(h), nil
	case transport.OpStamp:
		return d.stamp(h), nil
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

// list tells one entry at a time.
func (d *fakeDevice) list(h transport.Header) fakeReply {
	r := d.reply(h, transport.StatusOK)
	chunks := slices.Sorted(maps.Keys(d.suspects))
	at, next := int(h.Chunk), uint64(0)
	if at+1 < len(chunks) {
		next = uint64(at + 1)
	}
	r.payload = make([]byte, 0, transport.ListHeadSize+transport.RegionSize)
	if at < len(chunks) {
		region := transport.Region{Chunk: chunks[at], Gen: 2, Marks: markSuspect | d.suspects[chunks[at]]}
		r.payload = region.Append(transport.BeginList(r.payload, next, 1))
	} else {
		r.payload = transport.BeginList(r.payload, 0, 0)
	}
	r.h.Payload = uint32(len(r.payload))
	return r
}

func (d *fakeDevice) sums(h transport.Header) fakeReply {
	r := d.reply(h, transport.StatusOK)
	var t transport.SumTable
	for b := range uint64(cluster.BlocksPerChunk) {
		key := h.Chunk*cluster.BlocksPerChunk + b
		if data := d.current[key]; data != nil {
			t.Stored = true
			t.Present.Set(int(b))
			t.Sums[b] = hashBlock(data)
			if d.torn[key] {
				t.Torn.Set(int(b))
			}
		}
	}
	t.Marks = d.suspects[h.Chunk]
	r.payload = t.Encode(make([]byte, transport.SumTableSize))
	r.h.Payload = transport.SumTableSize
	return r
}

// stamp takes a region over from the older session: the next flush may retire it.
func (d *fakeDevice) stamp(h transport.Header) fakeReply {
	d.stamps++
	delete(d.suspects, h.Chunk)
	for b := range uint64(cluster.BlocksPerChunk) {
		delete(d.torn, h.Chunk*cluster.BlocksPerChunk+b)
	}
	if d.alCap == 0 || len(d.al) < d.alCap {
		d.al[h.Chunk] = max(d.al[h.Chunk], h.Interval)
	}
	d.dirty++
	return d.reply(h, transport.StatusOK)
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
	if d.target[h.Chunk] {
		r := d.reply(h, transport.StatusOK)
		r.h.Flags |= transport.FlagSkipped
		return r, nil
	}
	if _, logged := d.al[h.Chunk]; !logged && d.alCap > 0 && len(d.al) >= d.alCap {
		return d.reply(h, transport.StatusLogFull), nil
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
