// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// system is one thing under test.
type system interface {
	Name() string
	// Settings says in one line how it runs: what a reader needs to repeat it.
	Settings() string
	// Start leaves it serving an empty volume, or device, of b.Size bytes.
	Start(ctx context.Context, b *backing) (target, error)
	// Pids names the processes whose CPU time is the system's.
	Pids() map[string][]int
	Stop()
}

// output collects what a child process says.
type output struct {
	mu sync.Mutex // guards b: the child's copier writes while an error is made
	b  bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.b.String()
}

// daemon is a child process that serves until it is stopped.
type daemon struct {
	cmd  *exec.Cmd
	log  output
	done chan struct{}
}

// startDaemon starts argv. The child dies with this process, however that ends.
func startDaemon(env []string, argv ...string) (*daemon, error) {
	d := &daemon{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	if err := d.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", argv[0], err)
	}
	go func() {
		_ = d.cmd.Wait()
		close(d.done)
	}()
	return d, nil
}

func (d *daemon) pid() int { return d.cmd.Process.Pid }

func (d *daemon) stop() {
	if d == nil {
		return
	}
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.done:
	case <-time.After(10 * time.Second):
		_ = d.cmd.Process.Kill()
		<-d.done
	}
}

// wait waits until ready says so, the daemon has ended, or the time is up.
func (d *daemon) wait(ctx context.Context, what string, ready func() bool) error {
	err := until(ctx, 30*time.Second, what, func() (bool, error) {
		select {
		case <-d.done:
			return false, fmt.Errorf("%s has ended", d.cmd.Args[0])
		default:
			return ready(), nil
		}
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, d.log.String())
	}
	return nil
}

// until asks again and again until it is done, fails, or the time is up.
func until(ctx context.Context, limit time.Duration, what string, done func() (bool, error)) error {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		if ok, err := done(); ok || err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("no %s after %v: %w", what, limit, ctx.Err())
		case <-tick.C:
		}
	}
}

func (d *daemon) waitSocket(ctx context.Context, path string) error {
	return d.wait(ctx, "socket "+path, func() bool { return isSocket(path) })
}

func isSocket(path string) bool {
	st, err := os.Stat(path)
	return err == nil && st.Mode()&os.ModeSocket != 0
}

// call runs a command to its end and returns what it prints.
func call(ctx context.Context, limit time.Duration, env []string, argv ...string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return "", fmt.Errorf("%s: %w\n%s%s", strings.Join(argv, " "), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.String(), nil
}
