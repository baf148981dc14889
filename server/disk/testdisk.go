// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// TestDiskEnv names the environment variable that makes Open return a disk for
// tests of real processes, over the file or device that was opened. Its value
// is a comma-separated list:
//
//	volatile               writes stay in the process's memory until a flush, so
//	                       that kill -9 is a power loss with a volatile cache
//	flush-fails-after=N    the N+1st flush and all later ones fail with EIO
//	write-fails-after=N    likewise for writes
//	read-fails-after=N     likewise for reads
//	flush-delay=DURATION   each flush takes that much longer
//	io-delay=DURATION      each read and write, one at a time: a disk that does only
//	                       so many in a second
//	while=PATH             failures and delays happen, and are counted, only while
//	                       PATH exists; a delay ends early when it goes
//	faults=PATH            while PATH exists, the failures and delays are those that
//	                       it lists in the same manner
const TestDiskEnv = "BRAID_TEST_DISK"

// volatileLimit bounds the memory of a volatile disk; beyond it the cache is
// written out, as a disk does, without being made durable.
const volatileLimit = 512 << 20

// volatile is the disk that TestDiskEnv asks for.
type volatile struct {
	*Device
	// mu guards the rest; it is held across the file's I/O, which is the point of
	// the exercise: one thing at a time.
	mu         sync.Mutex
	isVolatile bool
	cached     map[int64][]byte // by sector number
	flushes    int
	writes     int
	reads      int
	faults
	while string // the file that switches faults on; "": they are always on
	list  string // the file that lists faults; "": there is none
}

// faults are failures and delays.
type faults struct {
	failFlush int // -1: never
	failWrite int
	failRead  int
	delay     time.Duration // of a flush
	ioDelay   time.Duration // of a read or write
}

var noFaults = faults{failFlush: -1, failWrite: -1, failRead: -1}

func wrapTest(d *Device) (Backing, error) {
	spec := os.Getenv(TestDiskEnv)
	if spec == "" {
		return d, nil
	}
	v := &volatile{Device: d, cached: map[int64][]byte{}, faults: noFaults}
	for _, opt := range strings.Split(spec, ",") {
		if err := v.option(opt); err != nil {
			_ = d.Close()
			return nil, fmt.Errorf("%s=%s: %w", TestDiskEnv, spec, err)
		}
	}
	return v, nil
}

func (v *volatile) option(opt string) error {
	name, value, _ := strings.Cut(opt, "=")
	switch name {
	case "volatile":
		v.isVolatile = true
	case "while":
		v.while = value
	case "faults":
		v.list = value
	default:
		return v.faults.option(name, value)
	}
	return nil
}

func (f *faults) option(name, value string) (err error) {
	switch name {
	case "flush-fails-after":
		f.failFlush, err = strconv.Atoi(value)
	case "write-fails-after":
		f.failWrite, err = strconv.Atoi(value)
	case "read-fails-after":
		f.failRead, err = strconv.Atoi(value)
	case "flush-delay":
		f.delay, err = time.ParseDuration(value)
	case "io-delay":
		f.ioDelay, err = time.ParseDuration(value)
	default:
		return fmt.Errorf("unknown option %q", name)
	}
	return err
}

// learn takes the faults from the file that lists them. What it does not understand
// there cannot be told anybody, but a test would not do what it says.
func (v *volatile) learn() {
	if v.list == "" {
		return
	}
	v.faults = noFaults
	content, err := os.ReadFile(v.list)
	if err != nil {
		return
	}
	for _, opt := range strings.Split(strings.TrimSpace(string(content)), ",") {
		name, value, _ := strings.Cut(opt, "=")
		if err := v.faults.option(name, value); err != nil {
			panic(fmt.Sprintf("%s: %v", v.list, err))
		}
	}
}

// FD is -1: all I/O has to come through the methods.
func (v *volatile) FD() int { return -1 }

// faulty reports whether faults are switched on.
func (v *volatile) faulty() bool {
	if v.while == "" {
		return true
	}
	_, err := os.Stat(v.while)
	return err == nil
}

// work takes the time that a slow disk takes, which v.learn may change meanwhile.
func (v *volatile) work(delay *time.Duration) {
	v.learn()
	d := *delay
	if d <= 0 || !v.faulty() {
		return
	}
	end := time.After(d)
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-end:
			return
		case <-tick.C:
			if v.learn(); *delay <= 0 || !v.faulty() {
				return
			}
		}
	}
}

// fail counts an operation and says whether it is to fail.
func (v *volatile) fail(what string, count *int, after int) error {
	if after < 0 || !v.faulty() {
		return nil
	}
	if *count++; *count <= after {
		return nil
	}
	return fmt.Errorf("test disk: %s %d: %w", what, *count, syscall.EIO)
}

func (v *volatile) ReadAt(p []byte, off int64) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.work(&v.ioDelay)
	if err := v.fail("read", &v.reads, v.failRead); err != nil {
		return 0, err
	}
	n, err := v.Device.ReadAt(p, off)
	for o := 0; o+sector <= n; o += sector {
		if b := v.cached[(off+int64(o))/sector]; b != nil {
			copy(p[o:o+sector], b)
		}
	}
	return n, err
}

func (v *volatile) WriteAt(p []byte, off int64) (int, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.work(&v.ioDelay)
	if err := v.fail("write", &v.writes, v.failWrite); err != nil {
		return 0, err
	}
	if !v.isVolatile {
		return v.Device.WriteAt(p, off)
	}
	if len(p)%sector != 0 || off%sector != 0 {
		return 0, fmt.Errorf("test disk: write of %d bytes at %d: %w", len(p), off, syscall.EINVAL)
	}
	if off < 0 || off+int64(len(p)) > v.size {
		return 0, fmt.Errorf("test disk: write of %d bytes at %d: %w", len(p), off, syscall.ENOSPC)
	}
	for o := 0; o < len(p); o += sector {
		k := (off + int64(o)) / sector
		b := v.cached[k]
		if b == nil {
			b = alignedSector()
			v.cached[k] = b
		}
		copy(b, p[o:o+sector])
	}
	if len(v.cached) > volatileLimit/sector {
		if err := v.writeOut(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

func (v *volatile) writeOut() error {
	for k, b := range v.cached {
		if _, err := v.Device.WriteAt(b, k*sector); err != nil {
			return err
		}
	}
	clear(v.cached)
	return nil
}

func (v *volatile) Flush() error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.learn()
	if err := v.fail("flush", &v.flushes, v.failFlush); err != nil {
		return err
	}
	v.work(&v.delay)
	if err := v.writeOut(); err != nil {
		return err
	}
	return v.Device.Flush()
}

func (v *volatile) Discard(off, n int64) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	for k := off / sector; k < (off+n)/sector; k++ {
		delete(v.cached, k)
	}
	return v.Device.Discard(off, n)
}
