// SPDX-License-Identifier: Apache-2.0

package buf

import (
	"math/rand/v2"
	"runtime"
	"strings"
	"sync"
	"testing"
)

func newPool(t *testing.T, consumers ...Consumer) *Pool {
	t.Helper()
	p, err := NewPool(consumers...)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := p.Close(); err != nil {
			t.Error(err)
		}
	})
	return p
}

func mustPanic(t *testing.T, text string, fn func()) {
	t.Helper()
	defer func() {
		if r, _ := recover().(string); !strings.Contains(r, text) {
			t.Errorf("panicked with %q, want %q", r, text)
		}
	}()
	fn()
}

// Buffers are aligned, as large as promised, and do not overlap.
func TestBuffersAreAlignedAndApart(t *testing.T) {
	p := newPool(t, Consumer{"small", 4000, 5}, Consumer{"odd", 9000, 3}, Consumer{"small too", 4096, 2})
	if p.MaxSize() != 12288 {
		t.Errorf("largest class: %d", p.MaxSize())
	}
	var all []*Buf
	for _, c := range []struct{ n, size, count int }{{4096, 4096, 7}, {4097, 12288, 3}} {
		for range c.count {
			b := p.Get(c.n)
			if b == nil || len(b.B) != c.size || cap(b.B) != c.size || !Aligned(b.B) {
				t.Fatalf("Get(%d): %+v", c.n, b)
			}
			for i := range b.B {
				b.B[i] = byte(len(all))
			}
			all = append(all, b)
		}
	}
	for i, b := range all {
		for _, v := range b.B {
			if int(v) != i {
				t.Fatalf("buffer %d overlaps buffer %d", i, v)
			}
		}
		p.Release(b)
	}
	if Aligned(all[0].B[1:]) || !Aligned(nil) {
		t.Error("Aligned is wrong")
	}
}

// An exhausted class falls back to the next one, unless that is far too large,
// and never to an allocation.
func TestExhaustion(t *testing.T) {
	p := newPool(t, Consumer{"a", 4096, 1}, Consumer{"b", 8192, 1}, Consumer{"c", 1 << 20, 1})
	a, b := p.Get(4096), p.Get(4096)
	if len(a.B) != 4096 || len(b.B) != 8192 {
		t.Fatalf("got %d and %d bytes", len(a.B), len(b.B))
	}
	if c := p.Get(4096); c != nil {
		t.Fatalf("a request for 4096 bytes took a buffer of %d", len(c.B))
	}
	if c := p.Get(1<<20 + 1); c != nil {
		t.Fatal("more than the largest class was given")
	}
	if p.Outstanding() != 2 {
		t.Errorf("%d outstanding, want 2", p.Outstanding())
	}
	p.Release(a)
	if a = p.Get(1); a == nil {
		t.Fatal("a released buffer cannot be had again")
	}
	p.Release(a)
	p.Release(b)
	if p.Outstanding() != 0 {
		t.Errorf("%d outstanding, want 0", p.Outstanding())
	}
}

// A buffer returns to the pool with its last reference, and not before.
func TestReferences(t *testing.T) {
	p := newPool(t, Consumer{"a", 4096, 1})
	b := p.Get(1)
	b.Retain()
	b.Retain()
	for range 2 {
		p.Release(b)
		if p.Get(1) != nil {
			t.Fatal("a referenced buffer was given out again")
		}
	}
	p.Release(b)
	mustPanic(t, "released more often", func() { p.Release(b) })
	b.refs.Store(0)
	mustPanic(t, "retain of a free buffer", func() { b.Retain() })
	b.refs.Store(0)
}

// A poisoned pool overwrites what is released and notices who writes afterwards.
func TestPoison(t *testing.T) {
	p := newPool(t, Consumer{"a", 12288, 1})
	p.Poison()
	b := p.Get(1)
	b.B[5000] = 1
	p.Release(b)
	for i, v := range b.B {
		if v != poisonByte {
			t.Fatalf("byte %d is %#x after the release", i, v)
		}
	}
	b = p.Get(1)
	p.Release(b)
	b.B[12287] = 0
	mustPanic(t, "after its last release", func() { p.Get(1) })
	p.Release(b)
}

// Whoever waits is called once, by the next release of a last reference.
func TestWait(t *testing.T) {
	p := newPool(t, Consumer{"a", 4096, 1})
	b := p.Get(1)
	b.Retain()
	calls := 0
	p.Wait(func() { calls++ })
	p.Wait(func() { calls++ })
	p.Release(b)
	if calls != 0 {
		t.Fatal("woken while the buffer is still in use")
	}
	p.Release(b)
	if calls != 2 {
		t.Fatalf("%d of 2 waiters called", calls)
	}
	p.Release(p.Get(1))
	if calls != 2 {
		t.Fatal("a waiter was called twice")
	}
}

// Goroutines that share too few buffers and wait as Wait says all make progress,
// and no two hold the same buffer.
func TestSharedPool(t *testing.T) {
	const goroutines, rounds = 8, 2000
	p := newPool(t, Consumer{"a", 4096, 3})
	p.Poison()
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(uint64(g), 1))
			woken := make(chan struct{}, 1)
			for range rounds {
				b := p.Get(1)
				for b == nil {
					p.Wait(func() {
						select {
						case woken <- struct{}{}:
						default:
						}
					})
					if b = p.Get(1); b == nil {
						<-woken
						b = p.Get(1)
					}
				}
				b.B[0] = byte(g)
				b.Retain()
				if r.IntN(4) == 0 {
					runtime.Gosched()
				}
				p.Release(b)
				if b.B[0] != byte(g) {
					t.Error("two holders of one buffer")
				}
				p.Release(b)
			}
		})
	}
	wg.Wait()
	if n := p.Outstanding(); n != 0 {
		t.Errorf("%d outstanding", n)
	}
}

// Bad sizes are refused, and so is closing a pool of which something is out.
func TestBadUse(t *testing.T) {
	for _, c := range [][]Consumer{nil, {{"a", 0, 1}}, {{"a", 1, 0}}, {{"a", -1, 1}}} {
		if _, err := NewPool(c...); err == nil {
			t.Errorf("%v was accepted", c)
		}
	}
	p := newPool(t, Consumer{"a", 4096, 1})
	b := p.Get(1)
	mustPanic(t, "1 buffers outstanding", func() { _ = p.Close() })
	p.Release(b)
	for range 2 {
		if err := p.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if p.Get(1) != nil {
		t.Error("a closed pool gave a buffer")
	}
}

func TestAllocs(t *testing.T) {
	p := newPool(t, Consumer{"a", 4096, 4}, Consumer{"b", 1 << 20, 2})
	n := testing.AllocsPerRun(100, func() {
		a, b := p.Get(4096), p.Get(1<<20)
		a.Retain()
		p.Release(a)
		p.Release(a)
		p.Release(b)
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func BenchmarkGetRelease(b *testing.B) {
	p, err := NewPool(Consumer{"a", 4096, 4})
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		p.Release(p.Get(4096))
	}
	_ = p.Close()
}
