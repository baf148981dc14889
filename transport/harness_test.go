// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// patience bounds every wait of a test; it is only reached by a failure.
const patience = 20 * time.Second

// forEngines runs f on a running loop of each engine that this kernel has.
func forEngines(t *testing.T, f func(t *testing.T, l *loop.Loop)) {
	t.Helper()
	for _, e := range []loop.Engine{loop.Uring, loop.Pool} {
		t.Run(e.String(), func(t *testing.T) {
			if l := newLoop(t, e); l != nil {
				f(t, l)
			}
		})
	}
}

// newLoop is nil where the kernel forbids the engine.
func newLoop(t testing.TB, e loop.Engine) *loop.Loop {
	t.Helper()
	l, err := loop.New(loop.Options{Engine: e, Name: t.Name()})
	if e == loop.Uring && errors.Is(err, loop.ErrEngine) {
		t.Logf("only the pool engine is tested: %v", err)
		return nil
	}
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	t.Cleanup(func() { l.Close() })
	return l
}

// sockets is a connected pair of stream sockets with the given kernel buffers
// (0: as they come).
func sockets(t testing.TB, buffer int) [2]int {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range fds {
		if buffer == 0 {
			break
		}
		if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, buffer); err != nil {
			t.Fatal(err)
		}
	}
	return fds
}

// raw makes a net.Conn of a socket: a peer that can say anything.
func raw(t testing.TB, fd int) net.Conn {
	t.Helper()
	f := os.NewFile(uintptr(fd), "peer")
	nc, err := net.FileConn(f)
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	t.Cleanup(func() { nc.Close() })
	if err := nc.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	return nc
}

// got is a copy of a frame that arrived.
type got struct {
	h       Header
	sums    []byte
	payload []byte
}

// probe is a handler that copies what comes to channels. Its hooks run on the
// loop.
type probe struct {
	frames chan got
	ended  chan error
	views  [][]byte // of the frame being received
	// split is how long the views are that Incoming gives; 0: one for all.
	split    int
	opened   func(c *Conn)
	incoming func(c *Conn, h *Header) bool
	frame    func(c *Conn, h *Header)
	closes   int
}

func newProbe() *probe {
	return &probe{frames: make(chan got, 4096), ended: make(chan error, 4)}
}

func (p *probe) Opened(c *Conn) {
	if p.opened != nil {
		p.opened(c)
	}
}

func (p *probe) Incoming(c *Conn, h *Header) ([][]byte, bool) {
	if p.incoming != nil && !p.incoming(c, h) {
		return nil, false
	}
	p.views = nil
	for n := int(h.Payload); n > 0; {
		k := n
		if p.split > 0 {
			k = min(n, max(p.split, (int(h.Payload)+MaxViews-1)/MaxViews))
		}
		p.views = append(p.views, make([]byte, k))
		n -= k
	}
	return p.views, true
}

func (p *probe) Frame(c *Conn, h *Header, sums []byte) {
	p.frames <- got{*h, bytes.Clone(sums), bytes.Join(p.views, nil)}
	p.views = nil
	if p.frame != nil {
		p.frame(c, h)
	}
}

func (p *probe) Closed(_ *Conn, err error) {
	p.closes++
	p.ended <- err
}

func (p *probe) next(t testing.TB) got {
	t.Helper()
	select {
	case g := <-p.frames:
		return g
	case err := <-p.ended:
		p.ended <- err
		t.Fatalf("connection ended: %v", err)
	case <-time.After(patience):
		t.Fatal("no frame came")
	}
	return got{}
}

func (p *probe) end(t testing.TB) error {
	t.Helper()
	select {
	case err := <-p.ended:
		return err
	case <-time.After(patience):
		t.Fatal("the connection did not end")
	}
	return nil
}

// attach makes a connection on l, closed with the test.
func attach(t testing.TB, l *loop.Loop, fd int, h Handler, cfg Config) *Conn {
	t.Helper()
	var c *Conn
	l.Call(func() { c = NewConn(l, fd, h, cfg) })
	t.Cleanup(func() { l.Call(func() { c.Close(nil) }) })
	return c
}

// sent is a Sender that collects the outcomes.
type sent struct{ outcomes chan error }

func newSent() *sent { return &sent{make(chan error, 4096)} }

func (s *sent) MsgSent(_ *Msg, err error) { s.outcomes <- err }

func (s *sent) next(t testing.TB) error {
	t.Helper()
	select {
	case err := <-s.outcomes:
		return err
	case <-time.After(patience):
		t.Fatal("MsgSent did not come")
	}
	return nil
}

// until waits for a counter without sleeping through it.
func until(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(patience); !ok(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

// message is a request with a payload of n bytes in pieces, and its checksums.
func message(rng *rand.Rand, id uint64, n, pieces int) *Msg {
	m := &Msg{Header: Header{Op: OpWrite, ID: id, Chunk: rng.Uint64(), Length: uint32(n)}}
	if n == 0 {
		m.Header.Op = OpRead
		return m
	}
	b := make([]byte, n+8)
	for i := 0; i < n; i += 8 {
		binary.LittleEndian.PutUint64(b[i:], rng.Uint64())
	}
	b = b[:n]
	m.Sums = BlockSums(make([]byte, 8*Blocks(n)), b)
	for ; pieces > 1 && len(b) > 1; pieces-- {
		k := 1 + rng.IntN(len(b)-1)
		m.Payload = append(m.Payload, b[:k])
		b = b[k:]
	}
	m.Payload = append(m.Payload, b)
	return m
}

// wire is what m looks like on the wire.
func wire(m *Msg) []byte {
	h := m.Header
	p := bytes.Join(m.Payload, nil)
	h.Payload, h.Sums = uint32(len(p)), uint16(len(m.Sums)/8)
	b := make([]byte, HeaderSize)
	h.Encode(b)
	return append(append(b, m.Sums...), p...)
}

// same checks that a frame is what was sent.
func same(t testing.TB, g got, m *Msg) {
	t.Helper()
	want := m.Header
	p := bytes.Join(m.Payload, nil)
	want.Payload, want.Sums = uint32(len(p)), uint16(len(m.Sums)/8)
	if g.h != want {
		t.Fatalf("header %+v, want %+v", g.h, want)
	}
	if !bytes.Equal(g.sums, m.Sums) || !bytes.Equal(g.payload, p) {
		t.Fatalf("frame %d: the bytes differ", g.h.ID)
	}
}

// readFrame reads one frame from a raw peer's side.
func readFrame(t testing.TB, r io.Reader) got {
	t.Helper()
	var g got
	b := make([]byte, HeaderSize)
	if _, err := io.ReadFull(r, b); err != nil {
		t.Fatal(err)
	}
	if err := g.h.Decode(b); err != nil {
		t.Fatal(err)
	}
	g.sums, g.payload = make([]byte, 8*int(g.h.Sums)), make([]byte, g.h.Payload)
	if _, err := io.ReadFull(r, g.sums); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(r, g.payload); err != nil {
		t.Fatal(err)
	}
	return g
}
