// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"syscall"
)

const sector = 4096

// Mem is a disk in memory for tests, with a volatile write cache.
//
// Its fault model: a write is in the cache when WriteAt returns; Flush makes
// durable what was in the cache when it began. A power loss (Crash) leaves of
// each 4 KiB sector the durable version or any version that was cached since,
// drawn independently; one sector may in addition be torn, at 512-byte grain,
// or hold garbage. Writes that were under way count as cached.
type Mem struct {
	// mu guards everything; it is a leaf.
	mu      sync.Mutex
	size    int64
	durable map[int64][]byte // by sector number; a slice is never changed in place
	view    map[int64][]byte
	cached  []MemWrite
	faults  []Fault
	// Counters of what completed.
	Reads, Writes, Flushes, Discards int
}

// MemWrite is a write that is not durable.
type MemWrite struct {
	Off  int64
	Data []byte
}

// Fault makes operations fail. Zero fields match everything.
type Fault struct {
	Op       string // "read", "write", "flush", "discard"
	Off, Len int64  // overlap with this range; Len 0: anywhere
	After    int    // lets so many pass first
	Times    int    // then hits so many; 0: for ever
	Err      error  // nil: EIO
	hits     int
}

// NewMem makes an empty disk.
func NewMem(size int64) *Mem {
	return &Mem{size: size, durable: map[int64][]byte{}, view: map[int64][]byte{}}
}

// Fail adds a fault; Heal removes all.
func (m *Mem) Fail(f Fault) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = append(m.faults, f)
}

// Heal removes all faults.
func (m *Mem) Heal() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.faults = nil
}

func (m *Mem) fault(op string, off, n int64) error {
	for i := range m.faults {
		f := &m.faults[i]
		if f.Op != "" && f.Op != op || f.Len != 0 && (off >= f.Off+f.Len || off+n <= f.Off) {
			continue
		}
		f.hits++
		if f.hits <= f.After || f.Times != 0 && f.hits > f.After+f.Times {
			continue
		}
		if f.Err != nil {
			return f.Err
		}
		return syscall.EIO
	}
	return nil
}

func (m *Mem) check(op string, off, n int64) error {
	if off%sector != 0 || n%sector != 0 || off < 0 || off+n > m.size {
		return fmt.Errorf("mem disk: %s of %d bytes at %d: %w", op, n, off, syscall.EINVAL)
	}
	return m.fault(op, off, n)
}

// Size in bytes.
func (m *Mem) Size() int64 { return m.size }

// FD is -1: there is none.
func (m *Mem) FD() int { return -1 }

// Close does nothing; the contents stay.
func (m *Mem) Close() error { return nil }

// ReadAt reads through the cache.
func (m *Mem) ReadAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("read", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.Reads++
	for o := 0; o < len(p); o += sector {
		if b := m.view[(off+int64(o))/sector]; b != nil {
			copy(p[o:o+sector], b)
		} else {
			clear(p[o : o+sector])
		}
	}
	return len(p), nil
}

// WriteAt writes to the cache.
func (m *Mem) WriteAt(p []byte, off int64) (int, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("write", off, int64(len(p))); err != nil {
		return 0, err
	}
	m.Writes++
	w := MemWrite{Off: off, Data: append([]byte(nil), p...)}
	m.cached = append(m.cached, w)
	w.apply(m.view)
	return len(p), nil
}

func (w *MemWrite) apply(to map[int64][]byte) {
	for o := 0; o < len(w.Data); o += sector {
		to[(w.Off+int64(o))/sector] = w.Data[o : o+sector]
	}
}

// Mark is the state of the cache now: what a flush that begins now covers.
func (m *Mem) Mark() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.cached)
}

// FlushTo completes a flush that began at mark.
func (m *Mem) FlushTo(mark int) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushTo(mark)
}

func (m *Mem) flushTo(mark int) error {
	if err := m.fault("flush", 0, 0); err != nil {
		return err
	}
	m.Flushes++
	for i := range m.cached[:mark] {
		m.cached[i].apply(m.durable)
	}
	m.cached = append([]MemWrite(nil), m.cached[mark:]...)
	return nil
}

// Flush makes the cache durable.
func (m *Mem) Flush() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.flushTo(len(m.cached))
}

// Discard leaves garbage, as a disk may.
func (m *Mem) Discard(off, n int64) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if err := m.check("discard", off, n); err != nil {
		return err
	}
	m.Discards++
	w := MemWrite{Off: off, Data: make([]byte, n)}
	for i := range w.Data {
		w.Data[i] = 0xD5
	}
	m.cached = append(m.cached, w)
	w.apply(m.view)
	return nil
}

// Corrupt changes a byte of what is stored, cached or not: rot.
func (m *Mem) Corrupt(off int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := off / sector
	for _, at := range []map[int64][]byte{m.view, m.durable} {
		b := append([]byte(nil), at[n]...)
		if len(b) == 0 {
			b = make([]byte, sector)
		}
		b[off%sector] ^= 0x40
		at[n] = b
	}
}

// Clone is an independent disk with the same state and no faults.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMem(m.size)
	for k, v := range m.durable {
		c.durable[k] = v
	}
	for k, v := range m.view {
		c.view[k] = v
	}
	c.cached = append(c.cached, m.cached...)
	return c
}

// Crash returns one disk that a power loss now may leave; m stays as it is.
// inflight are writes that have begun and not returned.
func (m *Mem) Crash(r *rand.Rand, inflight []MemWrite) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := NewMem(m.size)
	for k, v := range m.durable {
		c.durable[k] = v
	}
	versions := map[int64][][]byte{}
	var order []int64
	add := func(ws []MemWrite) {
		for _, w := range ws {
			for o := 0; o < len(w.Data); o += sector {
				k := (w.Off + int64(o)) / sector
				if versions[k] == nil {
					order = append(order, k)
				}
				versions[k] = append(versions[k], w.Data[o:o+sector])
			}
		}
	}
	add(m.cached)
	add(inflight)
	// Some crashes keep most of the cache, some lose most of it.
	keep := r.IntN(5)
	for _, k := range order {
		vs := versions[k]
		if r.IntN(4) < keep {
			c.durable[k] = vs[r.IntN(len(vs))]
			if keep == 4 && r.IntN(8) != 0 {
				c.durable[k] = vs[len(vs)-1]
			}
		}
	}
	if len(order) > 0 && r.IntN(2) == 0 {
		k := order[r.IntN(len(order))]
		c.durable[k] = tear(r, c.durable[k], versions[k][r.IntN(len(versions[k]))])
	}
	for k, v := range c.durable {
		c.view[k] = v
	}
	return c
}

// tear mixes two versions of a sector, or makes garbage of it.
func tear(r *rand.Rand, old, new []byte) []byte {
	b := make([]byte, sector)
	copy(b, old)
	if r.IntN(3) == 0 {
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	for o := 0; o < sector; o += 512 {
		if r.IntN(2) == 0 {
			copy(b[o:o+512], new[o:])
		}
	}
	return b
}

// Load fills the disk from r, durable (test backings made from files).
func (m *Mem) Load(src io.ReaderAt) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	for k := int64(0); k < m.size/sector; k++ {
		b := make([]byte, sector)
		if _, err := src.ReadAt(b, k*sector); err != nil {
			return fmt.Errorf("mem disk: load sector %d: %w", k, err)
		}
		m.durable[k], m.view[k] = b, b
	}
	return nil
}
