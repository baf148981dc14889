// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"fmt"
	"io"
	"os"
	"runtime"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// benchDeviceEnv names a block device, or a file of at least 64 MiB, that the
// benchmarks read with O_DIRECT; without it they read a temporary file through
// the page cache.
const benchDeviceEnv = "BRAID_BENCH_DEVICE"

const benchSpan = 64 << 20

func benchFile(b *testing.B) int {
	path, flags := os.Getenv(benchDeviceEnv), unix.O_DIRECT
	if path == "" {
		f := tempFile(b)
		if err := f.Truncate(benchSpan); err != nil {
			b.Fatal(err)
		}
		path, flags = f.Name(), 0
	}
	f, err := os.OpenFile(path, os.O_RDONLY|flags, 0)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { f.Close() })
	if end, err := f.Seek(0, io.SeekEnd); err != nil || end < benchSpan {
		b.Fatalf("%s has %d bytes, want %d: %v", path, end, benchSpan, err)
	}
	return int(f.Fd())
}

// cpu is the process's CPU time.
func cpu(b *testing.B) time.Duration {
	var ru unix.Rusage
	if err := unix.Getrusage(unix.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

func benchEngines(b *testing.B, run func(b *testing.B, l *Loop)) {
	for _, o := range []Options{
		{Engine: Uring},
		{Engine: Uring, Spin: 50 * time.Microsecond},
		{Engine: Pool},
	} {
		name := o.Engine.String()
		if o.Spin > 0 {
			name += "-spin"
		}
		b.Run(name, func(b *testing.B) {
			if o.Engine == Uring && kernelRefusesUring() {
				return
			}
			l := startLoop(b, o)
			runtime.GC()
			before, from := l.Stats(), cpu(b)
			b.ResetTimer()
			run(b, l)
			b.StopTimer()
			used := cpu(b) - from
			after := l.Stats()
			b.ReportMetric(float64(used.Nanoseconds())/1e3/float64(b.N), "cpu-µs/op")
			b.ReportMetric(float64(after.Enters-before.Enters)/float64(b.N), "enters/op")
		})
	}
}

// reader keeps a number of random 4 KiB reads going.
type reader struct {
	b      *testing.B
	l      *Loop
	ops    []Op
	issued int
	ended  int
	rand   uint64
	done   chan struct{}
}

func (r *reader) OpDone(op *Op, res int) {
	if res != len(op.Buf) {
		r.b.Errorf("read: %d", res)
	}
	if r.ended++; r.ended == r.b.N {
		close(r.done)
	}
	r.issue(op)
}

func (r *reader) issue(op *Op) {
	if r.issued == r.b.N {
		return
	}
	r.issued++
	r.rand = r.rand*6364136223846793005 + 1442695040888963407
	op.Off = int64(r.rand>>33) % (benchSpan / 4096) * 4096
	r.l.Submit(op)
}

// BenchmarkRead: random 4 KiB reads at queue depths 1 and 32.
func BenchmarkRead(b *testing.B) {
	for _, depth := range []int{1, 32} {
		b.Run(fmt.Sprintf("QD%d", depth), func(b *testing.B) {
			fd := benchFile(b)
			mem, err := unix.Mmap(-1, 0, depth*4096, unix.PROT_READ|unix.PROT_WRITE,
				unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_POPULATE)
			if err != nil {
				b.Fatal(err)
			}
			defer unix.Munmap(mem)
			benchEngines(b, func(b *testing.B, l *Loop) {
				r := &reader{b: b, l: l, ops: make([]Op, depth), done: make(chan struct{})}
				l.Post(func() {
					for i := range r.ops {
						buf := mem[i*4096:][:4096]
						r.ops[i] = Op{Kind: Read, FD: fd, Buf: buf, Done: r}
						r.issue(&r.ops[i])
					}
				})
				<-r.done
			})
		})
	}
}

// BenchmarkPingPong: 64 bytes there and back between two loops over a socket.
func BenchmarkPingPong(b *testing.B) {
	benchEngines(b, func(b *testing.B, l *Loop) {
		other := startLoop(b, Options{Engine: l.Engine(), Spin: l.opts.Spin})
		fd, peer := pair(b, 0)
		x, y := newPinger(l, fd, b.N), newPinger(other, peer, b.N+1)
		other.Post(func() { other.Submit(&y.recv) })
		l.Post(func() { l.Submit(&x.send) })
		if err := <-x.ended; err != nil {
			b.Fatal(err)
		}
	})
}

// BenchmarkPost: waking the loop from another goroutine.
func BenchmarkPost(b *testing.B) {
	benchEngines(b, func(b *testing.B, l *Loop) {
		done := make(chan struct{}, 1)
		fn := func() { done <- struct{}{} }
		for range b.N {
			l.Post(fn)
			<-done
		}
	})
}

// The size of an Op matters: a server has thousands in its tables.
var _ [256 - unsafe.Sizeof(Op{})]byte
