// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// system is one thing under test. Start leaves it running and filled with data.
type system interface {
	Name() string
	Start(ctx context.Context, b *backing) (target, error)
	// Pids names the processes whose CPU time is the system's.
	Pids() map[string][]int
	Stop()
}

// backing hands out block storage of one kind and takes it back.
type backing struct {
	Kind string // "tmpfs": loop devices over tmpfs; "disk": plain files
	Dir  string
	Size uint64
	loop []string
}

// path makes a new file of Size bytes, and a loop device over it for tmpfs.
func (b *backing) path(name string) (string, error) {
	file := filepath.Join(b.Dir, name+".img")
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if err := syscall.Fallocate(int(f.Fd()), 0, 0, int64(b.Size)); err != nil {
		return "", fmt.Errorf("allocate %d bytes for %s: %w", b.Size, file, err)
	}
	if b.Kind == "disk" {
		return file, nil
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", file).Output()
	if err != nil {
		return "", fmt.Errorf("losetup %s: %w (loop devices need root)", file, err)
	}
	dev := strings.TrimSpace(string(out))
	b.loop = append(b.loop, dev)
	return dev, nil
}

// close frees what path made.
func (b *backing) close() {
	for _, d := range b.loop {
		if out, err := exec.Command("losetup", "--detach", d).CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "bench: losetup --detach %s: %v: %s\n", d, err, out)
		}
	}
	b.loop = nil
	os.RemoveAll(b.Dir)
}

// daemon is a child process that serves until it is stopped.
type daemon struct {
	cmd  *exec.Cmd
	log  bytes.Buffer
	done chan struct{}
}

func startDaemon(env []string, argv ...string) (*daemon, error) {
	d := &daemon{cmd: exec.Command(argv[0], argv[1:]...), done: make(chan struct{})}
	d.cmd.Env = append(os.Environ(), env...)
	d.cmd.Stdout, d.cmd.Stderr = &d.log, &d.log
	d.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
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

// waitSocket waits until a unix socket is there or the daemon has ended.
func (d *daemon) waitSocket(ctx context.Context, path string) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		if st, err := os.Stat(path); err == nil && st.Mode()&os.ModeSocket != 0 {
			return nil
		}
		select {
		case <-d.done:
			return fmt.Errorf("%s ended: %s", d.cmd.Args[0], d.log.String())
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("no socket %s: %s", path, d.log.String()), ctx.Err())
		case <-tick.C:
		}
	}
}
