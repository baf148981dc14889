// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"golang.org/x/sys/unix"

	"braid/transport/loop"
)

// Dialer opens connections. The zero value is ready.
type Dialer struct {
	KeepAlive, Silence time.Duration // as in Config
	// Handshake bounds connect and Hello together; 0 is DefaultHandshake.
	Handshake time.Duration
	Counters  *Counters // of all connections made; nil: each has its own
}

// Dial connects with a zero Dialer.
func Dial(ctx context.Context, l *loop.Loop, addr string, hello Hello,
	mk func(HelloReply) Handler) (*Conn, HelloReply, error) {
	return new(Dialer).Dial(ctx, l, addr, hello, mk)
}

// Dial connects to addr (host:port, by way of ListenLocal's socket where there is
// one, or the path of a Unix socket), says hello
// and hands the connection to l. mk makes its handler, on l's thread; it may
// return nil to give the connection up. The caller's goroutine is blocked
// meanwhile, within the limits of ctx and of d.Handshake; it must not be l's.
//
// The handler can have heard of frames, and of the end, before Dial returns.
//
// The error is an *OpError; errors.Is finds ErrWrongCluster, ErrWrongDevice,
// ErrVersion, ErrStarting and ErrRefused in it, and the reply is returned then.
func (d *Dialer) Dial(ctx context.Context, l *loop.Loop, addr string, hello Hello,
	mk func(HelloReply) Handler) (*Conn, HelloReply, error) {
	limit := d.Handshake
	if limit == 0 {
		limit = DefaultHandshake
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	nc, err := connect(ctx, addr)
	if err != nil {
		return nil, HelloReply{}, &OpError{Op: "dial", Addr: addr, Err: withContext(ctx, "connect", err)}
	}
	if hello.VersionMin == 0 && hello.VersionMax == 0 {
		hello.VersionMin, hello.VersionMax = VersionMin, VersionMax
	}
	reply, err := greet(ctx, nc, &hello)
	if err == nil {
		var c *Conn
		c, err = launch(l, nc, func() Handler { return mk(reply) }, Config{
			KeepAlive: d.KeepAlive, Silence: d.Silence, Counters: d.Counters,
			Remote: hello, Reply: reply, Addr: addr,
		})
		if err == nil {
			return c, reply, nil
		}
	}
	_ = nc.Close() // the error in hand says more; closed already is fine
	if d.Counters != nil {
		d.Counters.closed[refusal(err)].Add(1)
	}
	return nil, reply, &OpError{Op: "handshake with", Addr: addr, Err: err}
}

// Probe reports whether a server lives at addr: whether it answers a Hello within
// ctx, well or badly. To accept a connection is not enough: the kernel does that
// for a process that hangs.
func Probe(ctx context.Context, addr string) error {
	nc, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return &OpError{Op: "dial", Addr: addr, Err: withContext(ctx, "connect", err)}
	}
	defer nc.Close()
	// No server has the device of that name, so it says so and nothing begins.
	hello := Hello{VersionMin: VersionMin, VersionMax: VersionMax, Role: Client}
	if _, err = greet(ctx, nc, &hello); err == nil || refusal(err) == ReasonRefused {
		return nil
	}
	return &OpError{Op: "handshake with", Addr: addr, Err: err}
}

// refusal classes the error of a handshake.
func refusal(err error) Reason {
	for _, e := range []error{ErrWrongCluster, ErrWrongDevice, ErrVersion, ErrStarting, ErrRefused} {
		if errors.Is(err, e) {
			return ReasonRefused
		}
	}
	return ReasonHello
}

// cause drops what net's errors repeat: network and address are in the OpError.
func cause(err error) error {
	if ne := (*net.OpError)(nil); errors.As(err, &ne) && ne.Err != nil {
		return ne.Err
	}
	return err
}

// greet exchanges Hello and HelloReply within ctx.
func greet(ctx context.Context, nc net.Conn, hello *Hello) (HelloReply, error) {
	var reply HelloReply
	// The end of ctx ends the exchange by moving the socket's deadline to the past.
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	var b [max(HelloSize, HelloReplySize)]byte
	hello.Encode(b[:])
	if _, err := nc.Write(b[:HelloSize]); err != nil {
		return reply, withContext(ctx, "send hello", err)
	}
	if _, err := io.ReadFull(nc, b[:HelloReplySize]); err != nil {
		return reply, withContext(ctx, "wait for the answer to hello", err)
	}
	if err := reply.Decode(b[:]); err != nil {
		return HelloReply{}, fmt.Errorf("answer to hello: %w", err)
	}
	if err := reply.Status.Err(); err != nil {
		if reply.Text != "" {
			err = fmt.Errorf("%w: %s", err, reply.Text)
		}
		return reply, err
	}
	if reply.Version < hello.VersionMin || reply.Version > hello.VersionMax {
		return reply, fmt.Errorf("%w: the server chose %d", ErrVersion, reply.Version)
	}
	return reply, nil
}

// withContext says what was going on, and that ctx ended it where it did.
func withContext(ctx context.Context, what string, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("%s: %w", what, ctx.Err())
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: %w", what, ErrPeerClosed)
	}
	return fmt.Errorf("%s: %w", what, cause(err))
}

// launch takes the socket from nc and makes a connection of it on l.
func launch(l *loop.Loop, nc net.Conn, mk func() Handler, cfg Config) (*Conn, error) {
	fd, err := detach(nc)
	if err != nil {
		return nil, err
	}
	if err := tune(fd); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	var c *Conn
	l.Call(func() {
		if h := mk(); h != nil {
			c = NewConn(l, fd, h, cfg)
		}
	})
	if c == nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("no one to serve the connection here: %w", ErrClosed)
	}
	return c, nil
}
