// SPDX-License-Identifier: Apache-2.0

package kernel

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
)

// fakeSystem is a tree that looks like /sys, /proc and /dev to this package.
func fakeSystem(t *testing.T, files map[string]string) paths {
	t.Helper()
	root := t.TempDir()
	p := paths{sys: filepath.Join(root, "sys"), proc: filepath.Join(root, "proc"),
		dev: filepath.Join(root, "dev"), modules: filepath.Join(root, "modules")}
	for _, dir := range []string{p.sys, filepath.Join(p.proc, "self"), p.dev} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, ok := files["proc/self/mountinfo"]; !ok {
		files["proc/self/mountinfo"] = ""
	}
	for name, content := range files {
		at := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(at, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return p
}

func TestParseDevice(t *testing.T) {
	for text, want := range map[string]int{"/dev/nbd0": 0, "nbd7": 7, "/dev/nbd15": 15} {
		got, path, err := ParseDevice(text)
		if err != nil || got != want || path != "/dev/"+strings.TrimPrefix(text, "/dev/") {
			t.Errorf("ParseDevice(%q) = %d, %q, %v", text, got, path, err)
		}
	}
	for _, text := range []string{"", "/dev/sda", "/dev/nbd", "/dev/nbd-1", "/dev/nbd01", "/dev/nbd0p1", "nbd99999",
		"/tmp/nbd0", "/dev/nbd+1"} {
		if _, _, err := ParseDevice(text); err == nil || !strings.Contains(err.Error(), "/dev/nbd0") {
			t.Errorf("ParseDevice(%q): %v; the error must say what a device is", text, err)
		}
	}
}

// Goal: the attributes are the kernel's. Method: golden bytes of a CONNECT with
// everything in it (little-endian, as on all machines that CI has).
func TestConnectAttributes(t *testing.T) {
	c := config{index: 3, size: 1 << 30, blockSize: 4096, timeout: 1500 * time.Millisecond,
		deadTimeout: time.Minute, flags: 0x16d, sockets: []int{7, 9}, backend: "braid:db"}
	got, err := c.encode()
	if err != nil {
		t.Fatal(err)
	}
	want := []byte{
		8, 0, 1, 0, 3, 0, 0, 0,
		12, 0, 2, 0, 0, 0, 0, 0x40, 0, 0, 0, 0,
		12, 0, 3, 0, 0, 0x10, 0, 0, 0, 0, 0, 0,
		12, 0, 4, 0, 2, 0, 0, 0, 0, 0, 0, 0,
		12, 0, 8, 0, 60, 0, 0, 0, 0, 0, 0, 0,
		12, 0, 5, 0, 0x6d, 1, 0, 0, 0, 0, 0, 0,
		13, 0, 10, 0, 'b', 'r', 'a', 'i', 'd', ':', 'd', 'b', 0, 0, 0, 0,
		28, 0, 7, 0x80,
		12, 0, 1, 0x80, 8, 0, 1, 0, 7, 0, 0, 0,
		12, 0, 1, 0x80, 8, 0, 1, 0, 9, 0, 0, 0,
	}
	if !bytes.Equal(got, want) {
		t.Errorf("CONNECT\n got % x\nwant % x", got, want)
	}
}

// The STATUS reply is searched for the device.
func TestDecodeStatus(t *testing.T) {
	e := netlink.NewAttributeEncoder()
	e.Nested(attrDeviceList, func(list *netlink.AttributeEncoder) error {
		for index, state := range map[uint32]uint8{0: 0, 3: 1} {
			list.Nested(deviceItem, func(item *netlink.AttributeEncoder) error {
				item.Uint32(deviceIndex, index)
				item.Uint8(deviceConnected, state)
				return nil
			})
		}
		return nil
	})
	b, err := e.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for index, want := range map[int][2]bool{0: {true, false}, 3: {true, true}, 5: {false, false}} {
		found, is, err := decodeStatus(b, index)
		if err != nil || found != want[0] || is != want[1] {
			t.Errorf("device %d: found %v, connected %v, %v", index, found, is, err)
		}
	}
	if _, _, err := decodeStatus([]byte{1, 0, 9, 0, 1}, 0); err == nil {
		t.Error("nonsense was decoded")
	}
}

// Goal: a detach names what uses the device. Method: made-up system trees, one for
// each way of use.
func TestUse(t *testing.T) {
	base := map[string]string{
		"sys/block/nbd2/dev":        "43:32\n",
		"sys/block/nbd2/nbd2p1/dev": "43:33\n",
	}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"free": {map[string]string{}, ""},
		"mounted": {map[string]string{
			"proc/self/mountinfo": "36 35 43:32 / /mnt/my\\040disk rw - ext4 /dev/nbd2 rw\n"},
			"/dev/nbd2 is in use: mounted at /mnt/my disk"},
		"partition mounted": {map[string]string{
			"proc/self/mountinfo": "36 35 43:33 / /a rw shared:1 - ext4 /dev/x rw\n"},
			"/dev/nbd2p1 is in use: mounted at /a"},
		"mounted under a number of its own": {map[string]string{
			"proc/self/mountinfo": "36 35 0:40 / /b rw - btrfs /dev/nbd2 rw\n"}, "mounted at /b"},
		"another's mount": {map[string]string{"proc/self/mountinfo": "36 35 43:16 / /c rw - ext4 /dev/nbd1 rw\n"}, ""},
		"swap": {map[string]string{"proc/swaps": "Filename Type Size\n/dev/nbd2p1 partition 1 0 -2\n"},
			"/dev/nbd2p1 is in use: as swap space"},
		"held": {map[string]string{"sys/class/block/nbd2/holders/dm-0/x": ""}, "block device dm-0 lies on it"},
	} {
		t.Run(name, func(t *testing.T) {
			files := map[string]string{}
			for k, v := range base {
				files[k] = v
			}
			for k, v := range c.files {
				files[k] = v
			}
			err := fakeSystem(t, files).use(2)
			switch {
			case c.want == "" && err != nil:
				t.Errorf("in use: %v", err)
			case c.want != "" && (!errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), c.want)):
				t.Errorf("got %v, want %q", err, c.want)
			}
		})
	}
}

// A busy device says whose it is.
func TestBusy(t *testing.T) {
	p := fakeSystem(t, map[string]string{
		"sys/block/nbd0/pid":     "77\n",
		"sys/block/nbd0/backend": "braid:db\n",
		"sys/block/nbd1/pid":     "78\n",
		"sys/block/nbd2/size":    "0\n",
	})
	for index, want := range map[int]string{0: "volume db is attached", 1: "another NBD client (process 78)", 2: ""} {
		err := p.busy(index)
		if want == "" && err == nil {
			continue
		}
		if want == "" || !errors.Is(err, ErrBusy) || !strings.Contains(err.Error(), want) {
			t.Errorf("nbd%d: %v, want %q", index, err, want)
		}
	}
	if list := p.list(); len(list) != 1 || list[0] != (Connected{Index: 0, Path: "/dev/nbd0", Volume: "db"}) {
		t.Errorf("connected devices of ours: %+v", list)
	}
}

// Without a module the error says how to get it and how to do without.
func TestNoModule(t *testing.T) {
	err := fakeSystem(t, map[string]string{}).loadModule()
	if !errors.Is(err, ErrNoModule) || !strings.Contains(err.Error(), "sdc serve") ||
		!strings.Contains(err.Error(), "linux-modules-extra") {
		t.Errorf("no modules: %v", err)
	}
	if err := fakeSystem(t, map[string]string{"sys/module/nbd/x": ""}).loadModule(); err != nil {
		t.Errorf("a loaded module: %v", err)
	}
}

// The link of a volume is made, replaced when stale, and removed only while it is
// this device's.
func TestLinks(t *testing.T) {
	p := fakeSystem(t, map[string]string{})
	check := func(volume, want string) {
		t.Helper()
		got, _ := os.Readlink(filepath.Join(p.dev, "braid", volume))
		if got != want {
			t.Errorf("/dev/braid/%s -> %q, want %q", volume, got, want)
		}
	}
	for _, index := range []int{1, 2} {
		if err := p.link("db", index); err != nil {
			t.Fatal(err)
		}
	}
	if err := p.link("web", 3); err != nil {
		t.Fatal(err)
	}
	check("db", "../nbd2")
	p.unlink("db", 1)
	check("db", "../nbd2")
	p.unlinkAll(2)
	check("db", "")
	check("web", "../nbd3")
	p.unlinkAll(3)
	if _, err := os.Stat(filepath.Join(p.dev, "braid")); !os.IsNotExist(err) {
		t.Errorf("/dev/braid is left behind: %v", err)
	}
}

// The queue takes large requests, but no larger than the hardware limit.
func TestTune(t *testing.T) {
	for most, want := range map[string]string{"32767\n": "1024", "512\n": "512"} {
		p := fakeSystem(t, map[string]string{
			"sys/block/nbd0/queue/max_hw_sectors_kb": most,
			"sys/block/nbd0/queue/max_sectors_kb":    "128\n",
			"sys/block/nbd0/queue/read_ahead_kb":     "128\n",
		})
		if err := p.tune(0); err != nil {
			t.Fatal(err)
		}
		got, _ := os.ReadFile(filepath.Join(p.sys, "block/nbd0/queue/max_sectors_kb"))
		if string(got) != want {
			t.Errorf("max_sectors_kb is %s with a hardware limit of %s", got, most)
		}
	}
}
