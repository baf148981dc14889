// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/hex"
	"os"
	"strings"
	"testing"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
)

// digest shows the start of a page and the hash of all of it.
func digest(b []byte, n int) string {
	var h [8]byte
	x := xxhash.Sum64(b)
	for i := range h {
		h[i] = byte(x >> (8 * i))
	}
	return hex.EncodeToString(b[:n]) + " " + hex.EncodeToString(h[:])
}

func testSuper(t *testing.T) superblock {
	l, err := newLayout(256 << 20)
	if err != nil {
		t.Fatal(err)
	}
	return superblock{flags: superClean, device: cluster.UUID{1, 2}, cluster: cluster.UUID{3}, seq: 4,
		starts: 5, epoch: 6, errors: 7, certain: 8, startID: 9, epochID: 10, layout: l}
}

func testSums() (s [blocks]uint64) {
	for i := range s {
		s[i] = uint64(i) * 0x0101010101010101
	}
	return s
}

func testPage() chunkPage {
	return chunkPage{slot: 7, bits: span(3, 70), head: header{key: chunkKey{0x11, 0x22, 0x33},
		gen: 0x44, interval: 0x55, pageSeq: 0x67, blocks: 70, state: slotUsed}}
}

// Goal: the bytes on the disk do not change by accident. Each structure is
// encoded, compared with recorded bytes, and decoded again.
func TestGoldenBytes(t *testing.T) {
	b := make([]byte, pageSize)
	got := ""
	for _, c := range []struct {
		name string
		fill func()
		n    int
	}{
		{"superblock", func() { s := testSuper(t); s.encode(b) }, 144},
		{"header page", func() {
			clear(b)
			p := testPage()
			p.head.encode(b[headerSize:])
			sealHeaderPage(b, 0xA1A2, 9, 3)
		}, 128},
		{"chunk page", func() { p, s := testPage(), testSums(); p.encode(b, 0xA1A2, &s) }, 136},
		{"log page", func() { logSample(b) }, 300},
	} {
		c.fill()
		got += c.name + " " + digest(b, c.n) + "\n"
	}
	want, err := os.ReadFile("testdata/golden.txt")
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("the format changed; testdata/golden.txt would be\n%s", got)
	}
}

// logSample is a log page with one record of each kind.
func logSample(b []byte) {
	w := groupWriter{buf: b}
	w.reset(1)
	key := chunkKey{0x11, 0x22, 0x33}
	w.short(recALAdd, uint8(MarkTarget), key)
	w.short(recALRemove, 0, key)
	w.short(recFence, 0, chunkKey{volume: 0x11, chunk: 0x44})
	w.short(recDrop, 0, chunkKey{volume: 0x12, chunk: 0x45})
	putDoubt(w.room(doubtRecord), 0x99)
	w.take(doubtRecord)
	s := testSums()
	w.chunk(&record{flags: chunkFresh, slot: 7, key: key, gen: 0x44, interval: 0x55, bits: span(0, 9),
		mask: span(2, 3)}, &s)
	p := logPage{seq: 300, tail: 290, group: 299, count: 2, start: 5, used: w.used[0]}
	p.seal(b, 0xA1A2)
}

// Goal: decode(encode(x)) = x for each structure.
func TestRoundTrips(t *testing.T) {
	b := make([]byte, pageSize)
	s := testSuper(t)
	s.encode(b)
	var s2 superblock
	if err := s2.decode(b); err != nil || s2 != s {
		t.Errorf("superblock: %+v, %v", s2, err)
	}
	p, sums := testPage(), testSums()
	p.encode(b, 1, &sums)
	var p2 chunkPage
	var sums2 [blocks]uint64
	if !p2.decode(b, 1, 7, &sums2) || p2 != p {
		t.Errorf("chunk page: %+v", p2)
	}
	for i := range sums {
		if p.bits.has(uint32(i)) && sums2[i] != sums[i] || !p.bits.has(uint32(i)) && sums2[i] != 0 {
			t.Fatalf("sum %d", i)
		}
	}
	if p2.decode(b, 2, 7, nil) || p2.decode(b, 1, 8, nil) {
		t.Error("a page of another device or slot was accepted")
	}
	logSample(b)
	var l logPage
	if !l.open(b, 0xA1A2, 300%256, 256) || l.count != 2 || l.tail != 290 {
		t.Errorf("log page: %+v", l)
	}
	var kinds []string
	for rest := b[logHeader : logHeader+int(l.used)]; len(rest) > 0; {
		var r record
		var ok bool
		if rest, ok = r.next(rest); !ok {
			t.Fatal("record does not decode")
		}
		kinds = append(kinds, r.kind.String())
	}
	if got := strings.Join(kinds, ", "); got != "activity-log add, activity-log remove, fence, drop, doubt, chunk" {
		t.Error(got)
	}
}

// Goal: geometry. Metadata takes at most 1 % of devices from 1 GiB on, slots
// are aligned, everything fits, small trial devices work.
func TestLayout(t *testing.T) {
	for _, size := range []int64{64 << 20, 256 << 20, 1 << 30, 4 << 30, 100 << 30, 4 << 40, 20e12} {
		l, err := newLayout(size)
		if err != nil {
			t.Fatal(err)
		}
		data := int64(l.slots) << chunkShift
		if l.size > size || l.dataOff%(1<<chunkShift) != 0 || l.dataAt(l.slots-1)+1<<chunkShift > size {
			t.Errorf("%d: %+v", size, l)
		}
		if lost := size - data; size >= 1<<30 && lost > size/100 {
			t.Errorf("%d: %d bytes (%.2f %%) are not for data", size, lost, 100*float64(lost)/float64(size))
		}
	}
	if _, err := newLayout(1 << 20); err == nil {
		t.Error("1 MiB was accepted")
	}
}

func FuzzSuperblock(f *testing.F) {
	b := make([]byte, pageSize)
	l, _ := newLayout(256 << 20)
	s := superblock{layout: l}
	s.encode(b)
	f.Add(b[:128])
	f.Fuzz(func(t *testing.T, in []byte) {
		b := make([]byte, pageSize)
		copy(b, in)
		for range 2 { // as it is, and with a right checksum
			var s superblock
			if s.decode(b) == nil && (s.layout.slots == 0 || s.layout.size <= s.layout.dataOff) {
				t.Fatalf("nonsense was accepted: %+v", s)
			}
			seal(b)
		}
	})
}

func FuzzLogPage(f *testing.F) {
	b := make([]byte, pageSize)
	logSample(b)
	f.Add(b[:400])
	f.Fuzz(func(t *testing.T, in []byte) {
		b := make([]byte, pageSize)
		copy(b, in)
		for range 2 {
			var p logPage
			if p.open(b, 0xA1A2, uint32(p.seq%256), 256) {
				for rest := b[logHeader : logHeader+int(p.used)]; len(rest) > 0; {
					var r record
					next, ok := r.next(rest)
					if !ok {
						break
					}
					if len(r.sums) != 8*r.mask.count() || len(next) >= len(rest) {
						t.Fatal("a record that does not add up")
					}
					rest = next
				}
			}
			copy(b, []byte{0x42, 0x52, 0x4C, 0x47, 1, 0})
			putU64(b[56:], splitSum(b))
		}
	})
}

func FuzzPages(f *testing.F) {
	b := make([]byte, pageSize)
	p, s := testPage(), testSums()
	p.encode(b, 0xA1A2, &s)
	f.Add(b[:200], uint32(7))
	f.Fuzz(func(t *testing.T, in []byte, slot uint32) {
		b := make([]byte, pageSize)
		copy(b, in)
		for range 2 {
			var p chunkPage
			var sums [blocks]uint64
			if p.decode(b, 0xA1A2, slot, &sums) && (p.slot != slot || p.head.state > slotUsed) {
				t.Fatal("a page of another slot")
			}
			openHeaderPage(b, 0xA1A2, slot)
			var h header
			h.decode(b[headerSize:])
			seal(b)
		}
	})
}

// FuzzRecovery damages a whole device: Open must refuse it or serve, and never
// hand out bytes that were not written there as right.
func FuzzRecovery(f *testing.F) {
	f.Add(uint64(superA+100), uint64(ringOffset+5000), uint64(ringOffset+8192+70), byte(1))
	f.Fuzz(func(t *testing.T, a, b, c uint64, n byte) {
		g := newRig(t, 16<<20, Config{LocalResolve: true, VerifyReads: true})
		g.fence(1, 1)
		for i := range uint64(4) {
			g.must(writeReq(1, 1, 1, i, 0, 32<<10, i+1))
			g.flush(1, 1, i+1)
		}
		for range n % 16 {
			g.core.Idle()
			g.run()
		}
		inLog := false
		for _, at := range []uint64{a, b, c} {
			off := int64(at % uint64(g.core.lay.dataOff))
			g.disk.Corrupt(off)
			inLog = inLog || off >= ringOffset && off < g.core.lay.hdrOff
		}
		core, err := Open(g.disk, Config{LocalResolve: true, VerifyReads: true})
		if err != nil {
			return
		}
		g.core, g.pending, g.replies = core, nil, nil
		if core.Generation(1) != 1 {
			return // the fence was lost with a torn end of the log
		}
		for i := range uint64(4) {
			r := readReq(1, 1, i, 0, 32<<10)
			st := g.do(r)
			// Rot of the log's very end looks like a write that a crash cut off.
			if st != 0 || r.Hole && inLog {
				continue
			}
			exp := make([]byte, 32<<10)
			pattern(exp, i+1)
			if string(r.Data) != string(exp) {
				t.Fatalf("chunk %d: wrong bytes, no error", i)
			}
		}
		if _, err := Inspect(g.disk); err != nil {
			t.Fatalf("inspect: %v", err)
		}
	})
}

func putU64(b []byte, v uint64) {
	for i := range 8 {
		b[i] = byte(v >> (8 * i))
	}
}
