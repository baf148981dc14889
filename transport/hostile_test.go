// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"math/rand/v2"
	"runtime"
	"slices"
	"strings"
	"testing"

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

// FuzzConn feeds a live connection; a valid prefix lets the fuzzer reach every
// stage of the parser. Frames that the bytes really hold must have arrived.
func FuzzConn(f *testing.F) {
	rng := rand.New(rand.NewPCG(1, 1))
	f.Add(wire(message(rng, 1, 100, 1)))
	f.Add(append(wire(message(rng, 1, 0, 1)), wire(message(rng, 2, 17_000, 1))...))
	f.Add([]byte("BRD1 and not more"))
	l := newLoop(f, loop.Auto)
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4096*HeaderSize {
			return // more frames than the probe keeps
		}
		fds := sockets(t, 1<<20)
		p, peer := newProbe(), raw(t, fds[1])
		p.split = 1 << 10
		attach(t, l, fds[0], p, Config{})
		_, _ = peer.Write(b) // fails when the other side has closed by then
		peer.Close()
		_ = p.end(t)
		want := 0
		for {
			var h Header
			if len(b) < HeaderSize || h.Decode(b) != nil {
				break
			}
			n := HeaderSize + 8*int(h.Sums) + int(h.Payload)
			if len(b) < n {
				break
			}
			if b = b[n:]; h.Op != OpPing {
				want++
			}
		}
		// A peer that has gone may reset the socket before the last frames are read.
		if n := len(p.frames); n > want {
			t.Fatalf("%d frames from bytes that hold %d", n, want)
		}
	})
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
