// SPDX-License-Identifier: Apache-2.0

package memdev_test

import (
	"testing"
	"time"

	"braid/transport/bio"
	"braid/transport/bio/biotest"
	"braid/transport/bio/memdev"
	"braid/transport/buf"
	"braid/transport/loop"
)

// The memory device passes the suite that it stands in for, both with
// completions in order and with completions that overtake each other.
func TestConformance(t *testing.T) {
	for name, delay := range map[string]time.Duration{"Ordered": 0, "Delayed": 2 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			biotest.Run(t, func(t *testing.T) biotest.Harness {
				l, err := loop.New(loop.Options{Name: "memdev-test"})
				if err != nil {
					t.Fatal(err)
				}
				l.Start()
				pool, err := buf.NewPool(biotest.Consumers()...)
				if err != nil {
					t.Fatal(err)
				}
				pool.Poison()
				return biotest.Harness{
					Device: memdev.New(l, memdev.Options{Size: 64<<20 + 12<<10, Delay: delay, Seed: 1}),
					Loop:   l,
					Pool:   pool,
					Close: func() {
						if err := l.Close(); err != nil {
							t.Error(err)
						}
					},
				}
			})
		})
	}
}

// Trimming gives memory back, and what lies beyond a shrunk end is gone when the
// device grows again.
func TestAllocationAndResize(t *testing.T) {
	l, err := loop.New(loop.Options{Name: "memdev-test"})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	defer l.Close()
	d := memdev.New(l, memdev.Options{Size: 1 << 20})
	run := func(r *bio.Request) {
		t.Helper()
		done := make(chan struct{})
		r.Done = doneFunc(func() { close(done) })
		l.Post(func() { d.Submit(r) })
		<-done
		if r.Err != nil {
			t.Fatalf("%s: %v", r.Op, r.Err)
		}
	}
	bytes := make([]byte, 100_000)
	for i := range bytes {
		bytes[i] = 7
	}
	run(&bio.Request{Op: bio.Write, Off: 10_000, Len: 100_000, Data: bytes})
	if n := d.Allocated(); n != 25*4096 {
		t.Errorf("%d bytes allocated by a write over 25 blocks", n)
	}
	run(&bio.Request{Op: bio.Trim, Off: 0, Len: 64 << 10})
	if n := d.Allocated(); n != 11*4096 {
		t.Errorf("%d bytes allocated after the trim of the first 16 blocks", n)
	}
	l.Call(func() { d.Resize(70_000); d.Resize(1 << 20) })
	got := make([]byte, 40_000)
	run(&bio.Request{Op: bio.Read, Off: 60_000, Len: 40_000, Data: got})
	for i, b := range got {
		want := byte(0)
		if at := 60_000 + i; at >= 64<<10 && at < 70_000 {
			want = 7
		}
		if b != want {
			t.Fatalf("byte %d is %d after trim and resize, want %d", 60_000+i, b, want)
		}
	}
}

type doneFunc func()

func (f doneFunc) RequestDone(*bio.Request) { f() }
