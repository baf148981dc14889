// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// lockDir makes the data directory and keeps other processes out of it. The
// kernel gives the lock up with the process, however that ends.
func lockDir(dir string) (*os.File, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the data directory: %w", err)
	}
	path := filepath.Join(dir, "lock")
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock the data directory: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		owner, _ := os.ReadFile(path) // only for the message
		f.Close()
		return nil, fmt.Errorf("the data directory %s is in use by another mdm (process %s); stop that "+
			"one, or give this one a --data-dir of its own", dir, strings.TrimSpace(string(owner)))
	}
	if err == nil {
		err = errors.Join(f.Truncate(0), writeAt0(f, fmt.Sprintln(os.Getpid())))
	}
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("lock %s: %w", path, err)
	}
	return f, nil
}

func writeAt0(f *os.File, text string) error {
	_, err := f.WriteAt([]byte(text), 0)
	return err
}
