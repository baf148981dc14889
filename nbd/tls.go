// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"

	"golang.org/x/sys/unix"
)

// bridge gives a TLS session a plain socket that the loop can serve: two
// goroutines copy between the session and one end of a socketpair. It returns the
// other end. The session is closed when both directions have ended.
func (s *Server) bridge(session *tls.Conn) (int, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("nbd: socketpair for a TLS session: %w", err)
	}
	f := os.NewFile(uintptr(fds[0]), "tls-bridge")
	plain, err := net.FileConn(f)
	_ = f.Close()
	if err != nil {
		_ = unix.Close(fds[1])
		return -1, fmt.Errorf("nbd: socketpair for a TLS session: %w", err)
	}
	inner, ok := plain.(*net.UnixConn)
	if !ok {
		panic(fmt.Sprintf("nbd: a unix socketpair became a %T", plain))
	}
	s.mu.Lock()
	s.bridges[session] = struct{}{}
	s.work.Add(2)
	s.mu.Unlock()
	inbound := make(chan struct{})
	go func() {
		defer s.work.Done()
		defer close(inbound)
		_, _ = io.Copy(inner, session) // an error ends the bridge like an end of stream
		_ = inner.CloseWrite()
	}()
	go func() {
		defer s.work.Done()
		_, _ = io.Copy(session, inner)
		_ = session.CloseWrite()
		_ = session.Close() // the server has hung up: nothing inbound matters any more
		<-inbound
		_ = inner.Close()
		s.mu.Lock()
		delete(s.bridges, session)
		s.mu.Unlock()
	}()
	return fds[1], nil
}
