// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"bytes"
	"testing"

	"golang.org/x/sys/unix"
)

// onPairs runs a test on each engine with sockets in blocking and in
// non-blocking mode: owners hand over either.
func onPairs(t *testing.T, test func(t *testing.T, l *Loop, a, b int)) {
	t.Helper()
	onEngines(t, func(t *testing.T, l *Loop) {
		for name, flags := range map[string]int{"blocking": 0, "nonblocking": unix.SOCK_NONBLOCK} {
			t.Run(name, func(t *testing.T) {
				a, b := pair(t, flags)
				test(t, l, a, b)
			})
		}
	})
}

// A receive that was there first ends when bytes come, with as many as there are.
func TestRecvWaitsForSend(t *testing.T) {
	onPairs(t, func(t *testing.T, l *Loop, a, b int) {
		w := newWaiter()
		in := make([]byte, 100)
		l.Call(func() { l.Submit(&Op{Kind: Recv, FD: a, Buf: in, Done: w}) })
		want(t, "send", do(t, l, &Op{Kind: Send, FD: b, Buf: []byte("hello")}), 5)
		want(t, "recv", w.next(t).res, 5)
		if string(in[:5]) != "hello" {
			t.Fatalf("received %q", in[:5])
		}
	})
}

// Messages of several vectors arrive in their order.
func TestSendmsgRecvmsg(t *testing.T) {
	onPairs(t, func(t *testing.T, l *Loop, a, b int) {
		head, body := random(1, 64), random(2, 3000)
		w := newWaiter()
		x, y := make([]byte, 1000), make([]byte, 4000)
		l.Call(func() { l.Submit(&Op{Kind: Recvmsg, FD: a, Iov: vectors(x, y), Done: w}) })
		want(t, "sendmsg", do(t, l, &Op{Kind: Sendmsg, FD: b, Iov: vectors(head, body)}), 3064)
		want(t, "recvmsg", w.next(t).res, 3064)
		if !bytes.Equal(append(x, y[:2064]...), append(head, body...)) {
			t.Fatal("received other bytes than sent")
		}
	})
}

// A send beyond the socket's buffer completes short or waits; all bytes arrive.
func TestPartialSend(t *testing.T) {
	onPairs(t, func(t *testing.T, l *Loop, a, b int) {
		const total = 4 << 20
		out := random(3, total)
		s, r := newWaiter(), newWaiter()
		got := make([]byte, 0, total)
		in := make([]byte, 100_000)
		send := &Op{Kind: Send, FD: b, Buf: out, Done: s}
		recv := &Op{Kind: Recv, FD: a, Buf: in, Done: r}
		l.Call(func() { l.Submit(send); l.Submit(recv) })
		for sent := 0; len(got) < total; {
			select {
			case o := <-s.c:
				if o.res <= 0 {
					t.Fatalf("send: %v", unix.Errno(-o.res))
				}
				if sent += o.res; sent < total {
					l.Call(func() { send.Buf = out[sent:]; l.Submit(send) })
				}
			case o := <-r.c:
				if o.res <= 0 {
					t.Fatalf("recv: %v", unix.Errno(-o.res))
				}
				got = append(got, in[:o.res]...)
				if len(got) < total {
					l.Call(func() { l.Submit(recv) })
				}
			}
		}
		if !bytes.Equal(got, out) {
			t.Fatal("received other bytes than sent")
		}
	})
}

// The end of the stream is 0, a peer that is gone is an error and no signal.
func TestSocketEnd(t *testing.T) {
	onPairs(t, func(t *testing.T, l *Loop, a, b int) {
		w := newWaiter()
		l.Call(func() { l.Submit(&Op{Kind: Recv, FD: a, Buf: make([]byte, 10), Done: w}) })
		if err := unix.Shutdown(b, unix.SHUT_WR); err != nil {
			t.Fatal(err)
		}
		want(t, "recv after the peer's end", w.next(t).res, 0)
		if err := unix.Shutdown(b, unix.SHUT_RD); err != nil {
			t.Fatal(err)
		}
		wantErrno(t, "send to nobody", do(t, l, &Op{Kind: Send, FD: a, Buf: []byte("x")}), unix.EPIPE)
		msg := &Op{Kind: Sendmsg, FD: a, Iov: vectors([]byte("x"))}
		wantErrno(t, "sendmsg to nobody", do(t, l, msg), unix.EPIPE)
	})
}

// The owner's way to close: shut down, wait for what was pending, close.
func TestShutdownEndsPendingOps(t *testing.T) {
	onPairs(t, func(t *testing.T, l *Loop, a, b int) {
		w := newWaiter()
		fill(t, a)
		l.Call(func() {
			l.Submit(&Op{Kind: Recv, FD: a, Buf: make([]byte, 10), Done: w, Tag: 1})
			l.Submit(&Op{Kind: Send, FD: a, Buf: make([]byte, 10), Done: w, Tag: 2})
		})
		if err := unix.Shutdown(a, unix.SHUT_RDWR); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			switch o := w.next(t); o.op.Tag {
			case 1:
				want(t, "recv", o.res, 0)
			case 2:
				wantErrno(t, "send", o.res, unix.EPIPE)
			}
		}
	})
}

// fill makes a socket's send buffer full.
func fill(t testing.TB, fd int) {
	t.Helper()
	b := make([]byte, 1<<16)
	for {
		err := unix.Sendto(fd, b, unix.MSG_DONTWAIT, nil)
		if err == unix.EAGAIN {
			if b = b[:len(b)/2]; len(b) == 0 {
				return
			}
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// A descriptor that is no socket, or none at all, is an error.
func TestSocketErrors(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		f := tempFile(t)
		b := make([]byte, 10)
		wantErrno(t, "recv", do(t, l, &Op{Kind: Recv, FD: int(f.Fd()), Buf: b}), unix.ENOTSOCK)
		wantErrno(t, "recv", do(t, l, &Op{Kind: Recv, FD: -1, Buf: b}), unix.EBADF)
		wantErrno(t, "send", do(t, l, &Op{Kind: Send, FD: 1 << 20, Buf: b}), unix.EBADF)
	})
}

// A cancelled op ends with ECANCELED and leaves the socket, and the slot, usable.
func TestCancel(t *testing.T) {
	onPairs(t, func(t *testing.T, l *Loop, a, b int) {
		w := newWaiter()
		in := make([]byte, 10)
		op := &Op{Kind: Recv, FD: a, Buf: in, Done: w}
		for range 3 {
			l.Call(func() { l.Submit(op) })
			l.Call(func() { l.Cancel(op); l.Cancel(op) })
			wantErrno(t, "cancelled recv", w.next(t).res, unix.ECANCELED)
			l.Call(func() { l.Submit(op); l.Cancel(op) })
			wantErrno(t, "recv cancelled in the same turn", w.next(t).res, unix.ECANCELED)
		}
		l.Call(func() { l.Cancel(op) }) // not active: nothing happens
		l.Call(func() { l.Submit(op) })
		want(t, "send", do(t, l, &Op{Kind: Send, FD: b, Buf: []byte("ok")}), 2)
		want(t, "recv", w.next(t).res, 2)
		f := tempFile(t)
		file := &Op{Kind: Write, FD: int(f.Fd()), Buf: random(1, 100), Done: w}
		l.Call(func() { l.Submit(file); l.Cancel(file) })
		if res := w.next(t).res; res != 100 && res != -int(unix.ECANCELED) {
			t.Fatalf("cancelled write: %d", res)
		}
	})
}

// A descriptor may be closed and its number come back after the last OpDone.
func TestDescriptorReuse(t *testing.T) {
	onEngines(t, func(t *testing.T, l *Loop) {
		seen := map[int]bool{}
		for range 20 {
			fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
			if err != nil {
				t.Fatal(err)
			}
			seen[fds[0]] = true
			w := newWaiter()
			op := &Op{Kind: Recv, FD: fds[0], Buf: make([]byte, 8), Done: w}
			l.Call(func() { l.Submit(op) })
			want(t, "send", do(t, l, &Op{Kind: Send, FD: fds[1], Buf: []byte("1234")}), 4)
			want(t, "recv", w.next(t).res, 4)
			l.Call(func() { l.Submit(op) })
			l.Call(func() { l.Cancel(op) })
			wantErrno(t, "recv", w.next(t).res, unix.ECANCELED)
			unix.Close(fds[0])
			unix.Close(fds[1])
		}
		if len(seen) == 20 {
			t.Fatal("no number came back; the test shows nothing")
		}
	})
}
