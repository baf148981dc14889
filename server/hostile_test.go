// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"braid/transport"
	"braid/transport/loop"
)

// raw is a connection that has said hello and now sends what it likes.
func (r *rig) raw() net.Conn {
	r.t.Helper()
	nc, err := net.Dial("tcp", r.srv.Addr().String())
	if err != nil {
		r.t.Fatal(err)
	}
	hello := transport.Hello{VersionMin: transport.VersionMin, VersionMax: transport.VersionMax,
		Cluster: r.manager.cluster, Device: r.uuids[0], Role: transport.Client}
	var b [transport.HelloReplySize]byte
	hello.Encode(b[:])
	if _, err := nc.Write(b[:transport.HelloSize]); err != nil {
		r.t.Fatal(err)
	}
	if _, err := nc.Read(b[:]); err != nil {
		r.t.Fatal(err)
	}
	return nc
}

// frame encodes a header.
func frame(h transport.Header) []byte {
	b := make([]byte, transport.HeaderSize)
	h.Encode(b)
	return b
}

// Goal: whatever a client sends costs its own connection and nothing else: the
// server lives, another client works on, and no slot or buffer stays out.
func TestHostileClients(t *testing.T) {
	const seed = 20240607
	rng := rand.New(rand.NewPCG(seed, 1))
	garbage := make([]byte, 1<<16)
	for i := range garbage {
		garbage[i] = byte(rng.Uint32())
	}
	write := writeHeader(0, 0, 1<<20, 0)
	write.Payload, write.Sums = 1<<20, 256
	wrongSum := frame(write)
	binary.LittleEndian.PutUint32(wrongSum[60:], 1)
	huge := write
	huge.Payload = 1<<32 - 1
	asReply := readHeader(0, 0, 4096)
	asReply.Flags = transport.FlagReply
	for _, c := range []struct {
		name  string
		bytes []byte
	}{
		{"garbage", garbage},
		{"header with a wrong checksum", wrongSum},
		{"huge payload", frame(huge)},
		{"a reply", frame(asReply)},
		{"half a header", frame(write)[:30]},
		{"header without its sums", frame(write)},
		{"half a payload", append(append(frame(write), make([]byte, 256*8)...), garbage...)},
		{"unopened writes, then gone", bytes.Repeat(append(append(frame(writeN(4096)), make([]byte, 8)...),
			make([]byte, 4096)...), 50)},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := newMemDisk(testDiskSize)
			format(t, d)
			r := startRig(t, loop.Auto, newFakeManager(), d)
			good := r.dial(0)
			if s := good.open(1); s != transport.StatusOK {
				t.Fatalf("open: %v", s)
			}
			for range 4 {
				nc := r.raw()
				if _, err := nc.Write(c.bytes); err != nil {
					t.Logf("the server was faster: %v", err)
				}
				if c.name == "garbage" || c.name == "a reply" || c.name == "huge payload" {
					_ = nc.SetReadDeadline(time.Now().Add(patience))
					if n, err := nc.Read(make([]byte, 1)); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
						t.Errorf("the connection was not closed: read %d, %v", n, err)
					}
				}
				_ = nc.Close()
			}
			good.write(0, 0, pattern(1, 4096))
			good.flush()
			dev := r.srv.devices[0]
			eventually(t, "all slots and buffers are back", func() bool {
				busy := 0
				dev.loop.Call(func() { busy = dev.slots.busy })
				return busy == 0 && dev.pool.Outstanding() == 0 && dev.stats.conns.Load() == 1
			})
			good.close()
			r.stop()
		})
	}
}

// Goal: no combination of fields in a well-formed frame harms the server. Method:
// random frames with right checksums, on an open session, each answered once; the
// seed is fixed and named.
func TestRandomFrames(t *testing.T) {
	const seed = 4711
	rng := rand.New(rand.NewPCG(seed, 2))
	pick := func(values ...uint64) uint64 {
		if rng.IntN(8) == 0 {
			return rng.Uint64()
		}
		return values[rng.IntN(len(values))]
	}
	d := newMemDisk(testDiskSize)
	format(t, d)
	r := startRig(t, loop.Auto, newFakeManager(), d)
	p, q := r.dial(0), r.dialLink(0, 1)
	for _, x := range []*peer{p, q} {
		if s := x.open(1); s != transport.StatusOK {
			t.Fatalf("open: %v", s)
		}
	}
	statuses := map[transport.Status]int{}
	for range 3000 {
		h := transport.Header{Op: transport.Op(1 + rng.IntN(14)), PG: uint32(pick(uint64(testPG))),
			Epoch: uint32(pick(epoch)), Chunk: pick(0, 1, 2, 3), Offset: uint32(pick(0, 4096, 65536, 1<<20-4096)),
			Length: uint32(pick(0, 4096, 8192, 65536, 1<<20)), Interval: pick(0, 1, 2),
			Session: uint32(pick(uint64(p.session))), Flags: uint8(rng.IntN(4)) << 1}
		if h.Op == transport.OpPing || h.Op == transport.OpClose {
			continue
		}
		var data []byte
		if h.Op == transport.OpWrite || rng.IntN(10) == 0 {
			data = pattern(rng.IntN(100), []int{0, 24, 4096, 8192, 65536}[rng.IntN(5)])
		}
		id := p.send(h, data)
		rep := p.receive()
		if rep.ID != id || rep.Op != h.Op {
			t.Fatalf("seed %d: reply %+v to %+v", seed, rep.Header, h)
		}
		statuses[rep.Status]++
	}
	t.Logf("answers by status: %v", statuses)
	q.write(5, 0, pattern(1, 4096))
	q.flush()
	if got := q.read(5, 0, 4096); !bytes.Equal(got, pattern(1, 4096)) {
		t.Error("the server answers, but wrongly")
	}
	p.close()
	q.close()
	r.stop()
}

func writeN(n int) transport.Header {
	h := writeHeader(0, 0, n, 0)
	h.Payload, h.Sums = uint32(n), uint16(n/4096)
	return h
}

// Goal: when buffers run out connections wait and nothing else happens. Method:
// two clients send many more whole chunks at once than there are buffers.
func TestExhaustedPoolPauses(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		d := newMemDisk(testDiskSize)
		format(t, d)
		r := startRig(t, e, newFakeManager(), d)
		p, q := r.dial(0), r.dialLink(0, 1)
		for _, x := range []*peer{p, q} {
			if s := x.open(1); s != transport.StatusOK {
				t.Fatalf("open: %v", s)
			}
		}
		release := d.hangFlushes()
		p.send(transport.Header{Op: transport.OpFlush, Interval: 1}, nil)
		want := pattern(7, 1<<20)
		const each = 20
		for i := range each {
			p.send(writeHeader(uint64(i), 0, len(want), 0), want)
			q.send(writeHeader(uint64(each+i), 0, len(want), 0), want)
		}
		eventually(t, "a pause", func() bool { return r.srv.devices[0].stats.pauses.Load() > 0 })
		release()
		for _, x := range []*peer{p, q} {
			n := each
			if x == p {
				n++
			}
			for range n {
				if rep := x.receive(); rep.Status != transport.StatusOK {
					t.Fatalf("op %d: %v", rep.Op, rep.Status)
				}
			}
		}
		if got := q.read(each+3, 0, len(want)); !bytes.Equal(got, want) {
			t.Error("wrong content")
		}
		p.close()
		q.close()
		r.stop()
	})
}

// Goal: a clean stop under load answers or drops each request, and leaves no
// buffer, goroutine or unclean device behind.
func TestStopUnderLoad(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		d := newMemDisk(testDiskSize)
		format(t, d)
		m := newFakeManager()
		r := startRig(t, e, m, d)
		p := r.dial(0)
		if s := p.open(1); s != transport.StatusOK {
			t.Fatalf("open: %v", s)
		}
		data := pattern(3, 16<<10)
		for i := range 200 {
			p.send(writeHeader(uint64(i%8), i%32*len(data), len(data), 0), data)
		}
		p.receive()
		r.stop()
		<-p.ended
		p.ended <- nil
		p.close()
		r = startRig(t, e, m, d.reopened())
		if !r.srv.devices[0].wasClean {
			t.Error("the device was not marked clean")
		}
		r.stop()
	})
}
