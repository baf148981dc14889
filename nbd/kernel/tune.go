// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// Queue settings after an attach. The driver's own limit of 128 KiB per request
// would hide large requests, and its read-ahead keeps one of them in flight.
const (
	maxSectorsKB = 1024
	readAheadKB  = 4096
)

// tune raises the queue limits of a device.
func (p paths) tune(index int) error {
	queue := filepath.Join(p.sys, "block", fmt.Sprintf("nbd%d", index), "queue")
	most := maxSectorsKB
	if b, err := os.ReadFile(filepath.Join(queue, "max_hw_sectors_kb")); err == nil {
		if n, err := strconv.Atoi(strings.TrimSpace(string(b))); err == nil {
			most = min(most, n)
		}
	}
	return errors.Join(
		writeSetting(filepath.Join(queue, "max_sectors_kb"), most),
		writeSetting(filepath.Join(queue, "read_ahead_kb"), readAheadKB))
}

func writeSetting(path string, value int) error {
	if err := os.WriteFile(path, []byte(strconv.Itoa(value)), 0); err != nil {
		return fmt.Errorf("set %s to %d: %w", path, value, err)
	}
	return nil
}

// link makes /dev/braid/VOLUME. A link of that name that points elsewhere is a
// leftover and is replaced.
func (p paths) link(volume string, index int) error {
	dir := filepath.Join(p.dev, "braid")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make %s: %w", dir, err)
	}
	at := filepath.Join(dir, volume)
	if err := os.Remove(at); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("replace %s: %w", at, err)
	}
	if err := os.Symlink(fmt.Sprintf("../nbd%d", index), at); err != nil {
		return fmt.Errorf("link %s: %w", at, err)
	}
	return nil
}

// unlink removes /dev/braid/VOLUME if it still names this device.
func (p paths) unlink(volume string, index int) {
	dir := filepath.Join(p.dev, "braid")
	at := filepath.Join(dir, volume)
	if to, err := os.Readlink(at); err != nil || filepath.Base(to) != fmt.Sprintf("nbd%d", index) {
		return
	}
	_ = os.Remove(at)
	_ = os.Remove(dir) // succeeds when it was the last
}

// unlinkAll removes whatever below /dev/braid names this device.
func (p paths) unlinkAll(index int) {
	links, _ := os.ReadDir(filepath.Join(p.dev, "braid"))
	for _, l := range links {
		p.unlink(l.Name(), index)
	}
}
