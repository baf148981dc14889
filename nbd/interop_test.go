// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"context"
	"encoding/json"
	"math/rand"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// toolTime bounds a run of an external program.
const toolTime = 2 * time.Minute

// tool runs an external NBD client and returns what it printed.
func (r *rig) tool(name string, args ...string) string {
	r.t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		r.t.Fatalf("%s is missing: run scripts/deps test", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), toolTime)
	defer cancel()
	cmd := exec.CommandContext(ctx, path, args...)
	cmd.Dir = r.t.TempDir()
	// Apart: nbdinfo's shell complains there when the machine has no file(1).
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		r.t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errors.Bytes())
	}
	return string(out)
}

func (r *rig) uri() string { return "nbd+unix:///disk?socket=" + r.path }

// nbdinfo sees size, block sizes and every capability.
func TestNbdinfo(t *testing.T) {
	r := newRig(t, rigOptions{})
	var info struct {
		Protocol   string
		Structured bool
		Exports    []map[string]any
	}
	if err := json.Unmarshal([]byte(r.tool("nbdinfo", "--json", r.uri())), &info); err != nil {
		t.Fatal(err)
	}
	if info.Protocol != "newstyle-fixed" || !info.Structured || len(info.Exports) != 1 {
		t.Fatalf("nbdinfo: %+v", info)
	}
	want := map[string]any{
		"export-size": float64(testSize), "block_size_minimum": 1.0, "block_size_preferred": 4096.0,
		"block_size_maximum": float64(32 << 20), "can_flush": true, "can_fua": true, "can_trim": true,
		"can_zero": true, "can_fast_zero": true, "can_cache": true, "can_df": true,
		"can_multi_conn": true, "is_read_only": false,
	}
	for key, value := range want {
		if got := info.Exports[0][key]; got != value {
			t.Errorf("%s is %v, want %v", key, got, value)
		}
	}
	if c, ok := info.Exports[0]["contexts"].([]any); !ok || len(c) != 1 || c[0] != contextAllocation {
		t.Errorf("contexts %v", info.Exports[0]["contexts"])
	}
}

// A sparse image converted onto the export leaves holes where it has holes, and
// reads back identical.
func TestSparseConvert(t *testing.T) {
	r := newRig(t, rigOptions{})
	image := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(image)
	if err != nil {
		t.Fatal(err)
	}
	spots := []int64{0, 10 << 20, 30<<20 + 65536, 50 << 20}
	for _, at := range spots {
		if _, err := f.WriteAt(bytesAt(uint64(at), 1<<20), at); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(testSize); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	r.tool("qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", image, r.uri())
	var extents []struct {
		Offset, Length, Type int64
	}
	if err := json.Unmarshal([]byte(r.tool("nbdinfo", "--map", "--json", r.uri())), &extents); err != nil {
		t.Fatal(err)
	}
	var data []int64
	for _, e := range extents {
		if e.Type == 0 {
			data = append(data, e.Offset)
			if e.Length != 1<<20 {
				t.Errorf("%d bytes of data at %d", e.Length, e.Offset)
			}
		}
	}
	if !slices.Equal(data, spots) {
		t.Errorf("data at %v, want %v", data, spots)
	}
	back := filepath.Join(t.TempDir(), "back")
	r.tool("qemu-img", "convert", "-f", "raw", "-O", "raw", r.uri(), back)
	r.tool("cmp", image, back)
	r.atRest()
}

// nbdcopy in over four connections and out again: identical.
func TestNbdcopy(t *testing.T) {
	r := newRig(t, rigOptions{})
	image := filepath.Join(t.TempDir(), "image")
	b := make([]byte, testSize)
	rand.New(rand.NewSource(3)).Read(b)
	if err := os.WriteFile(image, b, 0o600); err != nil {
		t.Fatal(err)
	}
	back := filepath.Join(t.TempDir(), "back")
	r.tool("nbdcopy", "--connections=4", "--flush", image, r.uri())
	r.tool("nbdcopy", "--connections=4", r.uri(), back)
	r.tool("cmp", image, back)
	r.loop.Call(func() {
		if r.dev.Stats().Flushes == 0 {
			t.Error("no flush reached the device")
		}
	})
}

// qemu-io's mixes: asynchronous, odd offsets, 1 byte to 32 MiB, discard, zeroes,
// FUA; and beyond the end an error.
func TestQemuIO(t *testing.T) {
	r := newRig(t, rigOptions{})
	commands := []string{
		"aio_write -P 1 0 1M", "aio_write -P 2 1M 65537", "aio_write -P 3 4097 1", "aio_flush",
		"read -P 1 0 4097", "read -P 3 4097 1", "read -P 1 4098 1000", "read -P 2 1M 65537",
		"write -P 9 1 33554432", "read -P 9 1 33554432", "read -P 9 33554430 3",
		"write -f -P 4 511 513", "read -P 4 511 513", "writev -P 5 3 1000 7 90000", "readv -v -P 5 3 10",
		"discard 2M 3M", "read -P 0 2M 3M", "write -z 6M 1M", "read -P 0 6M 1M",
		"write -z -u 8M 1M", "read -P 0 8M 1M", "write -z -f 8000001 1234567", "read -P 0 8000001 1234567",
		"flush",
	}
	var args []string
	for _, c := range commands {
		args = append(args, "-c", c)
	}
	out := r.tool("qemu-io", append(append([]string{"-f", "raw"}, args...), r.uri())...)
	if strings.Contains(out, "failed") || strings.Contains(out, "error") {
		t.Errorf("qemu-io:\n%s", out)
	}
	beyond := exec.Command("qemu-io", "-f", "raw", "-c", "read 64M 512", r.uri())
	if out, _ := beyond.CombinedOutput(); !bytes.Contains(out, []byte("error")) {
		t.Errorf("a read beyond the end:\n%s", out)
	}
	r.atRest()
}

// fio's own client: mixed sizes with verification over four connections, and trims
// mixed in.
func TestFio(t *testing.T) {
	r := newRig(t, rigOptions{})
	common := []string{"--ioengine=nbd", "--uri=" + r.uri(), "--iodepth=32", "--thread", "--group_reporting"}
	r.tool("fio", append(common, "--name=verify", "--rw=randrw", "--bsrange=512-256k", "--numjobs=4",
		"--size=16M", "--offset_increment=16M", "--verify=crc32c", "--verify_fatal=1", "--randseed=11")...)
	r.tool("fio", append(common, "--name=trim", "--rw=randtrimwrite", "--bs=4k-64k", "--blockalign=4k",
		"--numjobs=2", "--size=16M", "--offset_increment=16M", "--randseed=12")...)
	r.loop.Call(func() {
		if r.dev.Stats().Trims == 0 {
			t.Error("no trim reached the device")
		}
	})
	r.atRest()
}

// nbd-client lists the exports without a kernel device.
func TestNbdClientList(t *testing.T) {
	r := newRig(t, rigOptions{})
	out := r.tool("nbd-client", "-l", "-u", r.path)
	if !strings.Contains(out, "disk") {
		t.Errorf("nbd-client -l: %s", out)
	}
}
