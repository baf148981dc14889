// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// process is a daemon of this test. What it says is in log.
type process struct {
	cmd   *exec.Cmd
	log   logBuffer
	ended chan struct{} // closed once it has been waited for
}

// logBuffer is written by a process and read by the test meanwhile.
type logBuffer struct {
	mu  sync.Mutex // guards buf
	buf bytes.Buffer
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf.String()
}

// start starts one of Braid's programs in the cluster's environment; it is killed
// with the test, if it still runs.
func (c *cluster) start(t *testing.T, name string, args ...string) *process {
	t.Helper()
	return c.launch(t, filepath.Join(c.bin, name), args...)
}

// launch is start for a program that is not Braid's.
func (c *cluster) launch(t *testing.T, path string, args ...string) *process {
	t.Helper()
	p := &process{cmd: exec.Command(path, args...), ended: make(chan struct{})}
	p.cmd.Env = append(os.Environ(), "BRAID_MDM="+c.mdm, "BRAID_RUN="+c.run)
	p.cmd.Stdout, p.cmd.Stderr = &p.log, &p.log
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = p.cmd.Wait(); close(p.ended) }()
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("%s had said:\n%s", strings.Join(p.cmd.Args, " "), p.log.String())
		}
		_ = p.cmd.Process.Kill()
		<-p.ended
	})
	return p
}

// until waits for a condition, for as long as the process lives.
func (p *process) until(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-p.ended:
			if done() {
				return
			}
			t.Fatalf("%s has ended before %s: %v", p.cmd.Path, what, p.cmd.ProcessState)
		case <-limit:
			t.Fatalf("not within %v: %s", patience, what)
		}
	}
}

// says waits for a text in what the process says.
func (p *process) says(t *testing.T, text string) {
	t.Helper()
	p.until(t, "it said "+text, func() bool { return strings.Contains(p.log.String(), text) })
}

// end waits for the end of the process and returns its exit code.
func (p *process) end(t *testing.T) int {
	t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		t.Fatalf("%s does not end", p.cmd.Path)
	}
	return p.cmd.ProcessState.ExitCode()
}

// stop asks the process to end, which it must do with code 0.
func (p *process) stop(t *testing.T) {
	t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	if code := p.end(t); code != 0 {
		t.Errorf("%s: exit code %d after SIGTERM", strings.Join(p.cmd.Args, " "), code)
	}
}

// export is a volume served on a unix socket by `sdc serve`.
type export struct {
	*process
	uri  string
	sock string
}

// serve starts `sdc serve` and waits until the socket is there; with the test it
// has to end cleanly.
func (c *cluster) serve(t *testing.T, volume string, options ...string) *export {
	t.Helper()
	e := c.offer(t, volume, volume, options...)
	t.Cleanup(func() { e.stop(t) })
	return e
}

// offer is serve on a socket of that name, for an export that may end as it likes.
func (c *cluster) offer(t *testing.T, volume, socket string, options ...string) *export {
	t.Helper()
	e := &export{sock: filepath.Join(c.dir, socket+".sock")}
	e.uri = "nbd+unix:///" + volume + "?socket=" + e.sock
	e.process = c.start(t, "sdc", append([]string{"serve", "--volume", volume, "--socket", e.sock}, options...)...)
	e.says(t, "ready")
	return e
}
