// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"braid/transport/loop"
)

// Accept decides about a Hello that is well-formed and speaks a known version.
// It runs on a goroutine of its own, may block for a moment, and returns the
// answer and, where that is HelloOK, the loop and the handler of the connection.
// The reply's version is filled in, and features that were not wished for are
// removed. When the connection ends before it starts, the handler still gets
// Closed, on the loop, without Opened.
type Accept func(Hello) (*loop.Loop, Handler, HelloReply)

// Listener accepts connections. The zero value is ready; set the fields before
// the first Serve.
type Listener struct {
	KeepAlive, Silence time.Duration // as in Config
	Handshake          time.Duration // 0 is DefaultHandshake
	Counters           *Counters     // of all connections; nil: each has its own

	// mu guards what follows. It is a leaf.
	mu     sync.Mutex
	done   chan struct{}
	lns    map[net.Listener]struct{}
	greets map[net.Conn]struct{} // handshakes in progress
	ended  bool
	wg     sync.WaitGroup
}

// Serve accepts connections of ln until Close, then returns nil. It may be
// called for several net.Listeners.
func (s *Listener) Serve(ln net.Listener, accept Accept) error {
	if !s.start(ln) {
		_ = ln.Close()
		return nil
	}
	slots := make(chan struct{}, maxHandshakes)
	for {
		select {
		case slots <- struct{}{}:
		case <-s.done:
			return nil
		}
		nc, err := ln.Accept()
		if err != nil {
			<-slots
			if s.over() {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return &OpError{Op: "accept on", Addr: ln.Addr().String(), Err: err}
			}
			// Out of descriptors or memory, most likely: others may give some back.
			s.pause()
			continue
		}
		if !s.begin(nc) {
			<-slots
			_ = nc.Close()
			continue // ended, most likely: the next round sees it
		}
		go func() {
			defer func() { <-slots }()
			defer s.wg.Done()
			s.handshake(nc, accept)
		}()
	}
}

// Close stops all Serves, ends the handshakes in progress and returns when their
// goroutines have ended. Established connections go on: they are their
// handlers' to close.
func (s *Listener) Close() error {
	s.mu.Lock()
	s.init()
	if !s.ended {
		s.ended = true
		close(s.done)
	}
	for ln := range s.lns {
		_ = ln.Close()
	}
	for nc := range s.greets {
		_ = nc.SetDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	s.wg.Wait()
	return nil
}

func (s *Listener) init() {
	if s.done == nil {
		s.done = make(chan struct{})
		s.lns = map[net.Listener]struct{}{}
		s.greets = map[net.Conn]struct{}{}
	}
}

func (s *Listener) start(ln net.Listener) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.init()
	s.lns[ln] = struct{}{}
	return !s.ended
}

func (s *Listener) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// begin registers a handshake, so that Close can end it and wait for it.
func (s *Listener) begin(nc net.Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return false
	}
	s.greets[nc] = struct{}{}
	s.wg.Add(1)
	limit := s.Handshake
	if limit == 0 {
		limit = DefaultHandshake
	}
	// Under mu, so that it cannot undo the deadline that Close sets.
	if nc.SetDeadline(time.Now().Add(limit)) != nil {
		delete(s.greets, nc)
		s.wg.Done()
		return false
	}
	return true
}

func (s *Listener) pause() {
	t := time.NewTimer(acceptBackoff)
	defer t.Stop()
	select {
	case <-t.C:
	case <-s.done:
	}
}

// handshake reads the Hello, answers it and starts the connection.
func (s *Listener) handshake(nc net.Conn, accept Accept) {
	hello, err := readHello(nc)
	reason := ReasonHello
	if err == nil {
		l, h, reply := accept(hello)
		if reply.Status == HelloOK {
			s.welcome(nc, hello, l, h, reply)
			return
		}
		reply.Version, reply.Features = 0, 0
		writeReply(nc, &reply)
		reason = ReasonRefused
	} else if errors.Is(err, ErrVersion) {
		writeReply(nc, &HelloReply{Status: HelloVersion, Text: fmt.Sprintf(
			"the server speaks versions %d to %d", VersionMin, VersionMax)})
		reason = ReasonRefused
	}
	s.forget(nc)
	_ = nc.Close()
	if s.Counters != nil {
		s.Counters.closed[reason].Add(1)
	}
}

func (s *Listener) forget(nc net.Conn) {
	s.mu.Lock()
	delete(s.greets, nc)
	s.mu.Unlock()
}

// welcome answers yes and hands the connection over.
func (s *Listener) welcome(nc net.Conn, hello Hello, l *loop.Loop, h Handler, reply HelloReply) {
	reply.Version = min(hello.VersionMax, VersionMax)
	reply.Features &= hello.Features
	addr := remote(nc)
	err := writeReply(nc, &reply)
	s.forget(nc)
	if err == nil {
		_, err = launch(l, nc, func() Handler { return h }, Config{
			KeepAlive: s.KeepAlive, Silence: s.Silence, Counters: s.Counters,
			Remote: hello, Reply: reply, Addr: addr,
		})
	}
	if err == nil {
		return
	}
	_ = nc.Close()
	if s.Counters != nil {
		s.Counters.closed[ReasonHello].Add(1)
	}
	err = &OpError{Op: "handshake with", Addr: addr, Err: err}
	l.Call(func() {
		c := &Conn{Remote: hello, Reply: reply, Addr: addr, loop: l, fd: -1, handler: h,
			counters: new(Counters), state: closed, err: err}
		h.Closed(c, err)
	})
}

func readHello(nc net.Conn) (h Hello, err error) {
	var b [HelloSize]byte
	if _, err := io.ReadFull(nc, b[:]); err != nil {
		return h, err
	}
	return h, h.Decode(b[:])
}

func writeReply(nc net.Conn, r *HelloReply) error {
	var b [HelloReplySize]byte
	r.Encode(b[:])
	_, err := nc.Write(b[:])
	return err
}
