// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// listen runs a Listener with accept on a loopback port.
func listen(t *testing.T, s *Listener, accept Accept) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- s.Serve(ln, accept) }()
	t.Cleanup(func() {
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// A refusal reaches the dialing side as a sentinel and a text.
func TestRefusals(t *testing.T) {
	l := newLoop(t, loop.Auto)
	for _, tc := range []struct {
		status HelloStatus
		want   error
	}{
		{HelloWrongCluster, ErrWrongCluster}, {HelloWrongDevice, ErrWrongDevice},
		{HelloVersion, ErrVersion}, {HelloStarting, ErrStarting}, {HelloRefused, ErrRefused},
	} {
		s := &Listener{Counters: new(Counters)}
		addr := listen(t, s, func(Hello) (*loop.Loop, Handler, HelloReply) {
			return nil, nil, HelloReply{Status: tc.status, Text: "because of a test"}
		})
		d := &Dialer{Counters: new(Counters)}
		c, reply, err := d.Dial(context.Background(), l, addr, Hello{Role: Client},
			func(HelloReply) Handler { t.Error("a handler was made"); return nil })
		if oe := (*OpError)(nil); c != nil || !errors.Is(err, tc.want) || !errors.As(err, &oe) {
			t.Fatalf("%v: %v", tc.status, err)
		}
		for _, part := range []string{addr, "because of a test"} {
			if !strings.Contains(err.Error(), part) {
				t.Errorf("message %q lacks %q", err, part)
			}
		}
		if reply.Status != tc.status || d.Counters.Read().Closed[ReasonRefused] != 1 {
			t.Errorf("reply %+v, counted %v", reply, d.Counters.Read().Closed)
		}
		s.Close()
		if n := s.Counters.Read().Closed[ReasonRefused]; n != 1 {
			t.Errorf("the listener counted %d", n)
		}
	}
}

// What the two sides told each other is known to both.
func TestHandshake(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		p, q := newProbe(), newProbe()
		accepted := make(chan *Conn, 1)
		p.opened = func(c *Conn) { accepted <- c }
		s := &Listener{KeepAlive: 10 * time.Millisecond, Counters: new(Counters)}
		addr := listen(t, s, func(h Hello) (*loop.Loop, Handler, HelloReply) {
			return l, p, HelloReply{Incarnation: 77, Features: 6}
		})
		hello := Hello{Features: 3, Cluster: [16]byte{1}, Device: [16]byte{2}, Client: [16]byte{3},
			Role: Peer, Flags: 9}
		c, reply, err := Dial(context.Background(), l, addr, hello, func(r HelloReply) Handler {
			if r.Incarnation != 77 {
				t.Errorf("reply %+v", r)
			}
			return q
		})
		if err != nil {
			t.Fatal(err)
		}
		other := <-accepted
		hello.VersionMin, hello.VersionMax = VersionMin, VersionMax
		if other.Remote != hello || c.Remote != hello || other.Reply != reply || reply.Features != 2 {
			t.Errorf("%+v, %+v; %+v", other.Remote, c.Remote, reply)
		}
		if c.Loop() != l || c.Addr != addr {
			t.Errorf("loop %p, address %s", c.Loop(), c.Addr)
		}
		var noDelay, timeout int
		l.Call(func() {
			noDelay, _ = unix.GetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_NODELAY)
			timeout, _ = unix.GetsockoptInt(c.fd, unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
		})
		if noDelay != 1 || timeout != int(userTimeout.Milliseconds()) {
			t.Errorf("TCP_NODELAY %d, TCP_USER_TIMEOUT %d ms", noDelay, timeout)
		}
		// A Listener's end leaves its connections alone.
		s.Close()
		m := &Msg{Header: Header{Op: OpRead, ID: 4}}
		l.Call(func() { c.Send(m) })
		same(t, p.next(t), m)
		l.Call(func() { c.Close(nil) })
		if err := p.end(t); !errors.Is(err, ErrPeerClosed) {
			t.Errorf("the accepting side ended with %v", err)
		}
		if n := s.Counters.Read(); n.Opened != 1 || n.Closed[ReasonPeer] != 1 {
			t.Errorf("counted %+v", n)
		}
	})
}

func TestUnixSocket(t *testing.T) {
	l := newLoop(t, loop.Auto)
	path := filepath.Join(t.TempDir(), "sock")
	ln, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	p, s := newProbe(), new(Listener)
	served := make(chan error, 1)
	go func() {
		served <- s.Serve(ln, func(Hello) (*loop.Loop, Handler, HelloReply) {
			return l, p, HelloReply{}
		})
	}()
	c, _, err := Dial(context.Background(), l, path, Hello{Role: Client},
		func(HelloReply) Handler { return newProbe() })
	if err != nil {
		t.Fatal(err)
	}
	m := &Msg{Header: Header{Op: OpRead, ID: 4}}
	l.Call(func() { c.Send(m) })
	same(t, p.next(t), m)
	l.Call(func() { c.Close(nil) })
	p.end(t)
	s.Close()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

// A Listener reads a bad Hello, answers where the peer can understand it, and
// goes on serving others.
func TestBadHello(t *testing.T) {
	l := newLoop(t, loop.Auto)
	s := &Listener{Counters: new(Counters)}
	addr := listen(t, s, func(Hello) (*loop.Loop, Handler, HelloReply) {
		return l, newProbe(), HelloReply{}
	})
	hello := func(edit func(b []byte)) []byte {
		b := make([]byte, HelloSize)
		(&Hello{VersionMin: 1, VersionMax: 1, Role: Client}).Encode(b)
		edit(b)
		return b
	}
	for _, tc := range []struct {
		name   string
		bytes  []byte
		answer bool
	}{
		{"version", hello(func(b []byte) { b[4], b[6] = 7, 8; seal(b) }), true},
		{"text", []byte(strings.Repeat("GET / HTTP/1.1\r\n", 6)), false},
		{"checksum", hello(func(b []byte) { b[93]++ }), false},
		{"half", hello(func([]byte) {})[:40], false},
		{"nothing", nil, false},
	} {
		nc, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		nc.SetDeadline(time.Now().Add(patience))
		if _, err := nc.Write(tc.bytes); err != nil {
			t.Fatal(err)
		}
		nc.(*net.TCPConn).CloseWrite()
		b, _ := io.ReadAll(nc)
		nc.Close()
		var r HelloReply
		if tc.answer {
			if len(b) != HelloReplySize || r.Decode(b) != nil ||
				r.Status != HelloVersion || r.Text == "" {
				t.Errorf("%s: answered %q", tc.name, b)
			}
		} else if len(b) != 0 {
			t.Errorf("%s: answered %q", tc.name, b)
		}
	}
	c, _, err := Dial(context.Background(), l, addr, Hello{Role: Client},
		func(HelloReply) Handler { return newProbe() })
	if err != nil {
		t.Fatal(err)
	}
	l.Call(func() { c.Close(nil) })
	s.Close()
	if n := s.Counters.Read().Closed; n[ReasonHello] != 4 || n[ReasonRefused] != 1 {
		t.Errorf("counted %v", n)
	}
}

// A peer that says nothing costs a bounded time, and Close does not wait for it.
func TestSilentPeers(t *testing.T) {
	l := newLoop(t, loop.Auto)
	s := &Listener{Handshake: 30 * time.Millisecond}
	never := func(Hello) (*loop.Loop, Handler, HelloReply) {
		t.Error("asked about a hello that nobody said")
		return nil, nil, HelloReply{Status: HelloRefused}
	}
	addr := listen(t, s, never)
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(patience))
	if _, err := nc.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("after the time limit: %v", err)
	}

	patient := &Listener{Handshake: time.Hour}
	pc, err := net.Dial("tcp", listen(t, patient, never))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	until(t, "the handshake to begin", func() bool {
		patient.mu.Lock()
		defer patient.mu.Unlock()
		return len(patient.greets) == 1
	})
	patient.Close()

	// The other way round: a server that accepts and says nothing.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	none := func(HelloReply) Handler { t.Error("a handler was made"); return nil }
	d := &Dialer{Handshake: 30 * time.Millisecond}
	silent := ln.Addr().String()
	_, _, err = d.Dial(context.Background(), l, silent, Hello{Role: Client}, none)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("dial without an answer: %v", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	_, _, err = Dial(ctx, l, silent, Hello{Role: Client}, none)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled dial: %v", err)
	}
}

// Dialing what is not there, or not a server, says so.
func TestDialErrors(t *testing.T) {
	l := newLoop(t, loop.Auto)
	none := func(HelloReply) Handler { return nil }
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := ln.Addr().String()
	answers := make(chan []byte, 1)
	go func() {
		for a := range answers {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			io.ReadFull(nc, make([]byte, HelloSize))
			nc.Write(a)
			nc.Close()
		}
	}()
	bad := make([]byte, HelloReplySize)
	(&HelloReply{Version: 9}).Encode(bad)
	good := make([]byte, HelloReplySize)
	(&HelloReply{Version: 1}).Encode(good)
	for _, tc := range []struct {
		answer []byte
		want   error
	}{
		{[]byte(strings.Repeat("x", HelloReplySize)), ErrMagic},
		{bad, ErrVersion},
		{good[:100], ErrPeerClosed},
		{good, ErrClosed}, // the caller gave no handler
	} {
		answers <- tc.answer
		_, _, err := Dial(context.Background(), l, addr, Hello{Role: Client}, none)
		if !errors.Is(err, tc.want) {
			t.Errorf("answer %.8q…: %v, want %v", tc.answer, err, tc.want)
		}
	}
	close(answers)
	ln.Close()
	_, _, err = Dial(context.Background(), l, addr, Hello{Role: Client}, none)
	if !errors.Is(err, unix.ECONNREFUSED) || strings.Count(err.Error(), addr) != 1 {
		t.Errorf("no server: %v", err)
	}
}

// A loop that has ended cannot take a connection: the handler is not left alone
// with a promise, and no descriptor leaks.
func TestEndedLoop(t *testing.T) {
	gone, l := newLoop(t, loop.Auto), newLoop(t, loop.Auto)
	gone.Close()
	p := newProbe()
	addr := serve(t, l, p)
	_, _, err := Dial(context.Background(), gone, addr, Hello{Role: Client},
		func(HelloReply) Handler { return newProbe() })
	if !errors.Is(err, ErrClosed) {
		t.Errorf("dial on an ended loop: %v", err)
	}
	if err := p.end(t); !errors.Is(err, ErrPeerClosed) {
		t.Errorf("the accepting side ended with %v", err)
	}
}

// A handler whose connection breaks before it starts hears of the end, once.
func TestAcceptedInVain(t *testing.T) {
	l, p, s := newLoop(t, loop.Auto), newProbe(), &Listener{Counters: new(Counters)}
	ours, theirs := net.Pipe() // has no file descriptor
	go io.ReadFull(theirs, make([]byte, HelloReplySize))
	s.welcome(ours, Hello{Role: Client}, l, p, HelloReply{})
	if err := p.end(t); err == nil || s.Counters.Read().Closed[ReasonHello] != 1 {
		t.Errorf("ended with %v, counted %v", err, s.Counters.Read().Closed)
	}
}

// A loop that ends takes its connections with it.
func TestLoopEndsFirst(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		fds := sockets(t, 1)
		defer unix.Close(fds[1])
		p, s := newProbe(), newSent()
		c := attach(t, l, fds[0], p, Config{})
		m := &Msg{Header: Header{Op: OpWrite}, Payload: [][]byte{make([]byte, MaxPayload)}, Sent: s}
		l.Call(func() { c.Send(m) })
		l.Close()
		if err := p.end(t); !errors.Is(err, unix.ECANCELED) && !errors.Is(err, unix.EPIPE) {
			t.Errorf("closed with %v", err)
		}
		if err := s.next(t); err == nil {
			t.Error("the message that nobody read was sent")
		}
	})
}
