// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"path/filepath"
	"strconv"
)

// raw is fio straight on the device: the floor.
type raw struct{}

func (raw) Name() string           { return "raw" }
func (raw) Pids() map[string][]int { return nil }
func (raw) Stop()                  {}

func (raw) Start(ctx context.Context, b *backing) (target, error) {
	p, err := b.path("raw")
	if err != nil {
		return target{}, err
	}
	t := target{Path: p, Size: b.Size}
	return t, fill(ctx, t)
}

// nbdPeer is an NBD server of somebody else's that serves one device or file on
// a unix socket: one hop, one copy, no checksum.
type nbdPeer struct {
	name    string
	noFlush bool
	argv    func(path, socket, dir string) []string
	d       *daemon
}

func (p *nbdPeer) Name() string { return p.name }
func (p *nbdPeer) Stop()        { p.d.stop() }

func (p *nbdPeer) Pids() map[string][]int {
	return map[string][]int{p.name: {p.d.pid()}}
}

func (p *nbdPeer) Start(ctx context.Context, b *backing) (target, error) {
	path, err := b.path(p.name)
	if err != nil {
		return target{}, err
	}
	socket := filepath.Join(b.Dir, p.name+".sock")
	if p.d, err = startDaemon(nil, p.argv(path, socket, b.Dir)...); err != nil {
		return target{}, err
	}
	if err := p.d.waitSocket(ctx, socket); err != nil {
		return target{}, err
	}
	t := target{URI: "nbd+unix:///?socket=" + socket, Size: b.Size, NoFlush: p.noFlush}
	return t, fill(ctx, t)
}

// nbdPeers are the servers that one would put in front of a single disk.
func nbdPeers(goNBD string) []*nbdPeer {
	qemu := func(aio string) func(path, socket, dir string) []string {
		return func(path, socket, _ string) []string {
			return []string{"qemu-nbd", "--format=raw", "--cache=none", "--aio=" + aio, "--discard=unmap",
				"--persistent", "--shared=8", "--export-name=", "--socket=" + socket, path}
		}
	}
	return []*nbdPeer{
		{name: "qemu-nbd-uring", argv: qemu("io_uring")},
		{name: "qemu-nbd-native", argv: qemu("native")},
		{name: "nbdkit-file", argv: func(path, socket, _ string) []string {
			return []string{"nbdkit", "--foreground", "--unix", socket, "file", path}
		}},
		{name: "go-nbd", noFlush: true, argv: func(path, socket, _ string) []string {
			return []string{goNBD, "-file", path, "-socket", socket, "-preferred", strconv.Itoa(4096)}
		}},
	}
}
