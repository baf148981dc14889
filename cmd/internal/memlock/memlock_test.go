// SPDX-License-Identifier: Apache-2.0

package memlock

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"unsafe"

	"golang.org/x/sys/unix"
)

// TestMain lets the test binary play the daemon: with the variable set it goes
// through the steps and prints, for each of its threads, the kernel's task flags.
func TestMain(m *testing.M) {
	if os.Getenv("MEMLOCK_CHILD") == "" {
		os.Exit(m.Run())
	}
	if err := Reexec(); err != nil {
		println(err.Error())
		os.Exit(3)
	}
	tasks, _ := os.ReadDir("/proc/self/task")
	for _, t := range tasks {
		stat, err := os.ReadFile("/proc/self/task/" + t.Name() + "/stat")
		if err != nil {
			continue // the thread has just ended
		}
		_, rest, _ := strings.Cut(string(stat), ") ")
		os.Stdout.WriteString(strings.Fields(rest)[6] + "\n") // field 9: flags
	}
	os.Exit(0)
}

// Goal: after Reexec every thread, not only the calling one, carries the
// attribute. Method: a child process goes through all steps and lists the flags
// of its threads; PF_MEMALLOC_NOIO is part of what PR_SET_IO_FLUSHER sets.
func TestEveryThreadIsAFlusher(t *testing.T) {
	if !mayFlush(t) {
		t.Log("no CAP_SYS_RESOURCE: the attribute can't be set; only the error is checked")
		if err := Reexec(); err == nil || !strings.Contains(err.Error(), "CAP_SYS_RESOURCE") {
			t.Fatalf("Reexec without privilege: %v", err)
		}
		return
	}
	const noIO = 0x00080000 // include/linux/sched.h
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "MEMLOCK_CHILD=1")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("child: %v", err)
	}
	lines := strings.Fields(string(out))
	if len(lines) < 2 {
		t.Fatalf("expected several threads, got %q", out)
	}
	for _, l := range lines {
		flags, err := strconv.ParseUint(l, 10, 64)
		if err != nil || flags&noIO == 0 {
			t.Errorf("a thread has flags %q without PF_MEMALLOC_NOIO", l)
		}
	}
	if v, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0); err != nil || v != 0 {
		t.Errorf("the parent has changed too: %d, %v", v, err)
	}
}

// mayFlush reads the effective capabilities of the process.
func mayFlush(t *testing.T) bool {
	t.Helper()
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, _ := strings.Cut(string(status), "CapEff:")
	caps, err := strconv.ParseUint(strings.Fields(rest)[0], 16, 64)
	if err != nil {
		t.Fatal(err)
	}
	return caps&(1<<unix.CAP_SYS_RESOURCE) != 0
}

// Goal: locking works or says what it lacks, and prefaulting changes no byte.
func TestLockAndPrefault(t *testing.T) {
	const size, page = 1 << 20, 4096
	b, err := unix.Mmap(-1, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Munmap(b)
	b[page], b[page+900] = 7, 8
	Prefault(b)
	if b[page] != 7 || b[page+900] != 8 || b[0] != 0 {
		t.Fatal("Prefault changed a byte")
	}
	resident := make([]byte, size/page)
	_, _, errno := unix.Syscall(unix.SYS_MINCORE, uintptr(unsafe.Pointer(&b[0])), size,
		uintptr(unsafe.Pointer(&resident[0])))
	if errno != 0 {
		t.Fatal(errno)
	}
	for i, r := range resident {
		if r&1 == 0 {
			t.Fatalf("page %d is not resident", i)
		}
	}
	err = LockAll()
	if err != nil && !strings.Contains(err.Error(), "CAP_IPC_LOCK") {
		t.Fatal(err)
	}
	if err == nil {
		defer unix.Munlockall()
	}
	t.Logf("LockAll: %v", err)
}

func TestMappingLines(t *testing.T) {
	for _, c := range []struct {
		line string
		ok   bool
	}{
		{"00400000-00401000 r-xp 00000000 fe:00 123 /usr/bin/sds", true},
		{"00400000-00401000 rw-p 00000000 fe:00 123 /usr/bin/sds", false},
		{"00400000-00401000 r-xp 00000000 fe:00 123 /usr/lib/other", false},
		{"zz-00401000 r-xp 00000000 fe:00 123 /usr/bin/sds", false},
		{"/usr/bin/sds", false},
	} {
		from, to, ok := mapping(c.line, "/usr/bin/sds")
		if ok != c.ok || ok && (from != 0x400000 || to != 0x401000) {
			t.Errorf("%q: %x-%x %v", c.line, from, to, ok)
		}
	}
}
