// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"braid/transport/loop"
)

// echo is a server's handler in small: a fixed table of slots with memory, a
// pause when all are taken, replies in an order of its own.
type echo struct {
	slots []echoSlot
	free  []int
	cur   int // slot of the frame being received
	c     *Conn
	// hold is how many replies are kept back and let go in reverse; 0: none.
	hold    int
	held    []int
	wantSum bool
	bad     int // payloads that did not match their checksums
	ended   chan error
}

type echoSlot struct {
	e    *echo
	msg  Msg
	mem  []byte
	sums []byte
	view [1][]byte
}

func newEcho(slots, size, hold int) *echo {
	e := &echo{slots: make([]echoSlot, slots), hold: hold, ended: make(chan error, 1)}
	for i := range e.slots {
		s := &e.slots[i]
		s.e, s.mem, s.sums = e, make([]byte, size), make([]byte, 8*Blocks(size))
		s.msg.Sent = s
		e.free = append(e.free, i)
	}
	return e
}

func (e *echo) Opened(c *Conn) { e.c = c }

func (e *echo) Incoming(_ *Conn, h *Header) ([][]byte, bool) {
	if len(e.free) == 0 {
		return nil, false
	}
	e.cur = e.free[len(e.free)-1]
	e.free = e.free[:len(e.free)-1]
	s := &e.slots[e.cur]
	s.view[0] = s.mem[:h.Payload]
	return s.view[:], true
}

func (e *echo) Frame(c *Conn, h *Header, sums []byte) {
	s := &e.slots[e.cur]
	if e.wantSum && VerifySums(s.view[0], sums) != -1 {
		e.bad++
	}
	s.msg.Header = Header{Op: h.Op, Flags: FlagReply, ID: h.ID, Chunk: h.Chunk, Length: h.Length}
	s.msg.Sums = s.sums[:copy(s.sums, sums)]
	s.msg.Payload = s.view[:]
	e.held = append(e.held, e.cur)
	if len(e.held) <= e.hold && len(e.free) > 0 && h.Flags&FlagFUA == 0 {
		return
	}
	for i := len(e.held) - 1; i >= 0; i-- {
		c.Send(&e.slots[e.held[i]].msg)
	}
	e.held = e.held[:0]
}

func (s *echoSlot) MsgSent(m *Msg, err error) {
	e := s.e
	for i := range e.slots {
		if &e.slots[i] == s {
			e.free = append(e.free, i)
		}
	}
	e.c.Resume()
}

func (e *echo) Closed(_ *Conn, err error) { e.ended <- err }

// driver is a client's handler in small: depth requests in flight, a slot each,
// until a number of them is done.
type driver struct {
	c       *Conn
	slots   []driverSlot
	issued  int
	replied int
	total   int
	size    func(i int) int
	writes  bool // payload goes there and back; otherwise there only if size says so
	bad     int
	done    chan struct{}
	ended   chan error
	cur     *driverSlot
	order   int // replies that overtook an earlier request
	lastID  uint64
}

type driverSlot struct {
	d    *driver
	msg  Msg
	out  []byte
	in   []byte
	sums []byte
	view [1][]byte
	dst  [3][]byte
	busy bool // request in the connection
	back bool // reply is here
}

func newDriver(depth, size int) *driver {
	d := &driver{slots: make([]driverSlot, depth), done: make(chan struct{}, 1),
		ended: make(chan error, 1), size: func(int) int { return size }}
	rng := rand.New(rand.NewPCG(1, uint64(size)))
	for i := range d.slots {
		s := &d.slots[i]
		s.d, s.out, s.in = d, make([]byte, size), make([]byte, size)
		for k := 0; k+8 <= size; k += 8 {
			binary.LittleEndian.PutUint64(s.out[k:], rng.Uint64())
		}
		s.sums = make([]byte, 8*Blocks(size))
		s.msg.Sent = s
	}
	return d
}

func (d *driver) Opened(c *Conn) { d.c = c }

// run starts a series of requests; on the loop.
func (d *driver) run(total int) {
	d.issued, d.replied, d.total = 0, 0, total
	for i := range d.slots {
		if d.issued < d.total {
			d.issue(i)
		}
	}
}

func (d *driver) issue(i int) {
	s := &d.slots[i]
	n := d.size(d.issued)
	d.issued++
	s.busy, s.back = true, false
	s.msg.Header = Header{Op: OpWrite, ID: uint64(d.issued)<<16 | uint64(i), Length: uint32(n)}
	if d.total-d.issued < len(d.slots) {
		s.msg.Header.Flags = FlagFUA // the echo keeps nothing back any more
	}
	s.view[0] = s.out[:n]
	s.msg.Sums = BlockSums(s.sums, s.view[0])
	s.msg.Payload = s.view[:]
	d.c.Send(&s.msg)
}

func (d *driver) Incoming(_ *Conn, h *Header) ([][]byte, bool) {
	s := &d.slots[h.ID&0xffff]
	d.cur = s
	n := int(h.Payload) // in three pieces, as into a larger request
	s.dst = [3][]byte{s.in[:n/3], s.in[n/3 : n/2], s.in[n/2 : n]}
	return s.dst[:], true
}

func (d *driver) Frame(_ *Conn, h *Header, sums []byte) {
	s := d.cur
	in := s.in[:h.Payload]
	if VerifySums(in, sums) != -1 || len(in) != len(s.view[0]) || h.ID != s.msg.Header.ID {
		d.bad++
	}
	if h.ID < d.lastID {
		d.order++
	}
	d.lastID = h.ID
	s.back = true
	s.next()
}

func (s *driverSlot) MsgSent(*Msg, error) { s.busy = false; s.next() }

// next reuses the slot when its request has left and its reply is here.
func (s *driverSlot) next() {
	d := s.d
	if s.busy || !s.back {
		return
	}
	s.back = false
	if d.replied++; d.replied == d.total {
		d.done <- struct{}{}
	}
	if d.issued < d.total {
		for i := range d.slots {
			if &d.slots[i] == s {
				d.issue(i)
			}
		}
	}
}

func (d *driver) Closed(_ *Conn, err error) { d.ended <- err }

func (d *driver) wait(t testing.TB) {
	t.Helper()
	select {
	case <-d.done:
	case err := <-d.ended:
		t.Fatalf("connection ended: %v", err)
	case <-time.After(3 * patience):
		t.Fatalf("%d of %d requests answered", d.replied, d.total)
	}
}

// serve runs a Listener for e on a loopback port.
func serve(t testing.TB, l *loop.Loop, h Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := new(Listener)
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(ln, func(Hello) (*loop.Loop, Handler, HelloReply) {
			return l, h, HelloReply{Incarnation: 5}
		})
	}()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// Goal: the whole way over TCP: handshake, all sizes mixed, deep pipelining,
// replies out of order, a server that runs out of memory now and then.
func TestEchoOverTCP(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		server := newLoop(t, l.Engine())
		e := newEcho(12, MaxPayload, 7)
		e.wantSum = true
		addr := serve(t, server, e)
		d := newDriver(32, MaxPayload)
		mix := []int{0, 4096, 65536, 4096, 0, MaxPayload, 4096, 65536}
		d.size = func(i int) int { return mix[i%len(mix)] }
		c, reply, err := Dial(context.Background(), l, addr, Hello{Role: Client},
			func(HelloReply) Handler { return d })
		if err != nil {
			t.Fatal(err)
		}
		if reply.Incarnation != 5 || reply.Version != VersionMax || c.Reply != reply {
			t.Errorf("reply %+v", reply)
		}
		l.Call(func() { d.run(480) })
		d.wait(t)
		if d.bad != 0 || e.bad != 0 || d.order == 0 {
			t.Errorf("%d replies and %d requests damaged, %d overtook", d.bad, e.bad, d.order)
		}
		l.Call(func() { c.Close(nil) })
		<-d.ended
		if err := <-e.ended; reasonOf(err) != ReasonPeer {
			t.Errorf("the server's side ended with %v", err)
		}
		if len(e.free) != len(e.slots) {
			t.Errorf("%d of %d slots are free in the end", len(e.free), len(e.slots))
		}
	})
}

// Goal: no allocation for a frame, in either direction. Method: thousands of
// round trips between two connections on one loop; what is left is the start of
// the series.
func TestNoAllocs(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		for size, rounds := range map[int]int{0: 3000, 4096: 3000, 65536: 500} {
			fds := sockets(t, 1<<20)
			e, d := newEcho(32, size, 0), newDriver(32, size)
			attach(t, l, fds[0], e, Config{})
			attach(t, l, fds[1], d, Config{})
			start := func() { d.run(rounds) }
			n := testing.AllocsPerRun(2, func() {
				l.Call(start)
				d.wait(t)
			})
			if n > 20 {
				t.Errorf("payload %d: %v allocations in %d round trips", size, n, rounds)
			}
		}
	})
}

// cpu is the process's CPU time so far.
func cpu() time.Duration {
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		panic(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkEcho measures a payload there and back over TCP on loopback, both
// sides in this process on a loop each, checksums made and verified on both.
func BenchmarkEcho(b *testing.B) {
	for _, engine := range []loop.Engine{loop.Uring, loop.Pool} {
		for _, bc := range []struct {
			name        string
			size, depth int
		}{{"4K/QD1", 4096, 1}, {"4K/QD32", 4096, 32}, {"64K/QD8", 65536, 8}, {"1M/QD4", MaxPayload, 4}} {
			b.Run(engine.String()+"/"+bc.name, func(b *testing.B) {
				l, server := newLoop(b, engine), newLoop(b, engine)
				if l == nil {
					return
				}
				addr := serve(b, server, newEcho(bc.depth, bc.size, 0))
				d := newDriver(bc.depth, bc.size)
				c, _, err := Dial(context.Background(), l, addr, Hello{Role: Client},
					func(HelloReply) Handler { return d })
				if err != nil {
					b.Fatal(err)
				}
				defer l.Call(func() { c.Close(nil) })
				runtime.GC()
				before, s0 := cpu(), c.Counters().Read()
				b.SetBytes(int64(2 * bc.size))
				b.ResetTimer()
				l.Call(func() { d.run(b.N) })
				d.wait(b)
				b.StopTimer()
				s1 := c.Counters().Read()
				n := float64(b.N)
				b.ReportMetric(float64((cpu()-before).Microseconds())/n, "cpu-µs/op")
				b.ReportMetric(float64(s1.Sends-s0.Sends)/n, "sends/op")
				b.ReportMetric(float64(s1.Recvs-s0.Recvs)/n, "recvs/op")
			})
		}
	}
}
