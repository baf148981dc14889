// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrInUse: the device is mounted or held by something.
var ErrInUse = errors.New("in use")

// ErrBusy: the device is connected already.
var ErrBusy = errors.New("busy")

// use says who uses a device: the first use that is found, or nil.
func (p paths) use(index int) error {
	name := fmt.Sprintf("nbd%d", index)
	numbers := p.numbers(name)
	if err := p.mounted(name, numbers); err != nil {
		return err
	}
	if err := p.swapped(name); err != nil {
		return err
	}
	for node := range numbers {
		holders, _ := os.ReadDir(filepath.Join(p.sys, "class/block", node, "holders"))
		for _, h := range holders {
			return fmt.Errorf("/dev/%s is %w: block device %s lies on it", node, ErrInUse, h.Name())
		}
	}
	return p.claimed(name)
}

// numbers returns the device and its partitions with their "major:minor".
func (p paths) numbers(name string) map[string]string {
	out := map[string]string{}
	dir := filepath.Join(p.sys, "block", name)
	nodes, _ := filepath.Glob(filepath.Join(dir, name+"p*"))
	for _, node := range append(nodes, dir) {
		if b, err := os.ReadFile(filepath.Join(node, "dev")); err == nil {
			out[filepath.Base(node)] = strings.TrimSpace(string(b))
		}
	}
	return out
}

// mounted looks for a mount of the device or of a partition of it, by number and,
// because some file systems show numbers of their own, by name.
func (p paths) mounted(name string, numbers map[string]string) error {
	b, err := os.ReadFile(filepath.Join(p.proc, "self/mountinfo"))
	if err != nil {
		return fmt.Errorf("list the mounts: %w", err)
	}
	for line := range strings.Lines(string(b)) {
		// 36 35 98:0 /root /mnt/point options… - type source super-options
		before, after, ok := strings.Cut(line, " - ")
		head, tail := strings.Fields(before), strings.Fields(after)
		if !ok || len(head) < 5 || len(tail) < 2 {
			continue
		}
		for node, number := range numbers {
			if head[2] == number || tail[1] == "/dev/"+node {
				at := unescape(head[4])
				return fmt.Errorf("/dev/%s is %w: mounted at %s (umount %s)", node, ErrInUse, at, at)
			}
		}
	}
	return nil
}

func (p paths) swapped(name string) error {
	b, err := os.ReadFile(filepath.Join(p.proc, "swaps"))
	if err != nil {
		return nil // a kernel without swap
	}
	for line := range strings.Lines(string(b)) {
		node, _, _ := strings.Cut(line, " ")
		if node == "/dev/"+name || strings.HasPrefix(node, "/dev/"+name+"p") {
			return fmt.Errorf("%s is %w: as swap space (swapoff %s)", node, ErrInUse, node)
		}
	}
	return nil
}

// claimed tries to open the device exclusively, as a mount would.
func (p paths) claimed(name string) error {
	path := filepath.Join(p.dev, name)
	var opened error
	err := within(nodeLimit, func() error {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
		if err == nil {
			err = unix.Close(fd)
		}
		opened = err
		return nil
	})
	if err == nil && errors.Is(opened, unix.EBUSY) {
		return fmt.Errorf("%s is %w: a program or another block device has claimed it", path, ErrInUse)
	}
	return nil // what cannot be opened is not in use
}

// unescape turns \040 and the like of mountinfo into characters.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// backend returns what a connected device calls its backend, and whether it is
// connected at all.
func (p paths) backend(index int) (identifier string, isConnected bool) {
	dir := filepath.Join(p.sys, "block", fmt.Sprintf("nbd%d", index))
	if _, err := os.Stat(filepath.Join(dir, "pid")); err != nil {
		return "", false
	}
	b, _ := os.ReadFile(filepath.Join(dir, "backend"))
	return strings.TrimSpace(string(b)), true
}

// busy says who holds a device that is connected already, or nil.
func (p paths) busy(index int) error {
	backend, is := p.backend(index)
	if !is {
		return nil
	}
	if volume, ours := strings.CutPrefix(backend, backendPrefix); ours {
		return fmt.Errorf("/dev/nbd%d is %w: volume %s is attached to it", index, ErrBusy, volume)
	}
	pid, _ := os.ReadFile(filepath.Join(p.sys, "block", fmt.Sprintf("nbd%d", index), "pid"))
	return fmt.Errorf("/dev/nbd%d is %w: connected by another NBD client (process %s)", index,
		ErrBusy, strings.TrimSpace(string(pid)))
}
