// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"braid/cmd/internal/cli"
	"braid/server/disk"
)

// TestMain lets the test binary play sds in a process of its own.
func TestMain(m *testing.M) {
	if os.Getenv("SDS_TEST_MAIN") != "" {
		main()
	}
	os.Exit(m.Run())
}

// sds runs a command line in this process.
func sds(args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = run(args, &out, &errs)
	return code, out.String(), errs.String()
}

// formatted returns the path of a small formatted file.
func formatted(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk")
	if code, _, errs := sds("format", path, "--size", "64M"); code != cli.ExitDone {
		t.Fatalf("format: %s", errs)
	}
	return path
}

// patch overwrites bytes of a file.
func patch(t *testing.T, path string, off int64, b []byte) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteAt(b, off); err != nil {
		t.Fatal(err)
	}
}

// Goal: wrong use exits with 2 and says what is wrong; what fails exits with 1.
func TestCommandLines(t *testing.T) {
	t.Setenv("BRAID_MDM", "")
	dir := t.TempDir()
	serve := func(more ...string) []string {
		return append([]string{"serve", "--mdm", "127.0.0.1:1", "--device", filepath.Join(dir, "none")}, more...)
	}
	for _, c := range []struct {
		args []string
		code int
		want string // part of what is printed
	}{
		{[]string{"--version"}, cli.ExitDone, "sds version"},
		{[]string{"--help"}, cli.ExitDone, "sds format /dev/sdb"},
		{[]string{"serve", "--help"}, cli.ExitDone, "SIGTERM"},
		{[]string{"bogus"}, cli.ExitUsage, "unknown command"},
		{[]string{"serve", "--bogus"}, cli.ExitUsage, "unknown flag"},
		{[]string{"serve"}, cli.ExitUsage, "BRAID_MDM"},
		{[]string{"serve", "--mdm", "127.0.0.1:1"}, cli.ExitUsage, "--device PATH"},
		{[]string{"serve", "stray"}, cli.ExitUsage, "takes no arguments"},
		{serve("--listen", "0.0.0.0:7420"), cli.ExitUsage, "--insecure"},
		{serve("--listen", ":7420"), cli.ExitUsage, "--insecure"},
		{serve("--metrics", "0.0.0.0:9000"), cli.ExitUsage, "--insecure"},
		{serve("--listen", "localhost"), cli.ExitUsage, "HOST:PORT"},
		{serve("--advertise", "here"), cli.ExitUsage, "HOST:PORT"},
		{serve("--engine", "steam"), cli.ExitUsage, "io_uring"},
		{serve("--log-level", "loud"), cli.ExitUsage, "debug, info"},
		{serve("--activity-log", "3"), cli.ExitUsage, "at least 16"},
		{serve("--lock-memory", "maybe"), cli.ExitUsage, "auto, on or off"},
		{serve("--mdm", "nowhere", "--lock-memory", "off"), cli.ExitUsage, "HOST:PORT"},
		{serve("--lock-memory", "off"), cli.ExitFailed, "no such file"},
		{[]string{"format"}, cli.ExitUsage, "one PATH"},
		{[]string{"format", "a", "b"}, cli.ExitUsage, "one PATH"},
		{[]string{"format", filepath.Join(dir, "x"), "--size", "lots"}, cli.ExitUsage, "10G"},
		{[]string{"format", filepath.Join(dir, "x"), "--size", "0"}, cli.ExitUsage, "multiple of 4096"},
		{[]string{"format", filepath.Join(dir, "x"), "--size", "5000"}, cli.ExitUsage, "multiple of 4096"},
		{[]string{"format", filepath.Join(dir, "x"), "--size", "64K"}, cli.ExitFailed, "too small"},
		{[]string{"format", filepath.Join(dir, "x"), "--size", "1000P"}, cli.ExitFailed, "allocate"},
		{[]string{"format", filepath.Join(dir, "none")}, cli.ExitFailed, "no such file"},
		{[]string{"format", dir}, cli.ExitFailed, "not a block device"},
		{[]string{"inspect", filepath.Join(dir, "none")}, cli.ExitFailed, "no such file"},
		{[]string{"inspect", "-o", "xml", filepath.Join(dir, "none")}, cli.ExitUsage, "table or json"},
		{[]string{"check"}, cli.ExitUsage, "one PATH"},
	} {
		code, out, errs := sds(c.args...)
		if code != c.code || !strings.Contains(out+errs, c.want) {
			t.Errorf("sds %s: exit %d, want %d with %q:\n%s%s", strings.Join(c.args, " "), code, c.code,
				c.want, out, errs)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("a failed format left %v", left)
	}
}

// Goal: format never destroys what it was not told to.
func TestFormatRefusesWhatIsInUse(t *testing.T) {
	path := formatted(t)
	for _, c := range []struct {
		name, want string
		args       []string
	}{
		{"formatted already", "formatted already", []string{"format", path}},
		{"exists", "exists already", []string{"format", path, "--size", "64M"}},
	} {
		if code, _, errs := sds(c.args...); code != cli.ExitFailed || !strings.Contains(errs, c.want) {
			t.Errorf("%s: exit %d: %s", c.name, code, errs)
		}
	}
	b, err := disk.Open(path, disk.Options{})
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"format", "--force", path}, {"check", path},
		{"serve", "--mdm", "127.0.0.1:1", "--lock-memory", "off", "--device", path}} {
		if code, _, errs := sds(args...); code != cli.ExitFailed || !strings.Contains(errs, "in use") {
			t.Errorf("%s on a device in use: exit %d: %s", args[0], code, errs)
		}
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if code, _, errs := sds("format", "--force", path); code != cli.ExitDone {
		t.Errorf("format --force: %s", errs)
	}

	other := filepath.Join(t.TempDir(), "ext4")
	if err := os.WriteFile(other, make([]byte, 64<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	patch(t, other, 0x438, []byte{0x53, 0xef})
	for _, args := range [][]string{{"format", other}, {"inspect", other},
		{"serve", "--mdm", "127.0.0.1:1", "--lock-memory", "off", "--device", other}} {
		if code, _, errs := sds(args...); code != cli.ExitFailed || !strings.Contains(errs, "ext4 file system") {
			t.Errorf("%s on a file system: exit %d: %s", args[0], code, errs)
		}
	}
	if code, _, errs := sds("format", "--force", other); code != cli.ExitDone {
		t.Errorf("format --force over a file system: %s", errs)
	}
}

// Goal: one damaged superblock is made up for by its twin; with both damaged the
// device is refused and stays as it is.
func TestDamagedSuperblocks(t *testing.T) {
	path := formatted(t)
	damage := bytes.Repeat([]byte{0xa5}, 64)
	var before, after map[string]any
	inspect := func(v *map[string]any) (int, string) {
		code, out, errs := sds("inspect", "-o", "json", path)
		if code == cli.ExitDone {
			if err := json.Unmarshal([]byte(out), v); err != nil {
				t.Fatal(err)
			}
		}
		return code, errs
	}
	if code, errs := inspect(&before); code != cli.ExitDone {
		t.Fatal(errs)
	}
	patch(t, path, 100, damage)
	if code, errs := inspect(&after); code != cli.ExitDone || after["device"] != before["device"] {
		t.Errorf("with one superblock: %s %v", errs, after)
	}
	patch(t, path, 32<<10+100, damage)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, args := range [][]string{{"inspect", path}, {"check", path}, {"format", path},
		{"serve", "--mdm", "127.0.0.1:1", "--lock-memory", "off", "--device", path}} {
		if code, _, errs := sds(args...); code != cli.ExitFailed || !strings.Contains(errs, "superblock") {
			t.Errorf("%s with both superblocks damaged: exit %d: %s", args[0], code, errs)
		}
	}
	if now, err := os.ReadFile(path); err != nil || !bytes.Equal(now, content) {
		t.Errorf("the refused device was changed (%v)", err)
	}
}

// Goal: check and inspect of a healthy device exit with 0; of a damaged one with
// 1, naming the structure and what helps; they change nothing.
func TestCheckOfDamage(t *testing.T) {
	const ring = 64 << 10
	for _, c := range []struct {
		name    string
		off     int64
		check   string
		inspect int
	}{
		{"nothing", -1, "", cli.ExitDone},
		{"superblock B", 32<<10 + 500, "superblock B: damaged", cli.ExitDone},
		{"log", ring + 4096 + 20, "the log ring has no valid page", cli.ExitFailed},
	} {
		path := formatted(t)
		if c.off >= 0 {
			patch(t, path, c.off, []byte{0xa5, 0x5a})
		}
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		code, out, errs := sds("check", path)
		if want := c.check == ""; want != (code == cli.ExitDone) || !strings.Contains(out, c.check) ||
			!want && !strings.Contains(out, "; the ") {
			t.Errorf("check with damage of %s: exit %d: %s%s", c.name, code, out, errs)
		}
		if code, out, errs := sds("inspect", path); code != c.inspect {
			t.Errorf("inspect with damage of %s: exit %d: %s%s", c.name, code, out, errs)
		}
		if after, err := os.ReadFile(path); err != nil || !bytes.Equal(before, after) {
			t.Errorf("the device was changed (%v)", err)
		}
	}
}
