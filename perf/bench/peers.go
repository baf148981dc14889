// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// raw is fio straight on the device: the floor.
type raw struct{}

func (raw) Name() string           { return "raw" }
func (raw) Settings() string       { return "fio's io_uring engine straight on the device, O_DIRECT" }
func (raw) Pids() map[string][]int { return nil }
func (raw) Stop()                  {}

func (raw) Start(_ context.Context, b *backing) (target, error) {
	p, err := b.path("raw")
	return target{Path: p, Size: b.Size}, err
}

// nbdPeer is an NBD server of somebody else's that serves one device or file on
// a unix socket: one hop, one copy, no checksum.
type nbdPeer struct {
	name     string
	process  string
	note     string
	noFlush  bool
	diskless bool
	argv     func(path, socket string) []string
	d        *daemon
}

func (p *nbdPeer) Name() string           { return p.name }
func (p *nbdPeer) Stop()                  { p.d.stop() }
func (p *nbdPeer) Pids() map[string][]int { return map[string][]int{p.process: {p.d.pid()}} }

func (p *nbdPeer) Settings() string {
	argv := p.argv("DEVICE", "SOCKET")
	argv[0] = filepath.Base(argv[0])
	return "`" + strings.Join(argv, " ") + "`; " + p.note
}

func (p *nbdPeer) Start(ctx context.Context, b *backing) (target, error) {
	var path string
	var err error
	if !p.diskless {
		if path, err = b.path(p.name); err != nil {
			return target{}, err
		}
	}
	socket := filepath.Join(b.Dir, p.name+".sock")
	if p.d, err = startDaemon(nil, p.argv(path, socket)...); err != nil {
		return target{}, err
	}
	t := target{URI: "nbd+unix:///?socket=" + socket, Size: b.Size, NoFlush: p.noFlush}
	return t, p.d.waitSocket(ctx, socket)
}

// nbdPeers are the servers that one would put in front of a single disk.
func nbdPeers(goNBD string, size uint64) []system {
	qemu := func(aio string) func(path, socket string) []string {
		return func(path, socket string) []string {
			return []string{"qemu-nbd", "--format=raw", "--cache=none", "--aio=" + aio, "--discard=unmap",
				"--persistent", "--shared=8", "--export-name=", "--socket=" + socket, path}
		}
	}
	cached := "through the page cache: what is in memory costs it no disk I/O, and a write is one only when flushed"
	return []system{
		&nbdPeer{name: "qemu-nbd-uring", process: "qemu-nbd", argv: qemu("io_uring"), note: "O_DIRECT"},
		&nbdPeer{name: "qemu-nbd-native", process: "qemu-nbd", argv: qemu("native"), note: "O_DIRECT"},
		&nbdPeer{name: "nbdkit-file", process: "nbdkit", note: cached, argv: func(path, socket string) []string {
			return []string{"nbdkit", "--foreground", "--unix", socket, "file", path}
		}},
		&nbdServer{},
		&nbdPeer{name: "go-nbd", process: "go-nbd", noFlush: true, note: cached + "; it knows no flush",
			argv: func(path, socket string) []string {
				return []string{goNBD, "-file", path, "-socket", socket, "-preferred", strconv.Itoa(4096)}
			}},
		&nbdPeer{name: "nbdkit-memory", process: "nbdkit", diskless: true,
			note: "no disk at all: a ceiling for one hop in C",
			argv: func(_, socket string) []string {
				return []string{"nbdkit", "--foreground", "--unix", socket, "memory", strconv.FormatUint(size, 10)}
			}},
	}
}

// nbdServer is the NBD project's own server. It leaves our process tree, and it
// starts a process for each connection.
type nbdServer struct{ pid int }

func (s *nbdServer) Name() string           { return "nbd-server" }
func (s *nbdServer) Pids() map[string][]int { return map[string][]int{"nbd-server": {s.pid}} }

func (s *nbdServer) Settings() string {
	return "flush = true, fua = true, 4 threads (its default), a process a connection; through the page cache"
}

func (s *nbdServer) Start(ctx context.Context, b *backing) (target, error) {
	path, err := b.path("nbd-server")
	if err != nil {
		return target{}, err
	}
	base := filepath.Join(b.Dir, "nbd-server")
	conf := fmt.Sprintf("[generic]\n\tunixsock = %s.sock\n[bench]\n\texportname = %s\n\tflush = true\n\tfua = true\n",
		base, path)
	if err := os.WriteFile(base+".conf", []byte(conf), 0o644); err != nil {
		return target{}, err
	}
	// It closes every descriptor that the limit allows when it starts, and again
	// for each connection.
	script := fmt.Sprintf("ulimit -n 1024; exec nbd-server -C '%s.conf' -p '%s.pid'", base, base)
	if _, err := call(ctx, 10*time.Second, nil, "sh", "-c", script); err != nil {
		return target{}, err
	}
	t := target{URI: "nbd+unix:///bench?socket=" + base + ".sock", Size: b.Size}
	return t, until(ctx, 10*time.Second, "socket of nbd-server", func() (bool, error) {
		text, _ := os.ReadFile(base + ".pid") // it comes a moment after the start
		s.pid, _ = strconv.Atoi(strings.TrimSpace(string(text)))
		return s.pid > 0 && isSocket(base+".sock"), nil
	})
}

func (s *nbdServer) Stop() {
	if s.pid <= 0 {
		return
	}
	_ = syscall.Kill(s.pid, syscall.SIGTERM)
	err := until(context.Background(), 5*time.Second, "end of nbd-server", func() (bool, error) {
		return !processRuns(s.pid), nil
	})
	if err != nil {
		_ = syscall.Kill(s.pid, syscall.SIGKILL)
	}
}
