// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"
	"unsafe"

	"braid/transport/loop"
)

// broken is the golden header with one byte changed and a right checksum.
func broken(at int, value byte) []byte {
	b := make([]byte, HeaderSize)
	goldenHeader.Encode(b)
	b[at] = value
	return seal(b)
}

// Goal: a peer that sends nonsense costs its own connection, which is counted by
// reason, and nothing else. Method: each kind of nonsense on a connection of its
// own; a neighbour on the same loop works on.
func TestNonsense(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	good := wire(message(rng, 1, 30_000, 1))
	for _, tc := range []struct {
		name   string
		bytes  []byte
		want   error
		reason Reason
	}{
		{"text", []byte(strings.Repeat("GET / HTTP/1.1\r\n", 9)), ErrMagic, ReasonMagic},
		{"checksum", slices.Concat(good[:9], []byte{0xff}, good[10:]), ErrHeader, ReasonHeader},
		{"length", broken(19, 0xff), ErrTooLong, ReasonLength},
		{"sums beyond", broken(57, 0xff), ErrTooLong, ReasonLength},
		{"sums", broken(56, 1), ErrSums, ReasonSums},
		{"op", broken(4, 0xee), ErrReserved, ReasonReserved},
		{"second frame", slices.Concat(good, make([]byte, HeaderSize)), ErrMagic, ReasonMagic},
		{"half a header", good[:HeaderSize/2], ErrTruncated, ReasonTruncated},
		{"half the sums", good[:HeaderSize+20], ErrTruncated, ReasonTruncated},
		{"header and sums", good[:HeaderSize+64], ErrTruncated, ReasonTruncated},
		{"half a payload", good[:20_000], ErrTruncated, ReasonTruncated},
		{"nothing", nil, ErrPeerClosed, ReasonPeer},
		{"whole frame", good, ErrPeerClosed, ReasonPeer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			forEngines(t, func(t *testing.T, l *loop.Loop) {
				neighbour := newProbe()
				nfds := sockets(t, 0)
				npeer := raw(t, nfds[1])
				attach(t, l, nfds[0], neighbour, Config{})
				fds := sockets(t, 0)
				p, peer := newProbe(), raw(t, fds[1])
				c := attach(t, l, fds[0], p, Config{})
				if _, err := peer.Write(tc.bytes); err != nil {
					t.Fatal(err)
				}
				peer.Close()
				err := p.end(t)
				if oe := (*OpError)(nil); !errors.Is(err, tc.want) || !errors.As(err, &oe) {
					t.Fatalf("closed with %v, want %v", err, tc.want)
				}
				if n := c.Counters().Read().Closed; n[tc.reason] != 1 {
					t.Errorf("counted %v", n)
				}
				m := message(rng, 7, 5000, 1)
				if _, err := npeer.Write(wire(m)); err != nil {
					t.Fatal(err)
				}
				same(t, neighbour.next(t), m)
			})
		})
	}
}

// Goal: whatever bytes come, the connection ends or waits for more; no panic, no
// allocation by a length that a peer made up. Method: random bytes, and valid
// streams with a few bits flipped, from a seed that is printed.
func TestRandomBytes(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	l := newLoop(t, loop.Auto)
	rng := rand.New(rand.NewPCG(seed, 0))
	valid := []byte{}
	for i := range 6 {
		valid = append(valid, wire(message(rng, uint64(i), sizes[i]%9000, 2))...)
	}
	for range 150 {
		fds := sockets(t, 1<<20)
		p, peer := newProbe(), raw(t, fds[1])
		attach(t, l, fds[0], p, Config{})
		b := append([]byte{}, valid...)
		if rng.IntN(3) == 0 {
			for i := range b {
				b[i] = byte(rng.Uint32())
			}
		}
		for range 1 + rng.IntN(4) {
			b[rng.IntN(len(b))] ^= 1 << rng.IntN(8)
		}
		if _, err := peer.Write(b[:rng.IntN(len(b))]); err != nil && len(p.ended) == 0 {
			t.Fatal(err)
		}
		peer.Close()
		if err := p.end(t); err == nil {
			t.Fatal("closed without an error")
		}
	}
}

// kernel plays the socket for a connection that is on no running loop: it puts
// bytes where the connection asked for them, cuts of them at a time.
func kernel(c *Conn, stream []byte, cuts func() int) {
	for c.state == open && len(stream) > 0 {
		c.in.aim()
		room := [][]byte{c.in.op.Buf}
		if c.in.op.Kind == loop.Recvmsg {
			room = room[:0]
			for _, v := range c.in.op.Iov {
				room = append(room, unsafe.Slice(v.Base, int(v.Len)))
			}
		}
		n, most := 0, max(1, cuts())
		for _, b := range room {
			k := copy(b[:min(len(b), most-n)], stream)
			stream = stream[k:]
			n += k
		}
		c.received(n)
	}
	if c.state == open {
		c.received(0)
	}
}

// Goal: for any bytes in any pieces, the frames that arrive and the error at the
// end are those of a plain decoder. Method: the fuzzer chooses the bytes, a seed
// made of them the pieces; nothing is left to timing.
func FuzzConn(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	f.Add(wire(message(rng, 1, 100, 1)), uint64(1))
	f.Add(append(wire(message(rng, 1, 0, 1)), wire(message(rng, 2, 17_000, 1))...), uint64(2))
	f.Add(broken(19, 1), uint64(3))
	f.Add([]byte("BRD1 and not more"), uint64(4))
	l, err := loop.New(loop.Options{Engine: loop.Pool})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { l.Close() })
	f.Fuzz(func(t *testing.T, stream []byte, seed uint64) {
		if len(stream) > 4000*HeaderSize {
			return // more frames than the probe keeps
		}
		checkStream(t, l, stream, rand.New(rand.NewPCG(seed, 0)))
	})
}

func checkStream(t *testing.T, l *loop.Loop, stream []byte, rng *rand.Rand) {
	p := newProbe()
	p.split = 1 + rng.IntN(20_000)
	// deferred: it seems to be queued already, so that the loop is left alone.
	c := &Conn{loop: l, fd: -1, handler: p, counters: new(Counters), deferred: true}
	c.in.init(c)
	c.out.init(c)
	kernel(c, stream, func() int { return rng.IntN(1 << (1 + rng.IntN(17))) })
	want := ErrPeerClosed
	for len(stream) > 0 {
		var h Header
		if len(stream) < HeaderSize {
			want = ErrTruncated
			break
		}
		if want = h.Decode(stream); want != nil {
			break
		}
		n := HeaderSize + 8*int(h.Sums) + int(h.Payload)
		if len(stream) < n {
			want = ErrTruncated
			break
		}
		want = ErrPeerClosed
		if h.Op != OpPing {
			if len(p.frames) == 0 {
				t.Fatalf("frame %+v is missing; ended with %v", h, c.err)
			}
			g := <-p.frames
			sums, payload := stream[HeaderSize:n-int(h.Payload)], stream[n-int(h.Payload):n]
			if g.h != h || !bytes.Equal(g.sums, sums) || !bytes.Equal(g.payload, payload) {
				t.Fatalf("frame %+v differs: %+v", g.h, h)
			}
		}
		stream = stream[n:]
	}
	if len(p.frames) != 0 || !errors.Is(c.err, want) {
		t.Fatalf("%d frames too many, ended with %v, want %v", len(p.frames), c.err, want)
	}
}

// Goal: as FuzzConn, on long streams of every size of frame, some of them
// damaged. The seed is printed.
func TestAnyPieces(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	l, err := loop.New(loop.Options{Engine: loop.Pool})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for range 40 {
		var stream []byte
		for i := range 2 + rng.IntN(20) {
			m := message(rng, uint64(i), sizes[rng.IntN(len(sizes)-1)], 1)
			if rng.IntN(5) == 0 {
				m = &Msg{Header: Header{Op: OpPing}}
			}
			stream = append(stream, wire(m)...)
		}
		checkStream(t, l, stream, rng)
		stream[rng.IntN(len(stream))] ^= 1 << rng.IntN(8)
		checkStream(t, l, stream[:rng.IntN(len(stream))], rng)
	}
}

// Goal: a header that announces a megabyte costs no megabyte. Method: the
// handler refuses memory; what a thousand such headers allocate is measured.
func TestLengthAllocatesNothing(t *testing.T) {
	l := newLoop(t, loop.Auto)
	fds := sockets(t, 0)
	p, peer := newProbe(), raw(t, fds[1])
	p.incoming = func(*Conn, *Header) bool { return false }
	c := attach(t, l, fds[0], p, Config{})
	h := Header{Op: OpWrite, Payload: MaxPayload, Sums: MaxSums}
	b := make([]byte, HeaderSize+sumsSize)
	h.Encode(b)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := peer.Write(b); err != nil {
		t.Fatal(err)
	}
	for pauses := uint64(1); pauses < 1000; pauses++ {
		until(t, "a pause", func() bool { return c.Counters().Read().Pauses == pauses })
		l.Call(c.Resume)
	}
	runtime.ReadMemStats(&after)
	if n := after.TotalAlloc - before.TotalAlloc; n > MaxPayload {
		t.Errorf("%d bytes allocated", n)
	}
}
