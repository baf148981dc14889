// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
)

// Kinds of backing.
const (
	onTmpfs = "tmpfs" // loop devices with direct I/O over files in /dev/shm
	onDisk  = "disk"  // plain files, opened with O_DIRECT by who can
)

// backing hands out block storage of one kind and takes it back.
type backing struct {
	Kind string
	Dir  string
	Size uint64
	loop []string
}

// path makes a new file of Size bytes, and a loop device over it for tmpfs.
func (b *backing) path(name string) (string, error) { return b.pathOf(name, b.Size, false) }

// pathOf is path for another size; a sparse one takes space when it is written.
func (b *backing) pathOf(name string, size uint64, sparse bool) (string, error) {
	file := filepath.Join(b.Dir, name+".img")
	f, err := os.Create(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	if sparse {
		err = f.Truncate(int64(size))
	} else {
		err = syscall.Fallocate(int(f.Fd()), 0, 0, int64(size))
	}
	if err != nil {
		return "", fmt.Errorf("allocate %d bytes for %s: %w", size, file, err)
	}
	if b.Kind == onDisk {
		return file, nil
	}
	out, err := exec.Command("losetup", "--find", "--show", "--direct-io=on", file).Output()
	if err != nil {
		return "", fmt.Errorf("losetup %s: %w (loop devices need root; -backing disk does not)", file, err)
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
