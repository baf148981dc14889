// SPDX-License-Identifier: Apache-2.0

package biotest

import (
	"fmt"
	"math/rand"
	"os"
	"strconv"
	"testing"
	"time"

	"braid/transport/bio"
	"braid/transport/buf"
	"braid/transport/loop"
)

// Device is what is tested. Its methods are called on the loop.
type Device interface {
	Submit(*bio.Request)
	Size() uint64
	BlockSize() int
	ReadOnly() bool
}

// Harness is one device with what it needs to run.
type Harness struct {
	Device Device
	Loop   *loop.Loop // running
	// Pool gives the buffers of requests; it must hold Consumers() beyond what the
	// device itself takes.
	Pool *buf.Pool
	// MaxLen is the longest read or write; 1 MiB when 0.
	MaxLen uint64
	// Align is the granularity of Off and Len the device accepts; 1 when 0.
	Align uint64
	// Ops scales the random tests: operations per test; 2000 when 0.
	Ops int
	// Timeout is how long a batch may take before the test fails; 60 s when 0.
	Timeout time.Duration
	// Crash, when set, loses all that is not durable and returns the recovered
	// device. The old device is not used again.
	Crash func() Device
	// Rest, when set, reports what is left over when no request is outstanding.
	Rest func() error
	// Close ends the device. It is called at the end of each subtest.
	Close func()
}

// Consumers is what a harness' pool must hold for the suite.
func Consumers() []buf.Consumer {
	return []buf.Consumer{
		{Name: "biotest small", Size: 8 << 10, Count: depth},
		{Name: "biotest medium", Size: 64 << 10, Count: depth},
		{Name: "biotest large", Size: 256 << 10, Count: depth},
		{Name: "biotest largest", Size: 1 << 20, Count: 8},
	}
}

// Factory makes a fresh harness.
type Factory func(t *testing.T) Harness

// Run runs the whole suite.
func Run(t *testing.T, factory Factory) {
	tests := []struct {
		name string
		run  func(*runner)
	}{
		{"Fresh", testFresh},
		{"ReadWrite", testReadWrite},
		{"OddOffsets", testOddOffsets},
		{"Boundary", testBoundary},
		{"OverlapOrder", testOverlapOrder},
		{"ReadAfterSubmittedWrite", testReadAfterSubmittedWrite},
		{"FlushFUA", testFlushFUA},
		{"TrimReadsZero", testTrim},
		{"WriteZeroes", testWriteZeroes},
		{"Cache", testCache},
		{"BlockStatus", testBlockStatus},
		{"Concurrent", testConcurrent},
		{"Model", testModel},
		{"ModelDense", testModelDense},
		{"Crash", testCrash},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			r := newRunner(t, factory(t))
			defer r.finish()
			test.run(r)
		})
	}
}

// runner drives one harness from the test's goroutine.
type runner struct {
	t      *testing.T
	h      Harness
	seed   int64
	rng    *rand.Rand
	size   uint64
	baseMB int // buffers outstanding before the test
}

func newRunner(t *testing.T, h Harness) *runner {
	if h.MaxLen == 0 {
		h.MaxLen = 1 << 20
	}
	if h.Align == 0 {
		h.Align = 1
	}
	if h.Ops == 0 {
		h.Ops = 2000
	}
	if testing.Short() {
		h.Ops = min(h.Ops, 200)
	}
	if h.Timeout == 0 {
		h.Timeout = 60 * time.Second
	}
	seed := time.Now().UnixNano()
	if s := os.Getenv("BIOTEST_SEED"); s != "" {
		if n, err := strconv.ParseInt(s, 10, 64); err == nil {
			seed = n
		}
	}
	t.Logf("seed %d; replay: BIOTEST_SEED=%d go test -run '^%s$'", seed, seed, t.Name())
	r := &runner{t: t, h: h, seed: seed, rng: rand.New(rand.NewSource(seed))}
	r.baseMB = h.Pool.Outstanding()
	h.Loop.Call(func() { r.size = h.Device.Size() })
	if r.size < 4<<20 {
		t.Fatalf("the suite needs a device of at least 4 MiB, not %d bytes", r.size)
	}
	return r
}

// finish checks that nothing is left behind and closes the device.
func (r *runner) finish() {
	if !r.t.Failed() && r.h.Rest != nil {
		if err := r.h.Rest(); err != nil {
			r.t.Errorf("at rest: %v", err)
		}
	}
	if r.h.Close != nil {
		r.h.Close()
	}
	// After Close a device may hold nothing: not a late replica's reference either.
	if n := r.h.Pool.Outstanding(); !r.t.Failed() && n > r.baseMB {
		r.t.Errorf("%d buffers outstanding after close, %d before the test", n, r.baseMB)
	}
}

// op is one request and what became of it.
type op struct {
	bio.Request
	set       *batch
	completed int
	inSubmit  bool
}

// batch is a set of requests submitted in order, in one turn of the loop.
type batch struct {
	r    *runner
	left int
	done chan struct{}
}

// RequestDone counts a completion.
func (o *op) RequestDone(*bio.Request) {
	o.completed++
	if o.inSubmit {
		o.set.r.t.Errorf("%s completed inside Submit", o)
	}
	if o.completed > 1 {
		o.set.r.t.Errorf("%s completed %d times", o, o.completed)
		return
	}
	if o.set.left--; o.set.left == 0 {
		close(o.set.done)
	}
}

func (o *op) String() string {
	return fmt.Sprintf("%s flags %#x [%d,+%d)", o.Op, uint8(o.Flags), o.Off, o.Len)
}

// buffer attaches a pooled buffer, placed so that block boundaries of the
// device are block boundaries in memory.
func (r *runner) buffer(o *op) {
	in := o.Off % buf.Align
	b := r.h.Pool.Get(int(in + o.Len))
	if b == nil {
		r.t.Fatalf("no buffer of %d bytes: the harness' pool is too small", in+o.Len)
	}
	o.Buf, o.Data = b, b.B[in:in+o.Len]
}

func (r *runner) read(off, length uint64) *op {
	o := &op{Request: bio.Request{Op: bio.Read, Off: off, Len: length}}
	r.buffer(o)
	for i := range o.Data {
		o.Data[i] = 0xEE // a device that forgets to fill shows
	}
	return o
}

func (r *runner) write(off uint64, bytes []byte, flags bio.Flags) *op {
	o := &op{Request: bio.Request{Op: bio.Write, Off: off, Len: uint64(len(bytes)), Flags: flags}}
	r.buffer(o)
	copy(o.Data, bytes)
	return o
}

func command(kind bio.Op, off, length uint64, flags bio.Flags) *op {
	return &op{Request: bio.Request{Op: kind, Off: off, Len: length, Flags: flags}}
}

// do submits all at once, in order, waits for all, and fails on any error.
func (r *runner) do(ops ...*op) {
	r.t.Helper()
	r.try(ops...)
	for _, o := range ops {
		if o.Err != nil {
			r.t.Fatalf("%s: %v", o, o.Err)
		}
	}
}

// try is do without a verdict on errors.
func (r *runner) try(ops ...*op) {
	r.t.Helper()
	set := &batch{r: r, left: len(ops), done: make(chan struct{})}
	r.h.Loop.Post(func() {
		for _, o := range ops {
			o.set, o.Done = set, o
			o.inSubmit = true
			r.h.Device.Submit(&o.Request)
			o.inSubmit = false
		}
	})
	r.wait(set, ops)
}

func (r *runner) wait(set *batch, ops []*op) {
	r.t.Helper()
	limit := time.NewTimer(r.h.Timeout)
	defer limit.Stop()
	select {
	case <-set.done:
	case <-limit.C:
		for _, o := range ops {
			if o.completed == 0 {
				r.t.Errorf("no completion within %v: %s", r.h.Timeout, o)
			}
		}
		r.t.FailNow()
	}
}

// release gives the buffers of ops back.
func (r *runner) release(ops ...*op) {
	for _, o := range ops {
		if o.Buf != nil {
			r.h.Pool.Release(o.Buf)
			o.Buf, o.Data = nil, nil
		}
	}
}

// put writes bytes and releases the buffer.
func (r *runner) put(off uint64, bytes []byte, flags bio.Flags) {
	r.t.Helper()
	for len(bytes) > 0 {
		n := min(uint64(len(bytes)), r.h.MaxLen-off%r.h.MaxLen)
		o := r.write(off, bytes[:n], flags)
		r.do(o)
		r.release(o)
		off, bytes = off+n, bytes[n:]
	}
}

// get reads a range.
func (r *runner) get(off, length uint64) []byte {
	r.t.Helper()
	out := make([]byte, 0, length)
	for length > 0 {
		n := min(length, r.h.MaxLen-off%r.h.MaxLen)
		o := r.read(off, n)
		r.do(o)
		out = append(out, o.Data...)
		r.release(o)
		off, length = off+n, length-n
	}
	return out
}

// pattern is bytes that name their offset and a salt, never zero.
func pattern(off, length uint64, salt byte) []byte {
	b := make([]byte, length)
	for i := range b {
		at := off + uint64(i)
		b[i] = byte(at*31+at>>12*7+uint64(salt)*59)%251 + 1
	}
	return b
}

// same fails the test at the first byte that differs.
func (r *runner) same(what string, off uint64, got, want []byte) {
	r.t.Helper()
	if len(got) != len(want) {
		r.t.Fatalf("%s: %d bytes instead of %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			r.t.Fatalf("%s: at offset %d: %#02x instead of %#02x",
				what, off+uint64(i), got[i], want[i])
		}
	}
}

// down and up round to what the device accepts.
func (r *runner) down(x uint64) uint64 { return x / r.h.Align * r.h.Align }
func (r *runner) up(x uint64) uint64   { return (x + r.h.Align - 1) / r.h.Align * r.h.Align }
