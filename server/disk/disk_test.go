// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

const testSize = 4 << 20

func backingFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return path
}

func poke(t *testing.T, path string, off int64, b string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte(b), off); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
}

// Goal: bytes written come back, size is right, discard is accepted.
func TestFileRoundTrip(t *testing.T) {
	b, err := Open(backingFile(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Size() != testSize || b.FD() < 0 {
		t.Fatalf("size %d, fd %d", b.Size(), b.FD())
	}
	w, r := alignedSector(), alignedSector()
	copy(w, "hello")
	if _, err := b.WriteAt(w, 8192); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := b.ReadAt(r, 8192); err != nil || string(r) != string(w) {
		t.Fatalf("read %q, %v", r[:8], err)
	}
	if err := b.Discard(0, 1<<20); err != nil {
		t.Fatal(err)
	}
}

// Goal: a second server on the same file is refused; inspect is not.
func TestLock(t *testing.T) {
	path := backingFile(t)
	b, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if _, err := Open(path, Options{}); !errors.Is(err, ErrInUse) {
		t.Fatalf("second open: %v", err)
	}
	r, err := Open(path, Options{ReadOnly: true})
	if err != nil {
		t.Fatalf("read-only open: %v", err)
	}
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
}

// Goal: what is not a disk is refused in words.
func TestWrongKind(t *testing.T) {
	if _, err := Open(t.TempDir(), Options{}); !errors.Is(err, ErrKind) {
		t.Errorf("directory: %v", err)
	}
	if _, err := Open("/dev/null", Options{}); !errors.Is(err, ErrKind) {
		t.Errorf("character device: %v", err)
	}
	if _, err := Open(filepath.Join(t.TempDir(), "none"), Options{}); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing: %v", err)
	}
}

// Goal: each foreign format is recognised and refused, unless forced.
func TestProbe(t *testing.T) {
	mbr := make([]byte, 512)
	mbr[446+4] = 0x83
	binary.LittleEndian.PutUint32(mbr[446+12:], 2048)
	mbr[510], mbr[511] = 0x55, 0xAA
	uber := "\x0c\xb1\xba\x00\x00\x00\x00\x00"
	for _, c := range []struct {
		off   int64
		bytes string
		want  string
	}{
		{0x438, "\x53\xef", "ext4"},
		{0, "XFSB", "XFS"},
		{0x10040, "_BHRfS_M", "Btrfs"},
		{0x218, "LVM2 001", "LVM"},
		{0, "LUKS\xba\xbe", "LUKS"},
		{4096, "\xfc\x4e\x2b\xa9", "RAID"},
		{testSize - 8<<10, "\xfc\x4e\x2b\xa9", "RAID"},
		{testSize - 64<<10, "\xfc\x4e\x2b\xa9", "RAID"},
		{4086, "SWAPSPACE2", "swap"},
		{512, "EFI PART", "GUID"},
		{testSize - 512, "EFI PART", "backup of a GUID"},
		{0, string(mbr), "MBR"},
		{128 << 10, uber, "ZFS"},
		{testSize - 512<<10 + 128<<10, uber, "ZFS"},
	} {
		path := backingFile(t)
		poke(t, path, c.off, c.bytes)
		_, err := Open(path, Options{})
		if !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q at %d: %v", c.bytes, c.off, err)
		}
		b, err := Open(path, Options{Force: true})
		if err != nil {
			t.Errorf("forced: %v", err)
			continue
		}
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	}
	// A boot sector without partitions and Braid's own superblock are nobody else's.
	path := backingFile(t)
	poke(t, path, 510, "\x55\xAA")
	poke(t, path, 0, "BRAIDDEV")
	b, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
}

// Goal: the test disk loses what was not flushed, and fails as told.
func TestVolatile(t *testing.T) {
	path := backingFile(t)
	t.Setenv(TestDiskEnv, "volatile,flush-fails-after=1")
	b, err := Open(path, Options{})
	if err != nil {
		t.Fatal(err)
	}
	w := alignedSector()
	for i, text := range []string{"kept", "lost"} {
		copy(w, text)
		if _, err := b.WriteAt(w, int64(i)*4096); err != nil {
			t.Fatal(err)
		}
		if i == 0 {
			if err := b.Flush(); err != nil {
				t.Fatal(err)
			}
		}
	}
	r := alignedSector()
	if _, err := b.ReadAt(r, 4096); err != nil || string(r[:4]) != "lost" {
		t.Fatalf("read through the cache: %q, %v", r[:4], err)
	}
	if err := b.Flush(); !errors.Is(err, syscall.EIO) {
		t.Fatalf("second flush: %v", err)
	}
	if err := b.Close(); err != nil { // the process dies
		t.Fatal(err)
	}
	t.Setenv(TestDiskEnv, "")
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(raw[:4]) != "kept" || raw[4096] != 0 {
		t.Fatalf("on the file: %q, %q", raw[:4], raw[4096:4100])
	}
	t.Setenv(TestDiskEnv, "sometimes")
	if _, err := Open(path, Options{}); err == nil {
		t.Fatal("an unknown option was accepted")
	}
}

// Goal: a test disk has the faults that a file lists, while it lists them.
func TestListedFaults(t *testing.T) {
	list := filepath.Join(t.TempDir(), "faults")
	t.Setenv(TestDiskEnv, "faults="+list)
	b, err := Open(backingFile(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	try := func() (read, write, flush error) {
		_, read = b.ReadAt(alignedSector(), 0)
		_, write = b.WriteAt(alignedSector(), 0)
		return read, write, b.Flush()
	}
	for _, faults := range []string{"", "read-fails-after=0,flush-fails-after=0", "", "write-fails-after=0", ""} {
		_ = os.Remove(list)
		if faults != "" {
			if err := os.WriteFile(list, []byte(faults+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		read, write, flush := try()
		for name, err := range map[string]error{"read": read, "write": write, "flush": flush} {
			if errors.Is(err, syscall.EIO) != strings.Contains(faults, name) {
				t.Errorf("faults %q: %s: %v", faults, name, err)
			}
		}
	}
}

// Goal: a slow test disk does one I/O at a time, each as slow as told. Method: two
// at once take at least twice the delay; that they may take longer is nobody's concern.
func TestSlowDisk(t *testing.T) {
	const delay = 5 * time.Millisecond
	t.Setenv(TestDiskEnv, "io-delay="+delay.String())
	b, err := Open(backingFile(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	failed := make(chan error, 2)
	go func() { _, err := b.ReadAt(alignedSector(), 0); failed <- err }()
	go func() { _, err := b.WriteAt(alignedSector(), 4096); failed <- err }()
	if err := errors.Join(<-failed, <-failed, b.Close()); err != nil {
		t.Fatal(err)
	}
	if took := time.Since(began); took < 2*delay {
		t.Errorf("two I/Os of %v each took %v", delay, took)
	}
}

// Goal: a power loss leaves per sector a version that was written, and what was
// flushed is there unless something newer was cached.
func TestMemCrash(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 1))
	for range 200 {
		m := NewMem(1 << 20)
		w := alignedSector()
		for v := range byte(4) {
			w[0] = v + 1
			if _, err := m.WriteAt(w, 0); err != nil {
				t.Fatal(err)
			}
			if v == 1 {
				if err := m.Flush(); err != nil {
					t.Fatal(err)
				}
			}
		}
		c := m.Crash(r, nil)
		b := alignedSector()
		if _, err := c.ReadAt(b, 0); err != nil {
			t.Fatal(err)
		}
		whole := true
		for _, x := range b[1:] {
			whole = whole && x == 0
		}
		if whole && (b[0] < 2 || b[0] > 4) {
			t.Fatalf("version %d after the crash", b[0])
		}
	}
	m := NewMem(1 << 20)
	m.Fail(Fault{Op: "write", Off: 4096, Len: 4096, After: 1, Times: 1})
	w := alignedSector()
	for i, want := range []error{nil, syscall.EIO, nil} {
		if _, err := m.WriteAt(w, 4096); !errors.Is(err, want) {
			t.Fatalf("write %d: %v", i, err)
		}
	}
}

// Goal: the faults of a test disk come and go with a file.
func TestFaultsWhile(t *testing.T) {
	broken := filepath.Join(t.TempDir(), "broken")
	t.Setenv(TestDiskEnv, "read-fails-after=0,write-fails-after=0,flush-delay=1h,while="+broken)
	b, err := Open(backingFile(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	sector := alignedSector()
	use := func() error {
		_, read := b.ReadAt(sector, 0)
		_, write := b.WriteAt(sector, 0)
		return errors.Join(read, write)
	}
	if err := errors.Join(use(), b.Flush()); err != nil {
		t.Fatalf("before the fault: %v", err)
	}
	if err := os.WriteFile(broken, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := use(); !errors.Is(err, syscall.EIO) {
		t.Errorf("with the fault: %v", err)
	}
	flushed := make(chan error)
	go func() { flushed <- b.Flush() }()
	if err := os.Remove(broken); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(<-flushed, use()); err != nil {
		t.Errorf("after the fault: %v", err)
	}
}
