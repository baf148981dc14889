// SPDX-License-Identifier: Apache-2.0

package server

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"

	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

// fileDisk is a preallocated file, opened past the page cache.
type fileDisk struct{ f *os.File }

func newFileDisk(t testing.TB, size int64) fileDisk {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_DIRECT, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Fallocate(int(f.Fd()), 0, 0, size); err != nil {
		t.Fatal(err)
	}
	return fileDisk{f}
}

func (d fileDisk) Size() int64 {
	st, err := d.f.Stat()
	if err != nil {
		return 0
	}
	return st.Size()
}
func (d fileDisk) FD() int                                  { return int(d.f.Fd()) }
func (d fileDisk) ReadAt(p []byte, off int64) (int, error)  { return d.f.ReadAt(p, off) }
func (d fileDisk) WriteAt(p []byte, off int64) (int, error) { return d.f.WriteAt(p, off) }
func (d fileDisk) Flush() error                             { return unix.Fdatasync(d.FD()) }
func (d fileDisk) Close() error                             { return d.f.Close() }
func (d fileDisk) Discard(off, n int64) error {
	return unix.Fallocate(d.FD(), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

// driver keeps a fixed number of 4 KiB requests going from one slot table, on
// its loop, and allocates nothing for it.
type driver struct {
	conn    *transport.Conn
	session uint32
	slots   []driverSlot
	budget  int // requests still to be started
	flying  int
	seed    uint64
	bad     transport.Status
	done    chan struct{}
	ended   chan error
}

type driverSlot struct {
	msg   transport.Msg
	sums  [8]byte
	data  [1][]byte
	views [1][]byte
}

func newDriver(depth int) *driver {
	d := &driver{slots: make([]driverSlot, depth), done: make(chan struct{}, 1), ended: make(chan error, 1), seed: 1}
	for i := range d.slots {
		s := &d.slots[i]
		s.data[0], s.views[0] = pattern(i, 4096), make([]byte, 4096)
		transport.BlockSums(s.sums[:], s.data[0])
	}
	return d
}

func (d *driver) Incoming(_ *transport.Conn, h *transport.Header) ([][]byte, bool) {
	if h.Payload == 4096 {
		return d.slots[h.ID].views[:], true
	}
	return nil, true
}

func (d *driver) Frame(_ *transport.Conn, h *transport.Header, _ []byte) {
	if h.Op == transport.OpOpen {
		d.session = h.Session
		d.done <- struct{}{}
		return
	}
	if h.Status != transport.StatusOK {
		d.bad = h.Status
	}
	d.flying--
	d.next(int(h.ID))
}

func (d *driver) Closed(_ *transport.Conn, err error) { d.ended <- err }

// next starts another request in a slot, half of them writes; over 16 chunks, so
// that after a warm-up nothing is new.
func (d *driver) next(i int) {
	if d.budget == 0 {
		if d.flying == 0 {
			d.done <- struct{}{}
		}
		return
	}
	d.budget--
	d.flying++
	d.seed = d.seed*6364136223846793005 + 1442695040888963407
	r := d.seed >> 33
	s := &d.slots[i]
	h := &s.msg.Header
	*h = transport.Header{ID: uint64(i), Session: d.session, PG: uint32(testPG), Epoch: epoch, Interval: 1,
		Chunk: r % 16, Offset: uint32(r>>4%256) * 4096, Length: 4096}
	if r>>12%2 == 0 {
		h.Op = transport.OpRead
		s.msg.Payload, s.msg.Sums = nil, nil
	} else {
		h.Op = transport.OpWrite
		s.msg.Payload, s.msg.Sums = s.data[:], s.sums[:]
	}
	d.conn.Send(&s.msg)
}

// startDriver connects a driver to the first device on the loop of p.
func startDriver(r *rig, p *peer, depth int) *driver {
	r.t.Helper()
	d := newDriver(depth)
	hello := transport.Hello{Cluster: r.manager.cluster, Device: r.uuids[0], Role: transport.Client, Flags: 1}
	conn, _, err := transport.Dial(r.t.Context(), p.loop, r.srv.Addr().String(), hello,
		func(transport.HelloReply) transport.Handler { return d })
	if err != nil {
		r.t.Fatal(err)
	}
	d.conn = conn
	req := transport.OpenRequest{Volume: uint64(testVolume), Generation: 1}
	open := &transport.Msg{Header: transport.Header{Op: transport.OpOpen},
		Payload: [][]byte{req.Encode(make([]byte, transport.OpenRequestSize))}}
	p.loop.Call(func() { d.conn.Send(open) })
	<-d.done
	return d
}

func (d *driver) close(l *loop.Loop) {
	l.Call(func() { d.conn.Close(nil) })
	<-d.ended
}

// run does n requests.
func (d *driver) run(l *loop.Loop, n int) {
	l.Post(func() {
		d.budget = n
		for i := range d.slots {
			d.next(i)
		}
	})
	<-d.done
}

// BenchmarkRequests reports what a 4 KiB request costs the whole process, both
// ends of the connection and the disk's file included.
func BenchmarkRequests(b *testing.B) {
	d := newFileDisk(b, testDiskSize)
	format(b, d)
	r := startRig(b, loop.Auto, newFakeManager(), d)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		b.Fatalf("open: %v", s)
	}
	dr := startDriver(r, p, 32)
	dr.run(p.loop, 20000)
	var before, after unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &before)
	b.ResetTimer()
	dr.run(p.loop, b.N)
	b.StopTimer()
	_ = unix.Getrusage(unix.RUSAGE_SELF, &after)
	cpu := after.Utime.Nano() + after.Stime.Nano() - before.Utime.Nano() - before.Stime.Nano()
	b.ReportMetric(float64(cpu)/float64(b.N)/1000, "cpu-us/op")
	dr.close(p.loop)
	p.close()
	r.stop()
}

// Goal: in a steady state the server and the transport allocate nothing for 4
// KiB reads and writes, and io_uring carries the disk's operations where it is
// the engine. Method: the allocation count of the whole process, client included,
// over many thousand requests.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		b := newFileDisk(t, testDiskSize)
		format(t, b)
		r := startRig(t, e, newFakeManager(), b)
		p := r.dial(0) // waits until the device serves
		if s := p.open(1); s != transport.StatusOK {
			t.Fatalf("open: %v", s)
		}
		d := startDriver(r, p, 32)
		d.run(p.loop, 10000) // every block of the 16 chunks is warm
		dev := r.srv.devices[0]
		const n = 8000
		var before, after runtime.MemStats
		ring, enters := dev.loop.Stats().RingOps, dev.loop.Stats().Enters
		runtime.GC()
		runtime.ReadMemStats(&before)
		d.run(p.loop, n)
		runtime.ReadMemStats(&after)
		if d.bad != transport.StatusOK {
			t.Fatalf("a request was answered with %v", d.bad)
		}
		// The registrar, timers and the runtime allocate a little in the background.
		perOp := float64(after.Mallocs-before.Mallocs) / n
		t.Logf("%s: %.4f allocations and %.1f bytes for each request", dev.loop.Engine(), perOp,
			float64(after.TotalAlloc-before.TotalAlloc)/n)
		if !raceDetector && perOp > 0.05 {
			t.Errorf("%.3f allocations for each request, want 0", perOp)
		}
		ring = dev.loop.Stats().RingOps - ring
		if e == loop.Uring && ring < n/2 {
			t.Errorf("io_uring did %d operations for %d requests", ring, n)
		}
		// Once for the request, once for the disk, once for the reply, where nothing
		// shares a call.
		enters = dev.loop.Stats().Enters - enters
		t.Logf("%.2f system calls for each request", float64(enters)/n)
		if e == loop.Uring && enters > 3*n+n/10 {
			t.Errorf("the loop entered the kernel %d times for %d requests", enters, n)
		}
		if e == loop.Pool && ring != 0 {
			t.Errorf("io_uring did %d operations under the other engine", ring)
		}
		d.close(p.loop)
		p.close()
		r.stop()
	})
}

var _ store.Disk = fileDisk{}
