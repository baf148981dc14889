// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

// patience is how long a test waits for what must happen; only a broken loop
// ever takes so long.
const patience = 20 * time.Second

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// kernelRefusesUring reports whether this kernel or container forbids io_uring,
// found out without the code under test.
func kernelRefusesUring() bool {
	_, _, errno := unix.Syscall(unix.SYS_IO_URING_SETUP, 0, 0, 0)
	return errno == unix.EPERM || errno == unix.ENOSYS
}

// onEngines runs a test on each engine that the kernel allows.
func onEngines(t *testing.T, test func(t *testing.T, l *Loop)) {
	t.Helper()
	onEnginesWith(t, Options{}, test)
}

func onEnginesWith(t *testing.T, o Options, test func(t *testing.T, l *Loop)) {
	t.Helper()
	for _, e := range []Engine{Uring, Pool} {
		if e == Uring && kernelRefusesUring() {
			t.Log("this kernel refuses io_uring; the pool is what is tested")
			continue
		}
		t.Run(e.String(), func(t *testing.T) {
			o.Engine = e
			o.Name = t.Name()
			l := startLoop(t, o)
			if l.Engine() != e {
				t.Fatalf("asked for %v, got %v", e, l.Engine())
			}
			test(t, l)
		})
	}
}

func startLoop(t testing.TB, o Options) *Loop {
	t.Helper()
	l, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := l.Close(); err != nil {
			t.Error(err)
		}
	})
	l.Start()
	return l
}

// outcome is how an op ended.
type outcome struct {
	op  *Op
	res int
}

// waiter is a Completer that hands results to the test's goroutine.
type waiter struct{ c chan outcome }

func newWaiter() *waiter { return &waiter{c: make(chan outcome, 4096)} }

func (w *waiter) OpDone(op *Op, res int) { w.c <- outcome{op, res} }

func (w *waiter) next(t testing.TB) outcome {
	t.Helper()
	select {
	case o := <-w.c:
		return o
	case <-time.After(patience):
		t.Fatal("an op did not complete")
		return outcome{}
	}
}

// do runs one op to its end and returns its result.
func do(t testing.TB, l *Loop, op *Op) int {
	t.Helper()
	w := newWaiter()
	op.Done = w
	l.Call(func() { l.Submit(op) })
	o := w.next(t)
	if o.op != op {
		t.Fatal("OpDone for another op")
	}
	return o.res
}

func want(t testing.TB, what string, got, expected int) {
	t.Helper()
	if got != expected {
		if got < 0 {
			t.Fatalf("%s: %v, want %d", what, unix.Errno(-got), expected)
		}
		t.Fatalf("%s: %d, want %d", what, got, expected)
	}
}

func wantErrno(t testing.TB, what string, got int, errno unix.Errno) {
	t.Helper()
	if got >= 0 || !errors.Is(unix.Errno(-got), errno) {
		t.Fatalf("%s: %d, want -%d (%v)", what, got, errno, errno)
	}
}

// tempFile is an empty file that closes with the test.
func tempFile(t testing.TB) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "file"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// pair is a connected pair of stream sockets.
func pair(t testing.TB, flags int) (a, b int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|flags, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
	return fds[0], fds[1]
}

// vectors describes buffers for a vectored op.
func vectors(bufs ...[]byte) []unix.Iovec {
	iov := make([]unix.Iovec, len(bufs))
	for i, b := range bufs {
		if len(b) > 0 {
			iov[i].Base = &b[0]
		}
		iov[i].SetLen(len(b))
	}
	return iov
}
