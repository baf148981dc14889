// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"net"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// Who dials a server's TCP address on the server's own host gets its Unix socket,
// frames go both ways, and Close ends that way in, too.
func TestLocalSocket(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		p, q := newProbe(), newProbe()
		accepted := make(chan *Conn, 1)
		p.opened = func(c *Conn) { accepted <- c }
		s := &Listener{}
		accept := func(Hello) (*loop.Loop, Handler, HelloReply) { return l, p, HelloReply{} }
		addr := listen(t, s, accept)
		served := serveLocal(t, s, addr, accept)
		c, _, err := Dial(context.Background(), l, addr, Hello{Role: Client}, func(HelloReply) Handler { return q })
		if err != nil {
			t.Fatal(err)
		}
		var domain int
		l.Call(func() { domain, _ = unix.GetsockoptInt(c.fd, unix.SOL_SOCKET, unix.SO_DOMAIN) })
		if domain != unix.AF_UNIX || c.Addr != addr {
			t.Errorf("socket domain %d, address %s", domain, c.Addr)
		}
		other := <-accepted
		if !strings.HasSuffix(other.Addr, "of this host") {
			t.Errorf("the client is called %q", other.Addr)
		}
		m, back := &Msg{Header: Header{Op: OpRead, ID: 4}}, &Msg{Header: Header{Op: OpRead, ID: 5}}
		l.Call(func() { c.Send(m); other.Send(back) })
		same(t, p.next(t), m)
		same(t, q.next(t), back)
		l.Call(func() { c.Close(nil) })
		p.end(t)
		q.end(t)
		s.Close()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if nc, err := net.Dial("unix", localPrefix+addr); err == nil {
			nc.Close()
			t.Error("the socket outlives its Listener")
		}
	})
}

// serveLocal serves the Unix socket beside a listener on addr.
func serveLocal(t *testing.T, s *Listener, addr string, accept Accept) (served chan error) {
	t.Helper()
	at, err := net.ResolveTCPAddr("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	local := ListenLocal(addressed{at}, addr)
	if local == nil {
		t.Fatal("no Unix socket beside", addr)
	}
	served = make(chan error, 1)
	go func() { served <- s.Serve(local, accept) }()
	return served
}

// addressed is a listener that has nothing but its address.
type addressed struct{ at *net.TCPAddr }

func (a addressed) Addr() net.Addr          { return a.at }
func (addressed) Accept() (net.Conn, error) { panic("nobody accepts here") }
func (addressed) Close() error              { return nil }

// A name that is taken, and an address that does not lead to the listener, leave
// TCP as the only way.
func TestNoLocalSocket(t *testing.T) {
	any6, lo := &net.TCPAddr{IP: net.IPv6unspecified, Port: 7301}, &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 7301}
	for addr, at := range map[string]*net.TCPAddr{
		"127.0.0.1:7302":  lo,   // a proxy before it
		"192.0.2.1:7301":  any6, // an address of another host
		"127.0.0.1":       any6,
		"elsewhere:7301":  any6,
		"127.0.0.2:7301":  lo,
		"[2001:db8::]:73": any6,
	} {
		if leadsTo(at, addr) {
			t.Errorf("%s is taken for %v", addr, at)
		}
	}
	for _, addr := range []string{"127.0.0.1:7301", "[::1]:7301"} {
		if ip := net.ParseIP(strings.Trim(addr[:len(addr)-5], "[]")); isOwn(ip) && !leadsTo(any6, addr) {
			t.Errorf("%s is not taken for %v", addr, any6)
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	first := ListenLocal(ln, ln.Addr().String())
	if first == nil {
		t.Fatal("no Unix socket")
	}
	defer first.Close()
	if ListenLocal(ln, ln.Addr().String()) != nil {
		t.Error("the name was given twice")
	}
}
