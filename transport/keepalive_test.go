// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"io"
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

// A peer that only answers pings lives, and so does one that only pings.
func TestPingsKeepAlive(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, q := newProbe(), newProbe()
		slow := Config{KeepAlive: 20 * time.Millisecond, Silence: 60 * time.Millisecond}
		a := attach(t, l, fds[0], p, quick)
		b := attach(t, l, fds[1], q, slow)
		until(t, "20 pings and answers", func() bool {
			return len(p.ended)+len(q.ended) > 0 || b.Counters().Read().FramesIn > 20
		})
		if len(p.ended)+len(q.ended) > 0 {
			t.Fatal("a connection ended though its peer lives")
		}
		if n := a.Counters().Read(); n.FramesIn == 0 || len(p.frames)+len(q.frames) != 0 {
			t.Errorf("%+v; pings reached a handler: %d", n, len(p.frames)+len(q.frames))
		}
	})
}

// Goal: a connection without memory neither judges its peer nor looks hung to
// it. Method: a raw peer says nothing further and counts the pings that come.
func TestPausedIsNotHung(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, peer := newProbe(), raw(t, fds[1])
		full := true
		p.incoming = func(*Conn, *Header) bool { return !full }
		c := attach(t, l, fds[0], p, quick)
		m := &Msg{Header: Header{Op: OpRead, ID: 9}}
		if _, err := peer.Write(wire(m)); err != nil {
			t.Fatal(err)
		}
		for range 20 {
			if g := readFrame(t, peer); g.h.Op != OpPing {
				t.Fatalf("came %+v", g.h)
			}
		}
		if len(p.ended) > 0 {
			t.Fatalf("closed with %v", p.end(t))
		}
		l.Call(func() { full = false; c.Resume() })
		same(t, p.next(t), m)
		if err := p.end(t); !errors.Is(err, ErrHung) { // now it is judged again
			t.Fatalf("closed with %v", err)
		}
	})
}

// Goal: who only receives, without a pause, still shows that it lives. Method: a
// raw peer trickles a large payload for as long as it takes to hear ten pings.
func TestReceiverSpeaks(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 0)
		p, peer := newProbe(), raw(t, fds[1])
		c := attach(t, l, fds[0], p, quick)
		stream := wire(message(rand.New(rand.NewPCG(1, 1)), 1, MaxPayload, 1))
		heard := make(chan bool)
		go func() {
			defer close(heard)
			b := make([]byte, 10*HeaderSize)
			if _, err := io.ReadFull(peer, b); err != nil {
				t.Error(err)
			}
		}()
		for n := range stream {
			if _, err := peer.Write(stream[n : n+1]); err != nil {
				t.Fatal(err)
			}
			until(t, "the byte to arrive", func() bool {
				return c.Counters().Read().BytesIn > uint64(n)
			})
			select {
			case <-heard:
				return
			default:
			}
		}
		t.Fatal("not heard in all that time")
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
