// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// sizes are payloads on either side of every border between small and large.
var sizes = []int{0, 1, 100, 4096, 8192, SmallPayload - 1, SmallPayload, SmallPayload + 1, 65536,
	100_001, MaxPayload}

// Goal: frames arrive as sent, whatever their mix. Method: two connections on
// one loop, all sizes in random order, payloads in several pieces on both sides.
func TestConnMix(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		rng := rand.New(rand.NewPCG(1, 2))
		fds := sockets(t, 0)
		a, b, s := newProbe(), newProbe(), newSent()
		b.split = 5000
		mute := Config{KeepAlive: time.Hour} // no ping in the counts
		ca, cb := attach(t, l, fds[0], a, mute), attach(t, l, fds[1], b, mute)
		var ms []*Msg
		for i := range 100 {
			m := message(rng, uint64(i), sizes[rng.IntN(len(sizes))], 1+rng.IntN(5))
			m.Sent = s
			ms = append(ms, m)
		}
		l.Call(func() {
			for _, m := range ms {
				ca.Send(m)
			}
		})
		for _, m := range ms {
			same(t, b.next(t), m)
			if err := s.next(t); err != nil {
				t.Fatal(err)
			}
		}
		l.Call(func() {}) // let the last turn publish its counters
		sa, sb := ca.Counters().Read(), cb.Counters().Read()
		if sa.FramesOut != 100 || sb.FramesIn != 100 || sa.BytesOut != sb.BytesIn {
			t.Errorf("counted %+v out, %+v in", sa, sb)
		}
	})
}

// Goal: a burst is one system call. Method: 32 writes of 4 KiB queued in one
// turn; both sides' socket operations are counted.
func TestBurstIsOneSend(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		rng := rand.New(rand.NewPCG(1, 2))
		fds := sockets(t, 1<<20)
		a, b, s := newProbe(), newProbe(), newSent()
		mute := Config{KeepAlive: time.Hour}
		ca, cb := attach(t, l, fds[0], a, mute), attach(t, l, fds[1], b, mute)
		for round := range 3 {
			before, cbBefore := ca.Counters().Read(), cb.Counters().Read()
			ms := make([]*Msg, 32)
			for i := range ms {
				ms[i] = message(rng, uint64(i), 4096, 1)
				ms[i].Sent = s
			}
			l.Call(func() {
				for _, m := range ms {
					ca.Send(m)
				}
			})
			for _, m := range ms {
				same(t, b.next(t), m)
				if err := s.next(t); err != nil {
					t.Fatal(err)
				}
			}
			l.Call(func() {})
			sends := ca.Counters().Read().Sends - before.Sends
			recvs := cb.Counters().Read().Recvs - cbBefore.Recvs
			if sends > 2 || recvs > 6>>round+1 {
				t.Errorf("round %d: %d sends, %d receives for 32 frames", round, sends, recvs)
			}
		}
	})
}

// Goal: a frame may arrive in any pieces. Method: a raw peer writes a stream cut
// at each byte (small frames), then around every border (large ones), and waits
// for each piece to have been received before it writes the next.
func TestPartialReceive(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		rng := rand.New(rand.NewPCG(3, 4))
		fds := sockets(t, 0)
		p, peer := newProbe(), raw(t, fds[1])
		p.split = 3000
		c := attach(t, l, fds[0], p, Config{KeepAlive: time.Hour})
		total := uint64(0)
		piece := func(b []byte) {
			if len(b) == 0 {
				return
			}
			if _, err := peer.Write(b); err != nil {
				t.Fatal(err)
			}
			total += uint64(len(b))
			until(t, "the bytes to arrive", func() bool { return c.Counters().Read().BytesIn == total })
		}
		for i, n := range []int{0, 1, 70, 0, 300} {
			m := message(rng, uint64(i), n, 1)
			for _, b := range wire(m) {
				piece([]byte{b})
			}
			same(t, p.next(t), m)
		}
		for i, n := range []int{0, 4096, SmallPayload - 1, SmallPayload, 40_000} {
			sums := HeaderSize + 8*Blocks(n)
			for _, cut := range []int{1, HeaderSize - 1, HeaderSize, HeaderSize + 1, HeaderSize + 8,
				sums - 1, sums, sums + 1, sums + 2999, sums + 3000, sums + n - 1} {
				// Two frames, so that the second's start comes with the first's end.
				m, m2 := message(rng, uint64(i), n, 1), message(rng, uint64(i), n, 1)
				b := append(wire(m), wire(m2)...)
				cut = min(cut, len(b)/2)
				piece(b[:cut])
				piece(b[cut : len(b)/2+cut])
				piece(b[len(b)/2+cut:])
				same(t, p.next(t), m)
				same(t, p.next(t), m2)
			}
		}
	})
}

// Goal: a send that the socket takes in pieces loses and repeats nothing.
// Method: the smallest kernel buffer, a peer that reads in odd pieces.
func TestPartialSend(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		rng := rand.New(rand.NewPCG(5, 6))
		fds := sockets(t, 1)
		p, peer, s := newProbe(), raw(t, fds[1]), newSent()
		c := attach(t, l, fds[0], p, Config{KeepAlive: time.Hour})
		var ms []*Msg
		var want []byte
		for i := range 60 {
			m := message(rng, uint64(i), sizes[i%(len(sizes)-1)], 1+rng.IntN(9))
			m.Sent = s
			ms = append(ms, m)
			want = append(want, wire(m)...)
		}
		l.Call(func() {
			for _, m := range ms {
				c.Send(m)
			}
		})
		have := make([]byte, len(want))
		for n := 0; n < len(have); {
			k := min(1+rng.IntN(3000), len(have)-n)
			if _, err := io.ReadFull(peer, have[n:n+k]); err != nil {
				t.Fatal(err)
			}
			n += k
		}
		if !bytes.Equal(have, want) {
			t.Fatal("the stream differs from what was sent")
		}
		for range ms {
			if err := s.next(t); err != nil {
				t.Fatal(err)
			}
		}
	})
}

// Goal: without memory the connection reads nothing and burns nothing, and goes
// on where it stopped. Method: the handler refuses every third frame twice; a
// ping lies behind them.
func TestPauseResume(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		rng := rand.New(rand.NewPCG(7, 8))
		fds := sockets(t, 1<<20)
		p, peer := newProbe(), raw(t, fds[1])
		refusals := map[uint64]int{}
		p.incoming = func(_ *Conn, h *Header) bool {
			if h.ID%3 == 0 && refusals[h.ID] < 2 {
				refusals[h.ID]++
				return false
			}
			return true
		}
		c := attach(t, l, fds[0], p, Config{KeepAlive: time.Hour})
		var ms []*Msg
		var stream []byte
		for i := range 30 {
			ms = append(ms, message(rng, uint64(i), []int{0, 4096, 20_000}[i%3], 1))
			stream = append(stream, wire(ms[i])...)
		}
		stream = append(stream, wire(&Msg{Header: Header{Op: OpPing, ID: 77}})...)
		go peer.Write(stream)
		for pauses := uint64(1); pauses <= 20; pauses++ {
			until(t, "a pause", func() bool { return c.Counters().Read().Pauses == pauses })
			// At rest the loop turns only for the calls made here.
			l.Call(func() {})
			before, recvs := l.Stats().Turns, c.Counters().Read().Recvs
			for range 10 {
				l.Call(func() {})
			}
			if n := l.Stats().Turns - before; n > 25 || c.Counters().Read().Recvs != recvs {
				t.Fatalf("%d turns, %d receives while paused", n, c.Counters().Read().Recvs-recvs)
			}
			l.Call(c.Resume)
		}
		for _, m := range ms {
			same(t, p.next(t), m)
		}
		if g := readFrame(t, peer); g.h.Op != OpPing || g.h.ID != 77 || g.h.Flags != FlagReply {
			t.Fatalf("answer to the ping: %+v", g.h)
		}
		l.Call(c.Resume) // of a connection that is not paused: nothing
	})
}

// A handler may resume from inside Incoming (memory came back just then).
func TestResumeInsideIncoming(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, peer := newProbe(), raw(t, fds[1])
		asked := 0
		p.incoming = func(c *Conn, h *Header) bool {
			asked++
			c.Resume()
			return asked > 20
		}
		attach(t, l, fds[0], p, Config{})
		m := message(rand.New(rand.NewPCG(1, 1)), 5, 20_000, 1)
		if _, err := peer.Write(wire(m)); err != nil {
			t.Fatal(err)
		}
		same(t, p.next(t), m)
	})
}

// Goal: closing tells every sender, once, and then the handler, once. Method: a
// peer that does not read, so that messages are in the kernel, in the batch and
// in the queue; Close twice; a Send afterwards.
func TestCloseTellsAll(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		rng := rand.New(rand.NewPCG(9, 9))
		fds := sockets(t, 1)
		p, s := newProbe(), newSent()
		c := attach(t, l, fds[0], p, Config{})
		defer unix.Close(fds[1])
		var ms []*Msg
		for i := range 50 {
			m := message(rng, uint64(i), 30_000, 2)
			m.Sent = s
			ms = append(ms, m)
		}
		l.Call(func() {
			for _, m := range ms[:25] {
				c.Send(m)
			}
		})
		cause := errors.New("enough")
		l.Call(func() {
			for _, m := range ms[25:] {
				c.Send(m)
			}
			c.Close(cause)
			c.Close(errors.New("too late"))
		})
		if err := p.end(t); err != cause {
			t.Fatalf("closed with %v", err)
		}
		if n := len(s.outcomes); n != 50 {
			t.Fatalf("%d of 50 senders had been told by the time of Closed", n)
		}
		for range 50 {
			if err := s.next(t); err != nil && err != cause {
				t.Fatalf("sender told %v", err)
			}
		}
		l.Call(func() { c.Send(ms[0]); c.Close(nil); c.Resume() })
		if err := s.next(t); err != cause {
			t.Fatalf("sender after the end told %v", err)
		}
		l.Call(func() {})
		if p.closes != 1 || c.Counters().Read().Closed[ReasonHandler] != 1 {
			t.Errorf("Closed came %d times, counted %v", p.closes, c.Counters().Read().Closed)
		}
	})
}

type closeOnSent struct{ c *Conn }

func (s closeOnSent) MsgSent(*Msg, error) { s.c.Close(nil) }

// Close may be called from inside every callback.
func TestCloseInsideCallbacks(t *testing.T) {
	for _, where := range []string{"opened", "incoming", "refusing", "frame", "sent"} {
		t.Run(where, func(t *testing.T) {
			forEngines(t, func(t *testing.T, l *loop.Loop) {
				fds := sockets(t, 0)
				p, peer := newProbe(), raw(t, fds[1])
				m := message(rand.New(rand.NewPCG(1, 1)), 5, 100, 1)
				peer.Write(append(wire(m), wire(m)...))
				p.opened = func(c *Conn) {
					if where == "opened" {
						c.Close(nil)
					}
				}
				p.incoming = func(c *Conn, _ *Header) bool {
					if where == "incoming" || where == "refusing" {
						c.Close(nil)
					}
					return where != "refusing"
				}
				p.frame = func(c *Conn, _ *Header) {
					switch where {
					case "frame":
						c.Close(nil)
					case "sent":
						c.Send(&Msg{Header: Header{Op: OpRead}, Sent: closeOnSent{c}})
					}
				}
				attach(t, l, fds[0], p, Config{})
				if err := p.end(t); err != ErrClosed {
					t.Fatalf("closed with %v", err)
				}
				l.Call(func() {})
				if p.closes != 1 {
					t.Errorf("Closed came %d times", p.closes)
				}
				if _, err := io.Copy(io.Discard, peer); err != nil && !errors.Is(err, unix.ECONNRESET) {
					t.Errorf("the peer sees %v", err)
				}
			})
		})
	}
}

// Goal: nothing is written to the handler's memory after Closed. Method: the
// memory of a half-received payload is unmapped in Closed; a late copy would
// crash, a late kernel write would show as an error.
func TestMemoryIsFreeAfterClosed(t *testing.T) {
	for _, local := range []bool{true, false} {
		forEngines(t, func(t *testing.T, l *loop.Loop) {
			fds := sockets(t, 1<<20)
			peer := raw(t, fds[1])
			h := &mapped{t: t, ended: make(chan error, 1)}
			c := attach(t, l, fds[0], h, Config{})
			b := wire(message(rand.New(rand.NewPCG(1, 1)), 5, MaxPayload, 1))
			if _, err := peer.Write(b[:len(b)/3]); err != nil {
				t.Fatal(err)
			}
			until(t, "some of it", func() bool { return c.Counters().Read().BytesIn > 100_000 })
			want := error(ErrTruncated)
			if local {
				want = ErrClosed
				l.Call(func() { c.Close(nil) })
			} else {
				peer.Close()
			}
			if err := <-h.ended; !errors.Is(err, want) {
				t.Fatalf("closed with %v, want %v", err, want)
			}
		})
	}
}

type mapped struct {
	t     *testing.T
	b     []byte
	ended chan error
}

func (h *mapped) Incoming(_ *Conn, hdr *Header) ([][]byte, bool) {
	b, err := unix.Mmap(-1, 0, int(hdr.Payload), unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		h.t.Error(err)
	}
	h.b = b
	return [][]byte{b}, true
}

func (h *mapped) Frame(*Conn, *Header, []byte) { h.t.Error("the frame is not complete") }

func (h *mapped) Closed(_ *Conn, err error) {
	if err := unix.Munmap(h.b); err != nil {
		h.t.Error(err)
	}
	h.ended <- err
}

// What would break our own promises is a panic, not a broken stream.
func TestOwnMistakesPanic(t *testing.T) {
	l := newLoop(t, loop.Pool)
	fds := sockets(t, 0)
	defer unix.Close(fds[1])
	c := attach(t, l, fds[0], newProbe(), Config{})
	for name, m := range map[string]*Msg{
		"too long":       {Payload: [][]byte{make([]byte, MaxPayload+1)}},
		"too many views": {Payload: make([][]byte, MaxViews+1)},
		"wrong sums":     {Payload: [][]byte{make([]byte, 5000)}, Sums: make([]byte, 8)},
		"queued":         {queued: true},
	} {
		l.Call(func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: sent", name)
				}
			}()
			c.Send(m)
		})
	}
}
