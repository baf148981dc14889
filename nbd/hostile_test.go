// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"math/rand"
	"net"
	"slices"
	"testing"

	"braid/transport/bio"
	"braid/transport/buf"
)

// Garbage, absurd lengths and clients that vanish cost their own connection: a
// bystander's requests are answered throughout, and no buffer stays out.
func TestHostileClients(t *testing.T) {
	r := newRig(t, rigOptions{})
	bystander := r.simple()
	bystander.write(0, bytesAt(0, 100_000))
	for name, attack := range map[string]func(p *peer){
		"garbage": func(p *peer) {
			b := make([]byte, 1000)
			rand.New(rand.NewSource(1)).Read(b)
			p.send(b)
			p.expectClosed()
		},
		"absurd write": func(p *peer) {
			p.request(cmdWrite, 0, 0, 0xffff_ffff, nil)
			p.expectClosed()
		},
		"gone in a header": func(p *peer) { p.send(make([]byte, 5)); hangUp(p) },
		"gone in a small payload": func(p *peer) {
			p.request(cmdWrite, 0, 32<<20, 4096, make([]byte, 100))
			hangUp(p)
		},
		"gone in a large payload": func(p *peer) {
			p.request(cmdWrite, 0, 32<<20, 8<<20, make([]byte, 2<<20+77))
			hangUp(p)
		},
		"gone in a refused payload": func(p *peer) {
			p.request(cmdWrite, 0, testSize, 1<<20, make([]byte, 77))
			hangUp(p)
		},
		"gone before its replies": func(p *peer) {
			for i := range 20 {
				p.request(cmdRead, 0, uint64(i)<<20, 1<<20, nil)
			}
			hangUp(p)
		},
		"half closed": func(p *peer) {
			p.request(cmdRead, 0, 0, 4<<20, nil)
			_ = p.conn.(*net.UnixConn).CloseWrite()
			p.expectClosed()
		},
	} {
		t.Run(name, func(t *testing.T) {
			for _, connect := range []func() *peer{r.simple, r.structured} {
				p := connect()
				p.t = t
				attack(p)
				mustEqual(t, "bystander's read", bystander.readSimple(0, 100_000), bytesAt(0, 100_000))
			}
		})
	}
	r.atRest()
	r.until("only the bystander is connected", func() bool { return r.port.Conns() == 1 })
}

func hangUp(p *peer) { _ = p.conn.Close() }

// A client that vanishes while its requests are at the device: they run on, their
// replies are dropped, the buffers come back.
func TestVanishWithRequestsAtTheDevice(t *testing.T) {
	r := newRig(t, rigOptions{})
	for _, connect := range []func() *peer{r.simple, r.structured} {
		p := connect()
		r.loop.Call(func() { r.dev.SetHold(func(*bio.Request) bool { return true }) })
		p.request(cmdWrite, 0, 0, 3<<20, bytesAt(0, 3<<20))
		p.request(cmdRead, 0, 0, 5<<20, nil)
		p.request(cmdRead, 0, 0, 4096, nil)
		p.request(cmdTrim, 0, 4<<20, 60<<20, nil)
		p.request(cmdFlush, 0, 0, 0, nil)
		r.until("all is at the device", func() bool { n, _ := r.port.InFlight(); return n == 5 })
		hangUp(p)
		r.until("the socket is closed", func() bool { return r.port.Conns() == 0 })
		r.loop.Call(func() {
			if r.pool.Outstanding() == 0 {
				t.Error("the device still has requests, but no buffers are out")
			}
			r.dev.SetHold(nil)
			r.dev.Release()
		})
		r.atRest()
		r.until("the connection is forgotten", func() bool { return r.port.conns == nil })
	}
	mustEqual(t, "the write took effect", r.simple().readSimple(0, 1<<20), bytesAt(0, 1<<20))
}

// A client that gives up and comes again with the same requests, over and over
// while the device stands still, does not pile them up: the port stops reading from
// it, and goes on when the device does.
func TestRepeatedRequestsDoNotPileUp(t *testing.T) {
	r := newRig(t, rigOptions{})
	var held []*bio.Request
	hold := func(q *bio.Request) bool {
		held = append(held, q)
		return true
	}
	r.loop.Call(func() { r.dev.SetHold(hold) })
	const each = 20
	for range orphanLimit/each + 4 {
		p := r.simple()
		for range each {
			p.request(cmdFlush, 0, 0, 0, nil)
		}
		// The first of the list is the newest; the port may not have it yet, and then
		// the first is one of those that hung up.
		r.until("its requests are at the device, or refused", func() bool {
			return r.port.Conns() == 1 && (r.port.conns.busy == each || r.port.orphans >= orphanLimit)
		})
		hangUp(p)
		r.until("it is gone", func() bool { return r.port.Conns() == 0 })
	}
	r.loop.Call(func() {
		if n := r.dev.InFlight(); n > orphanLimit+each {
			t.Errorf("%d requests are at the device", n)
		}
		if slices.ContainsFunc(held, func(q *bio.Request) bool { return !q.Gone }) {
			t.Error("the device is not told that nobody waits for a request any more")
		}
	})
	p := r.simple()
	cookie := p.request(cmdFlush, 0, 0, 0, nil)
	r.loop.Call(func() { r.dev.SetHold(nil); r.dev.Release() })
	if c, errno := p.answer(); c != cookie || errno != 0 {
		t.Errorf("reply to %#x, error %d", c, errno)
	}
	r.until("no orphan is left", func() bool { return r.port.orphans == 0 })
	r.atRest()
}

// Random bytes in the transmission phase, cut at random places, from a printed
// seed.
func TestRandomStreams(t *testing.T) {
	r := newRig(t, rigOptions{})
	const seed = 7
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewSource(seed))
	for range 200 {
		p := r.structured()
		for range 1 + rng.Intn(6) {
			h := requestHeader{flags: uint16(rng.Intn(64)), cmd: uint16(rng.Intn(10)), cookie: rng.Uint64(),
				off: uint64(rng.Intn(testSize + 1000)), length: uint32(rng.Intn(200_000))}
			b := make([]byte, requestHeaderSize+rng.Intn(300_000))
			h.encode(b)
			if _, err := p.conn.Write(b[:rng.Intn(len(b)+1)]); err != nil {
				break
			}
		}
		hangUp(p)
	}
	r.atRest()
	mustEqual(t, "read after all", r.simple().readSimple(0, 1), r.simple().readSimple(0, 1))
}

// Two reads that each need most of the pool, and writes that need it piece by
// piece, share it: all end. The pool holds one largest request and little else.
func TestScarceBuffers(t *testing.T) {
	r := newRig(t, rigOptions{consumers: []buf.Consumer{
		{Name: "pieces", Size: dataPiece, Count: MaxPayload/dataPiece + 1},
	}})
	const clients, rounds = 4, 3
	done := make(chan struct{}, clients)
	for i := range clients {
		p := r.simple()
		if i%2 == 1 {
			p = r.structured()
		}
		go func() {
			defer func() { done <- struct{}{} }()
			for k := range rounds {
				if i == 0 {
					p.write(uint64(k), bytesAt(5, MaxPayload))
				} else if i%2 == 1 {
					p.readStructured(uint16(k%2)*cmdFlagDF, uint64(k+1), MaxPayload)
				} else {
					p.readSimple(uint64(k+1), MaxPayload)
				}
			}
		}()
	}
	for range clients {
		c := make(chan struct{})
		go func() { <-done; close(c) }()
		r.await("a client that shares the buffers", c)
	}
	r.atRest()
	if n := r.arena.Waiting(); n != 0 {
		t.Errorf("%d connections still wait", n)
	}
}

// A client that does not read its replies is hung up on when others need the
// buffers, and only then.
func TestStalledClientIsEnded(t *testing.T) {
	r := newRig(t, rigOptions{consumers: []buf.Consumer{
		{Name: "pieces", Size: dataPiece, Count: MaxPayload/dataPiece + 1},
	}})
	sloth := r.structured()
	for range 40 {
		sloth.request(cmdRead, 0, 0, 1<<20, nil)
	}
	r.until("the sloth holds what it may", func() bool { return r.pool.Outstanding() >= 32 })
	p := r.simple()
	got := make(chan struct{})
	go func() { p.readSimple(0, 4<<20); close(got) }()
	r.until("somebody waits", func() bool { return r.arena.Waiting() > 0 })
	// Time is the loop's; making the sloth's last progress old stands for waiting.
	r.loop.Call(func() {
		for c := r.port.conns; c != nil; c = c.next {
			c.tx.progress -= 2 * int64(stallTime)
		}
		r.port.endStalled()
	})
	r.await("the other client's read", got)
	r.until("the sloth is gone", func() bool { return r.port.Conns() == 1 })
}
