// SPDX-License-Identifier: Apache-2.0

package store

import (
	"encoding/binary"
	"io"
	"math/rand/v2"
	"testing"

	"braid/cluster"
	"braid/server/disk"
	"braid/transport"
)

// hostileImage is a device with a bit of everything: folded chunks, records in the
// log, a freed slot, regions with marks, two volumes, an unclean end.
func hostileImage(t testing.TB) *disk.Mem {
	l, err := layoutWith(enumSize, 64*pageSize)
	if err != nil {
		t.Fatal(err)
	}
	g := newRigWith(t, l, Config{LocalResolve: true})
	g.fence(1, 1)
	g.fence(2, 3)
	for i := range uint64(4) {
		g.must(writeReq(1, 1, 1, i, 0, 16384, i+1))
	}
	g.flush(1, 1, 1)
	g.rest()
	g.must(&Request{Op: OpTrim, Volume: 1, Gen: 1, Interval: 2, Chunk: 3, Length: cluster.ChunkSize})
	g.must(writeReq(2, 3, 1, 0, 4096, 8192, 9))
	g.must(&Request{Op: OpMark, Volume: 1, Gen: 1, Chunk: 9, Marks: MarkTarget})
	g.flush(1, 1, 2)
	g.must(writeReq(1, 1, 3, 0, 0, 4096, 10))
	g.must(&Request{Op: OpFlush, Volume: 1, Gen: 1})
	g.must(writeReq(1, 1, 4, 1, 0, 4096, 11))
	if err := g.disk.Flush(); err != nil {
		t.Fatal(err)
	}
	return g.disk
}

// reseal gives a page a right checksum again, so that what it says is believed.
func reseal(b []byte) {
	switch binary.LittleEndian.Uint32(b) {
	case logMagic, headerMagic:
		putU64(b[56:], splitSum(b))
	default:
		seal(b)
	}
}

// mutate changes the metadata pages of a disk as the fuzzer says: page, offset,
// length and bytes; the pages get right checksums.
func mutate(t testing.TB, d *disk.Mem, pages int64, in []byte) {
	b := alignedBytes(pageSize)
	for len(in) >= 5 {
		page := int64(binary.LittleEndian.Uint16(in)) % pages
		off := int(binary.LittleEndian.Uint16(in[2:])) % pageSize
		n := min(1+int(in[4]%8), len(in)-5, pageSize-off)
		if _, err := d.ReadAt(b, page*pageSize); err != nil {
			t.Fatal(err)
		}
		copy(b[off:], in[5:5+n])
		in = in[5+n:]
		reseal(b)
		if _, err := d.WriteAt(b, page*pageSize); err != nil {
			t.Fatal(err)
		}
	}
}

// exercise uses a store that was opened on such a disk. Any status may come back,
// but everything is answered, and no block shows bytes that its checksum does not fit.
func exercise(t testing.TB, g *rig) {
	gens := map[cluster.VolumeID]cluster.Generation{}
	g.core.Generations(func(v cluster.VolumeID, gen cluster.Generation) { gens[v] = gen })
	for v, gen := range gens {
		for chunk := range uint64(4) {
			r := readReq(v, gen, chunk, 0, 16384)
			if st := g.do(r); st == transport.StatusOK && !r.Hole && string(sumsOf(r.Data)) != string(r.Sums) {
				t.Fatalf("volume %d chunk %d: bytes and checksums differ", v, chunk)
			}
			w := writeReq(v, gen, 7, chunk, 4096, 8192, 5)
			w.FUA = chunk%2 == 0
			g.do(w)
			g.do(&Request{Op: OpTrim, Volume: v, Gen: gen, Interval: 7, Chunk: chunk, Length: cluster.ChunkSize})
			g.do(&Request{Op: OpStamp, Volume: v, Gen: gen, Chunk: chunk, Tag: cluster.Tag{Gen: gen}})
		}
		g.do(&Request{Op: OpALList, Volume: v, Gen: gen})
		g.do(&Request{Op: OpTags, Volume: v, Gen: gen, Length: 100})
		g.do(&Request{Op: OpFlush, Volume: v, Gen: gen, Interval: 7, Drained: true})
	}
	for range 50 {
		if !g.core.Idle() {
			break
		}
		g.run()
	}
	r := &Request{Op: OpScrub, Data: alignedBytes(cluster.ChunkSize), Table: &transport.SumTable{}}
	for range 64 {
		if g.do(r); r.Value == 0 {
			break
		}
	}
	g.do(&Request{Op: OpStop})
}

// FuzzHostileImage changes metadata at will, with right checksums: opening,
// serving, inspecting and checking the device neither crash nor hang.
func FuzzHostileImage(f *testing.F) {
	image := hostileImage(f)
	s, _, err := readSuper(image)
	if err != nil {
		f.Fatal(err)
	}
	pages := s.layout.dataOff / pageSize
	f.Add([]byte{0, 0, 80, 0, 3, 255, 255, 255, 255})
	f.Add([]byte{byte(s.layout.hdrOff / pageSize), 0, 64, 0, 7, 1, 2, 3, 4, 5, 6, 7, 8})
	f.Add([]byte{17, 0, 64, 0, 7, 6, 1, 120, 0, 1, 0, 0, 0})
	f.Fuzz(func(t *testing.T, in []byte) {
		if len(in) < 256 { // a few pages: more says nothing
			tryHostile(t, image, pages, in)
		}
	})
}

func tryHostile(t testing.TB, image *disk.Mem, pages int64, in []byte) (opened bool) {
	d := image.Clone()
	mutate(t, d, pages, in)
	if r, err := Inspect(d); err == nil {
		_ = r.Print(io.Discard, -1)
	}
	_, _ = Check(d, CheckOptions{Data: true})
	c, err := Open(d, Config{LocalResolve: len(in)%2 == 0, VerifyReads: true})
	if err != nil {
		return false
	}
	exercise(t, &rig{t: t, disk: d, core: c, rnd: rand.New(rand.NewPCG(1, 2))})
	return true
}

// Goal: as FuzzHostileImage, with values that hit the fields: small numbers, the
// largest, and what lies elsewhere in the same page.
// Replay of seed N: go test ./server/store -run TestHostileImages -seed N -seeds 1
func TestHostileImages(t *testing.T) {
	image := hostileImage(t)
	s, _, err := readSuper(image)
	if err != nil {
		t.Fatal(err)
	}
	pages := s.layout.dataOff / pageSize
	used := usedPages(t, image, pages)
	opened := 0
	count := seeds() * 25
	for seed := *firstSeed; seed < *firstSeed+count; seed++ {
		replay := &caughtSeed{T: t, seed: seed}
		if tryHostile(replay, image, pages, hostileInput(rand.New(rand.NewPCG(uint64(seed), 5)), used)) {
			opened++
		}
	}
	t.Logf("%d of %d opened", opened, count)
}

// caughtSeed names the seed of what fails.
type caughtSeed struct {
	*testing.T
	seed int
}

func (c *caughtSeed) Fatalf(format string, args ...any) {
	c.T.Helper()
	c.T.Fatalf("seed %d: "+format, append([]any{c.seed}, args...)...)
}

// usedPages are the metadata pages that are not empty.
func usedPages(t testing.TB, d *disk.Mem, pages int64) (used []uint16) {
	b := alignedBytes(pageSize)
	for k := range pages {
		if _, err := d.ReadAt(b, k*pageSize); err != nil {
			t.Fatal(err)
		}
		if binary.LittleEndian.Uint32(b) != 0 {
			used = append(used, uint16(k))
		}
	}
	return used
}

func hostileInput(r *rand.Rand, used []uint16) (in []byte) {
	for range 1 + r.IntN(4) {
		in = binary.LittleEndian.AppendUint16(in, used[r.IntN(len(used))])
		width := []int{1, 2, 4, 8}[r.IntN(4)]
		off := r.IntN([]int{128, 1024, pageSize}[r.IntN(3)]/width) * width
		in = binary.LittleEndian.AppendUint16(in, uint16(off))
		v := []uint64{0, 1, 2, uint64(r.IntN(300)), 1 << 31, ^uint64(0), ^uint64(0) >> 1, r.Uint64()}[r.IntN(8)]
		in = append(in, byte(width-1))
		in = append(in, binary.LittleEndian.AppendUint64(nil, v)[:width]...)
	}
	return in
}
