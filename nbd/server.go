// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"os"
	"sort"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxConnections bounds the connections of a server, handshakes included.
const maxConnections = 1024

// Export is a device under a name.
type Export struct {
	Name        string
	Description string
	Port        *Port
	ReadOnly    bool
}

// ServerOptions describe a server.
type ServerOptions struct {
	// TLS, when set, lets clients start TLS; RequireTLS refuses those who do not.
	TLS        *tls.Config
	RequireTLS bool
	// Ended, if set, is told why a connection or a handshake ended, except for
	// ordinary goodbyes.
	Ended func(remote string, err error)
}

// Server offers exports on listeners. Its methods may be called from anywhere.
type Server struct {
	o ServerOptions
	// mu guards the fields below. It is never held across a call that blocks.
	mu        sync.Mutex
	exports   map[string]*Export
	listeners map[net.Listener]struct{}
	shaking   map[net.Conn]struct{} // in the handshake
	bridges   map[net.Conn]struct{} // TLS sessions
	open      int                   // handshakes and connections
	closed    bool
	// work counts accept loops, handshakes and bridges.
	work sync.WaitGroup
}

// NewServer returns a server without exports.
func NewServer(o ServerOptions) *Server {
	return &Server{
		o:         o,
		exports:   map[string]*Export{},
		listeners: map[net.Listener]struct{}{},
		shaking:   map[net.Conn]struct{}{},
		bridges:   map[net.Conn]struct{}{},
	}
}

// Add offers an export. A name can be taken once.
func (s *Server) Add(e *Export) error {
	if len(e.Name) > maxName {
		return fmt.Errorf("nbd: an export name of %d bytes is longer than %d", len(e.Name), maxName)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.exports[e.Name]; ok {
		return fmt.Errorf("nbd: there is an export %q already", e.Name)
	}
	s.exports[e.Name] = e
	return nil
}

// Remove withdraws an export. Its connections live on until its port ends them.
func (s *Server) Remove(name string) {
	s.mu.Lock()
	delete(s.exports, name)
	s.mu.Unlock()
}

// Exports lists the exports by name.
func (s *Server) Exports() []*Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*Export, 0, len(s.exports))
	for _, e := range s.exports {
		out = append(out, e)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Name < out[j].Name })
	return out
}

// find returns the export of a name. The empty name stands for the only one.
func (s *Server) find(name string) *Export {
	s.mu.Lock()
	defer s.mu.Unlock()
	if e := s.exports[name]; e != nil {
		return e
	}
	if name == "" && len(s.exports) == 1 {
		for _, e := range s.exports {
			return e
		}
	}
	return nil
}

// describe returns an export's size and transmission flags, as of now.
func (e *Export) describe(structured bool) (size uint64, flags uint16) {
	e.Port.loop.Call(func() {
		size = e.Port.dev.Size()
		flags = TransmissionFlags(e.ReadOnly || e.Port.dev.ReadOnly(), structured)
	})
	return size, flags
}

// TransmissionFlags are the flags of an export. CAN_MULTI_CONN holds because all
// connections of an export share one device, whose flush covers them all.
func TransmissionFlags(readOnly, structured bool) uint16 {
	flags := flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes |
		flagCanMultiConn | flagSendCache | flagSendFastZero
	if readOnly {
		flags |= flagReadOnly
	}
	if structured {
		flags |= flagSendDF
	}
	return flags
}

// Serve accepts connections from ln until Close, or an error of ln. It closes ln.
func (s *Server) Serve(ln net.Listener) error {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		_ = ln.Close()
		return net.ErrClosed
	}
	s.listeners[ln] = struct{}{}
	s.work.Add(1)
	s.mu.Unlock()
	defer s.work.Done()
	defer func() {
		s.mu.Lock()
		delete(s.listeners, ln)
		s.mu.Unlock()
		_ = ln.Close()
	}()
	for {
		conn, err := ln.Accept()
		if err == nil {
			s.accept(conn)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return nil
		}
		if !errors.Is(err, unix.ECONNABORTED) && !errors.Is(err, unix.EMFILE) {
			return fmt.Errorf("nbd: accept on %s: %w", ln.Addr(), err)
		}
		s.ended(ln.Addr().String(), err)
		if errors.Is(err, unix.EMFILE) {
			// Descriptors come back when connections end; do not spin until then.
			pause, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond)
			<-pause.Done()
			cancel()
		}
	}
}

// accept starts the handshake of conn.
func (s *Server) accept(conn net.Conn) {
	s.mu.Lock()
	refuse := s.closed || s.open >= maxConnections
	if !refuse {
		s.open++
		s.shaking[conn] = struct{}{}
		s.work.Add(1)
	}
	s.mu.Unlock()
	if refuse {
		_ = conn.Close()
		return
	}
	go func() {
		defer s.work.Done()
		remote := conn.RemoteAddr().String()
		out, err := s.negotiate(conn)
		s.mu.Lock()
		delete(s.shaking, conn)
		s.mu.Unlock()
		if err == nil {
			err = s.transmit(remote, conn, out)
		}
		if err != nil {
			_ = conn.Close()
			s.release()
			s.ended(remote, err)
		}
	}()
}

func (s *Server) release() {
	s.mu.Lock()
	s.open--
	s.mu.Unlock()
}

// Connections is the number of handshakes and connections.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open
}

func (s *Server) ended(remote string, err error) {
	switch {
	case s.o.Ended == nil, errors.Is(err, errAborted), errors.Is(err, ErrDisconnected),
		errors.Is(err, ErrClosed):
	default:
		s.o.Ended(remote, err)
	}
}

// transmit hands the connection over to the loop of its export.
func (s *Server) transmit(remote string, conn net.Conn, out *outcome) error {
	fd := -1
	var err error
	if session, ok := out.conn.(*tls.Conn); ok {
		fd, err = s.bridge(session)
	} else if fd, err = detach(conn); err == nil {
		_ = conn.Close() // fd is a duplicate
	}
	if err != nil {
		return err
	}
	out.o.Closed = func(_ *Conn, err error) {
		s.release()
		s.ended(remote, err)
	}
	port := out.export.Port
	port.loop.Call(func() {
		c := port.Connect(fd, out.o)
		if port.drained != nil {
			c.drain()
		}
	})
	return nil
}

// detach duplicates the descriptor of a TCP or unix connection.
func detach(conn net.Conn) (int, error) {
	sc, ok := conn.(syscall.Conn)
	if !ok {
		return -1, fmt.Errorf("nbd: a %T has no descriptor", conn)
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return -1, fmt.Errorf("nbd: take the descriptor of a connection: %w", err)
	}
	fd, dupErr := -1, error(nil)
	err = raw.Control(func(p uintptr) {
		fd, dupErr = unix.FcntlInt(p, unix.F_DUPFD_CLOEXEC, 0)
	})
	if err = errors.Join(err, dupErr); err != nil {
		return -1, fmt.Errorf("nbd: duplicate the descriptor of a connection: %w", err)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(true)
	}
	return fd, nil
}

// Close stops accepting and ends handshakes and TLS bridges, then waits for them.
// Connections that are in transmission are ended by their ports (Drain, Abort):
// with TLS, drain the ports before Close.
func (s *Server) Close() error {
	s.Stop()
	s.mu.Lock()
	for c := range s.bridges {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.work.Wait()
	return nil
}

// Stop ends the listeners and the handshakes. Connections go on.
func (s *Server) Stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	for ln := range s.listeners {
		_ = ln.Close()
	}
	for c := range s.shaking {
		_ = c.Close()
	}
}

// errTimeout is what a passed deadline reports.
func errTimeout() error { return os.ErrDeadlineExceeded }
