// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
)

const sectorSize = 4096

type sector = [sectorSize]byte

// cachedWrite is one sector's version in the cache.
type cachedWrite struct {
	at   int32 // sector number
	data *sector
}

// Disk is a disk with a volatile cache. See the package comment for its fault
// model. It blocks nothing: the world decides when an operation ends.
type Disk struct {
	w       *World
	id      uint32
	durable []*sector // nil: zeroes
	view    []*sector // what reads see
	cached  []cachedWrite
	base    int64 // writes that were cached before cached[0]

	through  bool // no volatile cache
	lies     int  // so many flushes do nothing
	lied     int  // how many did
	stalled  int64
	failRead []span
	failNext diskFault
	astray   int64   // where the next write of data lands instead; 0: where it belongs
	oneBlock bool    // only a write of one block goes there
	wrong    []int32 // sectors that such a write has spoilt, and nobody has mended
	righted  []int32 // of them, those that were written again, and not flushed yet
	failOpen int     // after so many writes of an Open the process dies; 0: never
}

type span struct{ off, end int64 }

// diskFault is what the next operation of a kind does.
type diskFault struct{ write, flush bool }

func newDisk(w *World, id uint32, size int64) *Disk {
	n := size / sectorSize
	return &Disk{w: w, id: id, durable: make([]*sector, n), view: make([]*sector, n)}
}

// Size, ReadAt, WriteAt and Flush make a store.Disk of it: for what is done
// before serving.
func (d *Disk) Size() int64 { return int64(len(d.view)) * sectorSize }

// ReadAt reads through the cache.
func (d *Disk) ReadAt(p []byte, off int64) (int, error) {
	if err := d.readable(off, int64(len(p))); err != nil {
		return 0, err
	}
	d.read(p, off)
	return len(p), nil
}

func (d *Disk) readable(off, n int64) error {
	if off%sectorSize != 0 || n%sectorSize != 0 || off < 0 || off+n > d.Size() {
		return fmt.Errorf("read of %d bytes at %d: %w", n, off, syscall.EINVAL)
	}
	for _, f := range d.failRead {
		if off < f.end && f.off < off+n {
			return syscall.EIO
		}
	}
	return nil
}

func (d *Disk) read(p []byte, off int64) {
	for o := 0; o < len(p); o += sectorSize {
		if s := d.view[(off+int64(o))/sectorSize]; s != nil {
			copy(p[o:], s[:])
		} else {
			clear(p[o : o+sectorSize])
		}
	}
}

var errKilled = errors.New("the process died")

// WriteAt writes to the cache.
func (d *Disk) WriteAt(p []byte, off int64) (int, error) {
	if off%sectorSize != 0 || len(p)%sectorSize != 0 || off < 0 || off+int64(len(p)) > d.Size() {
		return 0, fmt.Errorf("write of %d bytes at %d: %w", len(p), off, syscall.EINVAL)
	}
	if d.failOpen > 0 {
		if d.failOpen--; d.failOpen == 0 {
			return 0, errKilled
		}
	}
	d.write(p, off)
	return len(p), nil
}

func (d *Disk) write(p []byte, off int64) {
	for o := 0; o < len(p); o += sectorSize {
		d.put(int32((off+int64(o))/sectorSize), (*sector)(slices.Clone(p[o:o+sectorSize])))
	}
}

func (d *Disk) put(at int32, s *sector) {
	d.view[at] = s
	if d.through {
		d.durable[at] = s
		d.wrong = slices.DeleteFunc(d.wrong, func(i int32) bool { return i == at })
		return
	}
	if slices.Contains(d.wrong, at) {
		d.righted = append(d.righted, at)
	}
	d.cached = append(d.cached, cachedWrite{at, s})
}

// Flush makes the cache durable.
func (d *Disk) Flush() error { return d.flushTo(d.mark()) }

// mark is the state of the cache now: what a flush that begins now covers.
func (d *Disk) mark() int64 { return d.base + int64(len(d.cached)) }

func (d *Disk) flushTo(mark int64) error {
	n := int(mark - d.base)
	if n <= 0 {
		return nil
	}
	if d.lies > 0 {
		d.lies--
		d.lied++
		d.w.mark("flush lied")
		return nil
	}
	if d.failNext.flush {
		d.failNext.flush = false
		d.forget(n)
		return syscall.EIO
	}
	for _, c := range d.cached[:n] {
		d.durable[c.at] = c.data
		if slices.Contains(d.righted, c.at) {
			is := func(at int32) bool { return at == c.at }
			d.wrong, d.righted = slices.DeleteFunc(d.wrong, is), slices.DeleteFunc(d.righted, is)
		}
	}
	d.cached = append([]cachedWrite(nil), d.cached[n:]...)
	d.base = mark
	return nil
}

// forget is a failed flush: of the first n cached writes some are durable and
// the others gone, and the disk does not know of either any more.
func (d *Disk) forget(n int) {
	for _, c := range d.cached[:n] {
		if d.w.rng.IntN(2) == 0 {
			d.durable[c.at] = c.data
		}
	}
	d.cached = append([]cachedWrite(nil), d.cached[n:]...)
	d.base += int64(n)
	copy(d.view, d.durable)
	for _, c := range d.cached {
		d.view[c.at] = c.data
	}
}

// partly is the end of a write that was under way when its process died.
func (d *Disk) partly(rng *rand.Rand, p []byte, off int64) {
	if d.w.cfg.Calm {
		return
	}
	keep := rng.IntN(3)
	for o := 0; o < len(p); o += sectorSize {
		if keep == 0 || keep == 1 && rng.IntN(2) == 0 {
			d.write(p[o:o+sectorSize], off+int64(o))
		}
	}
}

// powerLoss draws what is left. flying has been added to the cache before.
func (d *Disk) powerLoss(rng *rand.Rand) {
	d.righted = nil
	if d.w.cfg.Calm { // all of the cache is gone
		d.base, d.cached = 0, nil
		copy(d.view, d.durable)
		return
	}
	versions := map[int32][]*sector{}
	var order []int32
	for _, c := range d.cached {
		if versions[c.at] == nil {
			order = append(order, c.at)
		}
		versions[c.at] = append(versions[c.at], c.data)
	}
	keep := rng.IntN(5) // some crashes keep most of the cache, some lose most of it
	for _, at := range order {
		v := versions[at]
		if rng.IntN(4) >= keep {
			continue
		}
		d.durable[at] = v[rng.IntN(len(v))]
		if keep == 4 && rng.IntN(8) != 0 {
			d.durable[at] = v[len(v)-1]
		}
	}
	if len(order) > 0 && rng.IntN(2) == 0 {
		at := order[rng.IntN(len(order))]
		v := versions[at]
		d.durable[at] = tear(rng, d.durable[at], v[rng.IntN(len(v))])
		d.w.mark("torn sector")
	}
	d.base, d.cached = 0, nil
	copy(d.view, d.durable)
}

// tear mixes two versions of a sector, or makes garbage of it.
func tear(rng *rand.Rand, old, young *sector) *sector {
	s := new(sector)
	if old != nil {
		*s = *old
	}
	if rng.IntN(4) == 0 {
		for i := range s {
			s[i] = byte(rng.Uint32())
		}
		return s
	}
	for o := 0; o < sectorSize; o += 512 {
		if rng.IntN(2) == 0 {
			copy(s[o:o+512], young[o:])
		}
	}
	return s
}

// clone is an independent disk with the same state and no faults.
func (d *Disk) clone() *Disk {
	return &Disk{w: d.w, id: d.id, durable: slices.Clone(d.durable), view: slices.Clone(d.view),
		cached: slices.Clone(d.cached), base: d.base, through: d.through}
}
