// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"math/rand/v2"
	"testing"
	"time"

	"braid/transport/loop"
)

// quick keep-alive for tests: a ping after 10 ms, hung after 50 ms.
var quick = Config{KeepAlive: 10 * time.Millisecond, Silence: 50 * time.Millisecond}

// Goal: a peer that is connected and silent is given up, and was asked before.
func TestHungPeer(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, peer := newProbe(), raw(t, fds[1])
		start := time.Now()
		c := attach(t, l, fds[0], p, quick)
		if err := p.end(t); !errors.Is(err, ErrHung) {
			t.Fatalf("closed with %v", err)
		}
		if d := time.Since(start); d < quick.Silence {
			t.Errorf("given up after %v", d)
		}
		if g := readFrame(t, peer); g.h.Op != OpPing || g.h.Flags != 0 {
			t.Errorf("before the end came %+v", g.h)
		}
		if n := c.Counters().Read().Closed[ReasonHung]; n != 1 {
			t.Errorf("counted %d times", n)
		}
	})
}

// byHand is a keep-alive whose ticks are the test's: tick calls them.
var byHand = Config{KeepAlive: time.Hour, Silence: 4 * time.Hour}

func tick(l *loop.Loop, c *Conn) { l.Call(func() { c.tick(nil) }) }

// Goal: a peer that only answers pings lives. Method: far more ticks than the
// limit, each only after the answer to the ping before has come.
func TestPingsKeepAlive(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, q := newProbe(), newProbe()
		a := attach(t, l, fds[0], p, byHand)
		b := attach(t, l, fds[1], q, byHand)
		tick(l, a) // the first counts as heard
		for answers := range uint64(20) {
			// The peer's answer is heard in one tick, so the ping comes in the next.
			tick(l, a)
			tick(l, a)
			until(t, "the answer", func() bool { return a.Counters().Read().FramesIn > answers })
		}
		if len(p.ended)+len(q.ended) > 0 {
			t.Fatal("a connection ended though its peer lives")
		}
		if n := b.Counters().Read(); n.FramesIn == 0 || len(p.frames)+len(q.frames) != 0 {
			t.Errorf("%+v; pings reached a handler: %d", n, len(p.frames)+len(q.frames))
		}
	})
}

// Goal: a connection without memory neither judges its peer nor looks hung to
// it. Method: a raw peer says nothing further and hears a ping for each tick.
func TestPausedIsNotHung(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, peer := newProbe(), raw(t, fds[1])
		full := true
		p.incoming = func(*Conn, *Header) bool { return !full }
		c := attach(t, l, fds[0], p, byHand)
		m := &Msg{Header: Header{Op: OpRead, ID: 9}}
		if _, err := peer.Write(wire(m)); err != nil {
			t.Fatal(err)
		}
		until(t, "the pause", func() bool { return c.Counters().Read().Pauses == 1 })
		tick(l, c) // heard in this one
		for range 20 {
			tick(l, c)
			if g := readFrame(t, peer); g.h.Op != OpPing || g.h.Flags != 0 {
				t.Fatalf("came %+v", g.h)
			}
		}
		if len(p.ended) > 0 {
			t.Fatalf("closed with %v", p.end(t))
		}
		l.Call(func() { full = false; c.Resume() })
		same(t, p.next(t), m)
		for range 5 { // now it is judged again
			tick(l, c)
		}
		if err := p.end(t); !errors.Is(err, ErrHung) {
			t.Fatalf("closed with %v", err)
		}
	})
}

// Goal: who only receives, without a pause, still shows that it lives. Method: a
// raw peer trickles a large payload, a byte a tick, and hears pings: at least
// one in two ticks, since a ping is something said.
func TestReceiverSpeaks(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, peer := newProbe(), raw(t, fds[1])
		c := attach(t, l, fds[0], p, byHand)
		stream := wire(message(rand.New(rand.NewPCG(1, 1)), 1, MaxPayload, 1))
		for n := range 20 {
			if _, err := peer.Write(stream[n : n+1]); err != nil {
				t.Fatal(err)
			}
			until(t, "the byte to arrive", func() bool {
				return c.Counters().Read().BytesIn > uint64(n)
			})
			tick(l, c)
			if n%2 == 1 {
				if g := readFrame(t, peer); g.h.Op != OpPing || g.h.Flags != 0 {
					t.Fatalf("came %+v", g.h)
				}
				until(t, "the end of its send", func() bool {
					return c.Counters().Read().FramesOut == uint64(n+1)/2
				})
			}
		}
	})
}

// Many pings at once are answered, without a queue that grows with them.
func TestPingFlood(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 1<<20)
		p, peer := newProbe(), raw(t, fds[1])
		c := attach(t, l, fds[0], p, Config{})
		var flood []byte
		for i := range 5000 {
			flood = append(flood, wire(&Msg{Header: Header{Op: OpPing, ID: uint64(i)}})...)
		}
		m := &Msg{Header: Header{Op: OpRead, ID: 1}}
		if _, err := peer.Write(append(flood, wire(m)...)); err != nil {
			t.Fatal(err)
		}
		same(t, p.next(t), m)
		if g := readFrame(t, peer); g.h.Op != OpPing || g.h.Flags != FlagReply {
			t.Fatalf("came %+v", g.h)
		}
		l.Call(func() {})
		if n := c.Counters().Read().FramesOut; n > 1000 {
			t.Errorf("%d answers to 5000 pings in a few reads", n)
		}
	})
}
