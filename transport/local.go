// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"context"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// A server that its own host reaches by a TCP address has a Unix socket of that
// address's name beside it, and who dials the address tries that one first. Bytes
// go from one process to the other then without passing through TCP, the loopback
// device and its soft interrupts, which cost more than all else in a small frame.
//
// The names are in the abstract namespace: there is one for each network
// namespace, as there is of TCP's addresses; nothing is left behind by a crash;
// and a name ends with its process, so that what answers is what listens on TCP.
const localPrefix = "@braid/"

// ListenLocal opens the Unix socket beside ln, under addr, which is what clients
// dial. It returns nil where ln is not TCP, where addr leads through somebody else
// (another host, a proxy) before it comes to ln, and where the name is taken.
func ListenLocal(ln net.Listener, addr string) net.Listener {
	at, ok := ln.Addr().(*net.TCPAddr)
	if !ok || !leadsTo(at, addr) {
		return nil
	}
	local, err := net.Listen("unix", localPrefix+addr)
	if err != nil {
		return nil
	}
	return local
}

// leadsTo reports whether addr is an address of this host at which a listener on
// at is reached.
func leadsTo(at *net.TCPAddr, addr string) bool {
	if addr == at.String() {
		return true
	}
	host, port, err := net.SplitHostPort(addr)
	if err != nil || port != strconv.Itoa(at.Port) || !at.IP.IsUnspecified() {
		return false
	}
	ip, err := netip.ParseAddr(host)
	if err != nil {
		own, err := os.Hostname()
		return err == nil && host == own
	}
	return isOwn(ip.AsSlice())
}

// isOwn reports whether ip is an address of this host.
func isOwn(ip net.IP) bool {
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return false
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.Equal(ip) {
			return true
		}
	}
	return false
}

// connect opens a socket to addr: a path or an abstract name of a Unix socket, or
// HOST:PORT, which on the server's own host becomes the Unix socket beside it.
func connect(ctx context.Context, addr string) (net.Conn, error) {
	if len(addr) > 0 && (addr[0] == '/' || addr[0] == '@') {
		return new(net.Dialer).DialContext(ctx, "unix", addr)
	}
	if nc, err := new(net.Dialer).DialContext(ctx, "unix", localPrefix+addr); err == nil {
		if isTrusted(nc) {
			return nc, nil
		}
		_ = nc.Close()
	}
	return new(net.Dialer).DialContext(ctx, "tcp", addr)
}

// isTrusted reports whether the process that listens at the other end of a Unix
// socket runs as root or as this one does. Anybody may take a free name.
func isTrusted(nc net.Conn) bool {
	cred := credentials(nc)
	return cred != nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}

func credentials(nc net.Conn) (cred *unix.Ucred) {
	u, ok := nc.(*net.UnixConn)
	if !ok {
		return nil
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return nil
	}
	err = raw.Control(func(fd uintptr) {
		cred, _ = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err != nil {
		return nil
	}
	return cred
}

// remote names the peer of an accepted connection, for error texts.
func remote(nc net.Conn) string {
	if cred := credentials(nc); cred != nil {
		return "process " + strconv.Itoa(int(cred.Pid)) + " of this host"
	}
	return nc.RemoteAddr().String()
}
