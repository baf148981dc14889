// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"braid/cluster"
	"braid/cmd/internal/cli"
)

// Each wrong command line ends with code 2 and a text that says what is right.
func TestUsage(t *testing.T) {
	for line, want := range map[string]string{
		"attach":                                     "takes one DEVICE, like /dev/nbd0",
		"attach /dev/sda":                            "it must be /dev/nbd0",
		"attach /dev/nbd0 /dev/nbd1":                 "got 2 arguments",
		"attach /dev/nbd0 --connections 0":           "it takes 1 to 16",
		"attach /dev/nbd0 --timeout 10ms":            "the least is 1s",
		"attach /dev/nbd0 --timeout soon":            "invalid argument",
		"detach":                                     "takes one DEVICE",
		"why nbd":                                    "it must be /dev/nbd0",
		"list now":                                   "takes no arguments",
		"list -o yaml":                               "it is table or json",
		"serve --volume v":                           "exactly one of --socket PATH and --listen",
		"serve --volume v --socket s --listen :1":    "exactly one of --socket PATH and --listen",
		"serve --volume v --listen nonsense":         "must be HOST:PORT",
		"serve --volume v --listen 0.0.0.0:10809":    "--insecure",
		"serve --volume v --listen :10809":           "--insecure",
		"serve --volume v --socket s --tls-cert c":   "go together",
		"serve --volume v --socket s --engine steam": "auto, io_uring or pool",
		"serve --socket s --memory lots":             "--memory",
		"serve --volume v --socket s --metrics :1":   "--insecure",
		"serve --volume v --socket s --pprof":        "--metrics HOST:PORT",
		"daemon --metrics 0.0.0.0:1":                 "--insecure",
		"top --interval 1ms":                         "the least is 100ms",
		"top -o yaml":                                "it is table or json",
		"trace -n 0":                                 "at least one",
		"trace --op trim":                            "read, write, flush, other",
		"why --volume v nbd0":                        "takes no arguments",
		"daemon --engine steam":                      "auto, io_uring or pool",
		"daemon --lock-memory maybe":                 "auto, on or off",
		"fly":                                        "unknown command",
		"list --fast":                                "unknown flag",
	} {
		var out, stderr bytes.Buffer
		if code := run(strings.Fields(line), &out, &stderr); code != cli.ExitUsage {
			t.Errorf("sdc %s: exit code %d", line, code)
		}
		if !strings.Contains(stderr.String(), want) || !strings.Contains(stderr.String(), "--help") {
			t.Errorf("sdc %s: %q; it should say %q", line, stderr.String(), want)
		}
	}
}

// Help teaches, and --version says the version.
func TestHelp(t *testing.T) {
	for line, want := range map[string]string{
		"--help":        "sdc attach /dev/nbd0 --volume db",
		"attach --help": "/dev/braid/VOLUME",
		"detach --help": "refuses while",
		"serve --help":  "SIGTERM",
		"list --help":   "orphan",
		"why --help":    "which server",
		"top --help":    "receive",
		"trace --help":  "ask sdc why",
		"daemon --help": "$BRAID_RUN",
		"stop --help":   "attached",
		"--version":     cluster.Version,
		"":              "Usage:",
	} {
		var out, stderr bytes.Buffer
		if code := run(strings.Fields(line), &out, &stderr); code != cli.ExitDone {
			t.Errorf("sdc %s: exit code %d: %s", line, code, stderr.String())
		}
		if !strings.Contains(out.String(), want) {
			t.Errorf("sdc %s does not say %q", line, want)
		}
	}
}

// Without a daemon list is empty, stop has nothing to do, why says so.
func TestWithoutDaemon(t *testing.T) {
	t.Setenv("BRAID_RUN", filepath.Join(t.TempDir(), "run"))
	for line, want := range map[string]string{
		"list": "nothing is attached here", "list -o json": "[]", "stop": "",
		"top --once --interval 100ms": "no volume is used on this machine", "trace": "no request",
	} {
		var out, stderr bytes.Buffer
		code := run(strings.Fields(line), &out, &stderr)
		if code != cli.ExitDone || !strings.Contains(out.String(), want) {
			t.Errorf("sdc %s: code %d, %q %q", line, code, out.String(), stderr.String())
		}
	}
	var out, stderr bytes.Buffer
	if code := run([]string{"why", "/dev/nbd0"}, &out, &stderr); code != cli.ExitFailed ||
		!strings.Contains(stderr.String(), "no sdc daemon runs here") {
		t.Errorf("sdc why: code %d, %q", code, stderr.String())
	}
}

// lockedBuffer is a stderr that a test reads while the command still writes.
type lockedBuffer struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (b *lockedBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// serve replaces a stale socket, says ready, refuses a socket that is served, and
// ends cleanly on SIGTERM.
func TestServeMemory(t *testing.T) {
	dir, err := os.MkdirTemp("", "sdc")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	socket := filepath.Join(dir, "s")
	stale, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	stale.(*net.UnixListener).SetUnlinkOnClose(false)
	_ = stale.Close()

	var stderr lockedBuffer
	code := make(chan int, 1)
	args := []string{"serve", "--memory", "16M", "--volume", "mem", "--socket", socket}
	go func() { code <- run(args, &bytes.Buffer{}, &stderr) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); !strings.Contains(stderr.String(), "ready"); <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("not ready: %q", stderr.String())
		}
	}
	if !strings.Contains(stderr.String(), "volume mem (16M)") {
		t.Errorf("it says %q", stderr.String())
	}
	var second bytes.Buffer
	if c := run(args, &bytes.Buffer{}, &second); c != cli.ExitFailed ||
		!strings.Contains(second.String(), "another process serves it") {
		t.Errorf("second server: code %d, %q", c, second.String())
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	select {
	case c := <-code:
		if c != cli.ExitDone {
			t.Errorf("code %d, %q", c, stderr.String())
		}
	case <-time.After(20 * time.Second):
		t.Fatal("SIGTERM does not end it")
	}
	if _, err := os.Stat(socket); !os.IsNotExist(err) {
		t.Errorf("the socket is left behind: %v", err)
	}
}

// Signals end the soft context first and the hard one second.
func TestSignalContexts(t *testing.T) {
	soft, hard, stop := signalContexts(context.Background())
	defer stop()
	for _, c := range []context.Context{soft, hard} {
		if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
			t.Fatal(err)
		}
		select {
		case <-c.Done():
		case <-time.After(20 * time.Second):
			t.Fatal("the signal did nothing")
		}
	}
}
