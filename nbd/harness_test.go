// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/pojntfx/go-nbd/pkg/protocol"

	"braid/transport/bio"
	"braid/transport/bio/memdev"
	"braid/transport/buf"
	"braid/transport/loop"
)

// patience is how long a test waits for anything.
const patience = 20 * time.Second

// rig is a server over memory devices, with a socket.
type rig struct {
	t      testing.TB
	loop   *loop.Loop
	pool   *buf.Pool
	arena  *Arena
	server *Server
	path   string
	dev    *memdev.Device // of the first export
	port   *Port
	ports  []*Port
	ended  chan error // why connections ended
}

type rigOptions struct {
	device    memdev.Options
	consumers []buf.Consumer
	server    ServerOptions
	readOnly  bool
	engine    loop.Engine
}

const testSize = 64 << 20

func newRig(t testing.TB, o rigOptions) *rig {
	t.Helper()
	if o.device.Size == 0 {
		o.device.Size = testSize
	}
	if o.consumers == nil {
		o.consumers = Consumers(16)
	}
	l, err := loop.New(loop.Options{Name: "nbd-test", Engine: o.engine})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	pool, err := buf.NewPool(o.consumers...)
	if err != nil {
		t.Fatal(err)
	}
	pool.Poison()
	r := &rig{t: t, loop: l, pool: pool, arena: NewArena(pool), ended: make(chan error, 4096)}
	o.server.Ended = func(_ string, err error) { r.ended <- err }
	r.server = NewServer(o.server)
	r.dev = memdev.New(l, o.device)
	r.port = r.export("disk", r.dev, o.readOnly)
	r.path = filepath.Join(t.TempDir(), "nbd.sock")
	ln, err := net.Listen("unix", r.path)
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- r.server.Serve(ln) }()
	t.Cleanup(func() {
		r.server.Stop()
		l.Call(func() { r.dev.SetHold(nil); r.dev.Release() })
		for _, p := range r.ports {
			done := make(chan struct{})
			l.Call(func() { p.Abort(); p.Drain(func() { close(done) }) })
			r.await("the end of all connections", done)
			l.Call(p.Close)
		}
		if err := errors.Join(<-served, r.server.Close()); err != nil {
			t.Error(err)
		}
		if n := pool.Outstanding(); n != 0 {
			t.Errorf("%d buffers are still out", n)
		}
		if n := r.server.Connections(); n != 0 {
			t.Errorf("the server counts %d connections at the end", n)
		}
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	return r
}

func (r *rig) export(name string, dev Device, readOnly bool) *Port {
	r.t.Helper()
	p := NewPort(r.loop, r.arena, dev)
	r.ports = append(r.ports, p)
	err := r.server.Add(&Export{Name: name, Description: "test " + name, Port: p, ReadOnly: readOnly})
	if err != nil {
		r.t.Fatal(err)
	}
	return p
}

func (r *rig) await(what string, c <-chan struct{}) {
	r.t.Helper()
	timer := time.NewTimer(patience)
	defer timer.Stop()
	select {
	case <-c:
	case <-timer.C:
		r.t.Fatalf("waited %v for %s", patience, what)
	}
}

// until polls a condition on the loop.
func (r *rig) until(what string, condition func() bool) {
	r.t.Helper()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	end := time.Now().Add(patience)
	for {
		ok := false
		r.loop.Call(func() { ok = condition() })
		if ok {
			return
		}
		if time.Now().After(end) {
			r.t.Fatalf("waited %v until %s", patience, what)
		}
		<-tick.C
	}
}

// atRest waits until no request is left and checks that no buffer is out.
func (r *rig) atRest() {
	r.t.Helper()
	r.until("no request is left and no buffer is out", func() bool {
		for _, p := range r.ports {
			if n, _ := p.InFlight(); n != 0 {
				return false
			}
		}
		return r.pool.Outstanding() == 0
	})
}

// peer is a client that speaks the bytes of the protocol.
type peer struct {
	t    testing.TB
	conn net.Conn
	next uint64 // cookie
}

// dial connects and reads the server's greeting.
func (r *rig) dial() *peer {
	r.t.Helper()
	conn, err := net.Dial("unix", r.path)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = conn.Close() })
	p := &peer{t: r.t, conn: conn, next: 0x1122334455660000}
	p.deadline()
	return p
}

func (p *peer) deadline() {
	p.t.Helper()
	if err := p.conn.SetDeadline(time.Now().Add(patience)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) send(parts ...any) {
	p.t.Helper()
	p.deadline()
	if _, err := p.conn.Write(pack(parts...)); err != nil {
		p.t.Fatalf("send to the server: %v", err)
	}
}

// pack writes integers big-endian and strings and bytes as they are.
func pack(parts ...any) []byte {
	var b bytes.Buffer
	for _, part := range parts {
		switch x := part.(type) {
		case string:
			b.WriteString(x)
		case []byte:
			b.Write(x)
		default:
			if err := binary.Write(&b, binary.BigEndian, x); err != nil {
				panic(err)
			}
		}
	}
	return b.Bytes()
}

func (p *peer) read(n int) []byte {
	p.t.Helper()
	p.deadline()
	b := make([]byte, n)
	if _, err := io.ReadFull(p.conn, b); err != nil {
		p.t.Fatalf("read %d bytes from the server: %v", n, err)
	}
	return b
}

// expectClosed checks that the server hangs up, whatever it says before.
func (p *peer) expectClosed() {
	p.t.Helper()
	_, err := io.Copy(io.Discard, p.conn)
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		p.t.Fatal("the server keeps the connection open")
	}
}

func (p *peer) greet(flags uint32) {
	p.t.Helper()
	want := pack(uint64(0x4e42444d41474943), uint64(0x49484156454F5054), uint16(3))
	if got := p.read(18); !bytes.Equal(got, want) {
		p.t.Fatalf("greeting % x", got)
	}
	p.send(flags)
}

func (p *peer) option(id uint32, payload ...any) {
	p.t.Helper()
	b := pack(payload...)
	p.send(uint64(0x49484156454F5054), id, uint32(len(b)), b)
}

// reply reads an option reply.
func (p *peer) reply(id uint32) (kind uint32, payload []byte) {
	p.t.Helper()
	h := p.read(20)
	be := binary.BigEndian
	if be.Uint64(h) != protocol.NEGOTIATION_MAGIC_REPLY || be.Uint32(h[8:]) != id {
		p.t.Fatalf("option reply % x, want one to option %d", h, id)
	}
	return be.Uint32(h[12:]), p.read(int(be.Uint32(h[16:])))
}

// expect reads an option reply of a kind.
func (p *peer) expect(id, kind uint32) []byte {
	p.t.Helper()
	got, payload := p.reply(id)
	if got != kind {
		p.t.Fatalf("option %d: reply %#x (%q), want %#x", id, got, payload, kind)
	}
	return payload
}

func goPayload(name string, requests ...uint16) []byte {
	return pack(uint32(len(name)), name, uint16(len(requests)), requests)
}

// enter negotiates an export with GO. It returns size and flags.
func (p *peer) enter(name string) (size uint64, flags uint16) {
	p.t.Helper()
	p.option(optGo, goPayload(name))
	b := p.expect(optGo, repInfo)
	size, flags = binary.BigEndian.Uint64(b[2:]), binary.BigEndian.Uint16(b[10:])
	p.expect(optGo, repInfo)
	p.expect(optGo, repAck)
	return size, flags
}

// simple connects without structured replies, structured with them and with
// base:allocation.
func (r *rig) simple() *peer {
	r.t.Helper()
	p := r.dial()
	p.greet(3)
	p.enter("disk")
	return p
}

func (r *rig) structured() *peer {
	r.t.Helper()
	p := r.dial()
	p.greet(3)
	p.option(optStructuredReply)
	p.expect(optStructuredReply, repAck)
	p.option(optSetMetaContext, uint32(4), "disk", uint32(1), uint32(15), contextAllocation)
	p.expect(optSetMetaContext, repMetaContext)
	p.expect(optSetMetaContext, repAck)
	p.enter("disk")
	return p
}

// request sends a request and returns its cookie.
func (p *peer) request(cmd, flags uint16, off uint64, length uint32, payload []byte) uint64 {
	p.t.Helper()
	p.next++
	h := requestHeader{flags: flags, cmd: cmd, cookie: p.next, off: off, length: length}
	b := make([]byte, requestHeaderSize, requestHeaderSize+len(payload))
	h.encode(b)
	p.send(append(b, payload...))
	return p.next
}

// answer reads a simple reply.
func (p *peer) answer() (cookie uint64, errno uint32) {
	p.t.Helper()
	b := p.read(simpleReplySize)
	be := binary.BigEndian
	if be.Uint32(b) != protocol.TRANSMISSION_MAGIC_REPLY {
		p.t.Fatalf("simple reply % x", b)
	}
	return be.Uint64(b[8:]), be.Uint32(b[4:])
}

// do sends a request that is answered without data and returns its error number.
func (p *peer) do(cmd, flags uint16, off uint64, length uint32, payload []byte) uint32 {
	p.t.Helper()
	want := p.request(cmd, flags, off, length, payload)
	cookie, errno := p.answer()
	if cookie != want {
		p.t.Fatalf("reply to %#x, want %#x", cookie, want)
	}
	return errno
}

func (p *peer) mustDo(cmd, flags uint16, off uint64, length uint32, payload []byte) {
	p.t.Helper()
	if errno := p.do(cmd, flags, off, length, payload); errno != 0 {
		p.t.Fatalf("command %d [%d,+%d): error %d", cmd, off, length, errno)
	}
}

func (p *peer) write(off uint64, b []byte) {
	p.t.Helper()
	p.mustDo(cmdWrite, 0, off, uint32(len(b)), b)
}

// readSimple reads a range on a connection without structured replies.
func (p *peer) readSimple(off uint64, length uint32) []byte {
	p.t.Helper()
	p.mustDo(cmdRead, 0, off, length, nil)
	return p.read(int(length))
}

// chunk is one chunk of a structured reply.
type chunk struct {
	flags, kind uint16
	payload     []byte
}

// chunks reads a whole structured reply.
func (p *peer) chunks(cookie uint64) []chunk {
	p.t.Helper()
	var out []chunk
	for {
		h := p.read(structuredHeaderSize)
		be := binary.BigEndian
		if be.Uint32(h) != magicStructuredReply || be.Uint64(h[8:]) != cookie {
			p.t.Fatalf("chunk % x, want one of %#x", h, cookie)
		}
		c := chunk{flags: be.Uint16(h[4:]), kind: be.Uint16(h[6:])}
		c.payload = p.read(int(be.Uint32(h[16:])))
		out = append(out, c)
		if c.flags&chunkFlagDone != 0 {
			return out
		}
	}
}

// readStructured reads a range and joins its chunks.
func (p *peer) readStructured(flags uint16, off uint64, length uint32) []byte {
	p.t.Helper()
	out := make([]byte, length)
	covered := 0
	for _, c := range p.chunks(p.request(cmdRead, flags, off, length, nil)) {
		switch c.kind {
		case chunkNone:
		case chunkOffsetData:
			at := binary.BigEndian.Uint64(c.payload) - off
			covered += copy(out[at:], c.payload[8:])
		default:
			p.t.Fatalf("read [%d,+%d): chunk of type %#x: %s", off, length, c.kind, c.payload)
		}
	}
	if covered != int(length) {
		p.t.Fatalf("read [%d,+%d): %d bytes came", off, length, covered)
	}
	return out
}

// chunkErrno is the error number of a reply's error chunks, 0 without any.
func chunkErrno(chunks []chunk) (errno uint32, text string) {
	for _, c := range chunks {
		if c.kind&(1<<15) != 0 {
			n := binary.BigEndian.Uint16(c.payload[4:])
			return binary.BigEndian.Uint32(c.payload), string(c.payload[6 : 6+n])
		}
	}
	return 0, ""
}

// period is the length of the pattern: a prime, so that it fits no block size.
const period = 65_521

// bytesAt is a pattern that depends on the offset, without zeroes.
func bytesAt(off uint64, n int) []byte {
	var table [period]byte
	for i := range table {
		table[i] = byte(i*7+i>>8*31)%251 + 1
	}
	b := make([]byte, 0, n)
	for at := int(off % period); len(b) < n; at = 0 {
		b = append(b, table[at:min(period, at+n-len(b))]...)
	}
	return b
}

func mustEqual(t *testing.T, what string, got, want []byte) {
	t.Helper()
	if bytes.Equal(got, want) {
		return
	}
	if len(got) != len(want) {
		t.Fatalf("%s: %d bytes, want %d", what, len(got), len(want))
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d is %#02x, want %#02x", what, i, got[i], want[i])
		}
	}
}

// failing completes every request of an operation with err.
func failing(op bio.Op, err error) func(*bio.Request) error {
	return func(r *bio.Request) error {
		if r.Op == op {
			return fmt.Errorf("test: %w", err)
		}
		return nil
	}
}
