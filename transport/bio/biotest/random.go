// SPDX-License-Identifier: Apache-2.0

package biotest

import (
	"math/rand"
	"time"

	"braid/transport/bio"
)

// depth is the number of requests that the random tests keep in flight.
const depth = 64

// testConcurrent: 64 lanes, each with a range of its own, run independent
// read-modify-compare chains at once. Nobody sees another's bytes.
func testConcurrent(r *runner) {
	lane := min(r.size/depth/block*block, 1<<20)
	m := newModel(r, lane*depth)
	m.pick = func(rng *rand.Rand, slot int) (uint64, uint64) {
		length := r.up(1 + uint64(rng.Intn(int(min(lane/2, 128<<10)))))
		at := r.down(uint64(rng.Intn(int(lane - length))))
		return uint64(slot)*lane + at, length
	}
	m.run(r.h.Ops)
	m.verify()
}

// testModel: 64 random requests in flight over 16 MiB against a model that is
// changed at Submit, because overlapping requests take effect in that order.
func testModel(r *runner) {
	window := min(r.size, 16<<20)
	m := newModel(r, window)
	m.pick = func(rng *rand.Rand, _ int) (uint64, uint64) {
		length := r.up(1 + uint64(rng.Intn(200_000)))
		if rng.Intn(4) == 0 {
			length = r.up(1 + uint64(rng.Intn(3*block)))
		}
		if rng.Intn(3) > 0 { // aligned more often than not
			length = (length + block - 1) / block * block
			return uint64(rng.Int63n(int64(window-length))) / block * block, length
		}
		return r.down(uint64(rng.Int63n(int64(window - length)))), length
	}
	m.run(r.h.Ops)
	m.verify()
}

// testModelDense: as testModel, within 96 KiB, so that nearly all overlap.
func testModelDense(r *runner) {
	const window = 96 << 10
	m := newModel(r, window)
	m.pick = func(rng *rand.Rand, _ int) (uint64, uint64) {
		length := r.up(1 + uint64(rng.Intn(20_000)))
		return r.down(uint64(rng.Int63n(int64(window - length)))), length
	}
	m.run(r.h.Ops)
	m.verify()
}

// model is the bytes as they are after all submitted requests. While a run is
// going on it is owned by the loop.
type model struct {
	r     *runner
	base  uint64
	bytes []byte
	rng   *rand.Rand
	pick  func(rng *rand.Rand, slot int) (off, length uint64)
	slots [depth]*flight
	left  int // still to submit
	busy  int
	done  chan struct{}
	fault string
	ops   int
}

// flight is a request in flight and, for a read, what it may return.
type flight struct {
	bio.Request
	m    *model
	slot int
	want []byte
	// loose marks bytes of a read that a later write or zero touched while the
	// read was in flight: it may return either.
	loose []bool
	in    bool
}

func newModel(r *runner, window uint64) *model {
	m := &model{r: r, bytes: make([]byte, window), done: make(chan struct{}),
		rng: rand.New(rand.NewSource(r.rng.Int63()))}
	// An odd megabyte, so that the window crosses rows.
	if r.size > window+3<<20 {
		m.base = 3 << 20
	}
	return m
}

func (m *model) run(ops int) {
	m.r.t.Helper()
	m.left = ops
	m.r.h.Loop.Post(func() {
		for slot := range m.slots {
			m.next(slot)
		}
	})
	limit := time.NewTimer(m.r.h.Timeout)
	defer limit.Stop()
	select {
	case <-m.done:
	case <-limit.C:
		m.r.h.Loop.Call(func() {
			for _, f := range m.slots {
				if f != nil {
					m.r.t.Errorf("no completion within %v: %s [%d,+%d)",
						m.r.h.Timeout, f.Op, f.Off, f.Len)
				}
			}
		})
		m.r.t.FailNow()
	}
	if m.fault != "" {
		m.r.t.Fatal(m.fault)
	}
}

// next submits another request in a slot, on the loop.
func (m *model) next(slot int) {
	if m.left == 0 || m.fault != "" {
		if m.busy == 0 {
			close(m.done)
			m.left, m.busy = 0, -1
		}
		return
	}
	m.left--
	m.busy++
	m.ops++
	f := &flight{m: m, slot: slot}
	off, length := m.pick(m.rng, slot)
	f.Off, f.Len, f.Done = m.base+off, length, f
	switch n := m.rng.Intn(100); {
	case n < 45:
		f.Op = bio.Write
	case n < 85:
		f.Op = bio.Read
	case n < 90:
		f.Op = bio.Trim
	case n < 95:
		f.Op = bio.WriteZeroes
		if m.rng.Intn(2) == 0 {
			f.Flags |= bio.NoHole
		}
	case n < 97:
		f.Op = bio.BlockStatus
	default:
		f.Op, f.Off, f.Len = bio.Flush, 0, 0
	}
	if (f.Op == bio.Write || f.Op == bio.Trim || f.Op == bio.WriteZeroes) && m.rng.Intn(16) == 0 {
		f.Flags |= bio.FUA
	}
	m.start(f, off)
}

// start gives f its buffer, applies it to the model and submits it.
func (m *model) start(f *flight, off uint64) {
	if f.Op == bio.Read || f.Op == bio.Write {
		in := f.Off % block
		f.Buf = m.r.h.Pool.Get(int(in + f.Len))
		if f.Buf == nil {
			m.fault = "no buffer: the harness' pool is too small"
			m.finish(f)
			return
		}
		f.Data = f.Buf.B[in : in+f.Len]
	}
	at := m.bytes[off : off+f.Len]
	switch f.Op {
	case bio.Write:
		copy(f.Data, pattern(f.Off, f.Len, byte(m.ops)))
		copy(at, f.Data)
		m.loosen(f)
	case bio.Trim, bio.WriteZeroes:
		clear(at)
		m.loosen(f)
	case bio.Read:
		f.want = append([]byte(nil), at...)
		f.loose = make([]bool, len(at))
	}
	m.slots[f.slot] = f
	f.in = true
	m.r.h.Device.Submit(&f.Request)
	f.in = false
}

// loosen marks what w touches in every read in flight.
func (m *model) loosen(w *flight) {
	for _, f := range m.slots {
		if f == nil || f.Op != bio.Read {
			continue
		}
		lo, hi := max(f.Off, w.Off), min(f.Off+f.Len, w.Off+w.Len)
		for at := lo; at < hi; at++ {
			f.loose[at-f.Off] = true
		}
	}
}

// RequestDone checks a completion and keeps the slot busy.
func (f *flight) RequestDone(*bio.Request) {
	m := f.m
	switch {
	case f.in:
		m.fault = f.Op.String() + " completed inside Submit"
	case m.slots[f.slot] != f:
		m.fault = f.Op.String() + " completed twice"
	case f.Err != nil:
		m.fault = f.Op.String() + " failed: " + f.Err.Error()
	case f.Op == bio.Read:
		for i, b := range f.Data {
			if b != f.want[i] && !f.loose[i] {
				m.r.t.Errorf("read [%d,+%d): at %d: %#02x instead of %#02x",
					f.Off, f.Len, f.Off+uint64(i), b, f.want[i])
				m.fault = "wrong bytes"
				break
			}
		}
	}
	m.slots[f.slot] = nil
	m.finish(f)
}

func (m *model) finish(f *flight) {
	if f.Buf != nil {
		m.r.h.Pool.Release(f.Buf)
		f.Buf = nil
	}
	m.busy--
	m.next(f.slot)
}

// verify compares the whole window.
func (m *model) verify() {
	m.r.t.Helper()
	m.r.same("at the end", m.base, m.r.get(m.base, uint64(len(m.bytes))), m.bytes)
	for b, hole := range m.r.holes(m.base, uint64(len(m.bytes))/block*block) {
		if !hole {
			continue
		}
		for i, x := range m.bytes[b*block : (b+1)*block] {
			if x != 0 {
				m.r.t.Fatalf("block %d is called a hole, byte %d of it is %#02x", b, i, x)
			}
		}
	}
}

// testCrash: what a flush or FUA covered survives; what came later is, block by
// block, either there or not.
func testCrash(r *runner) {
	if r.h.Crash == nil {
		return // a device without durable storage
	}
	const window = 2 << 20
	for round := range 3 {
		flushed := pattern(0, window, byte(10+round))
		r.put(0, flushed, 0)
		r.do(command(bio.Trim, 128<<10, 64<<10, 0))
		clear(flushed[128<<10 : 192<<10])
		r.do(command(bio.Flush, 0, 0, 0))
		fua := pattern(512<<10, 64<<10, byte(20+round))
		r.put(512<<10, fua, bio.FUA)
		copy(flushed[512<<10:], fua)
		late := pattern(1<<20, 64<<10, byte(30+round))
		r.put(1<<20, late, 0)
		r.h.Device = r.h.Crash()
		got := r.get(0, window)
		for b := 0; b < window; b += block {
			isLate := b >= 1<<20 && b < 1<<20+64<<10
			if isLate && string(got[b:b+block]) == string(late[b-1<<20:b-1<<20+block]) {
				continue
			}
			r.same("after the crash", uint64(b), got[b:b+block], flushed[b:b+block])
		}
	}
}
