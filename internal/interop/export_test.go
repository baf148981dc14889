// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: a client learns all that the export can do. Method: nbdinfo's JSON.
func TestNbdinfoSeesEveryAbility(t *testing.T) {
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "300M")
	e := c.serve(t, "vol")
	type exports struct {
		Protocol        string
		StructuredReply bool `json:"structured"`
		Exports         []map[string]any
	}
	out := c.do(t, "nbdinfo", "--json", e.uri)
	info := decode[exports](t, out)
	if info.Protocol != "newstyle-fixed" || len(info.Exports) != 1 || !info.StructuredReply {
		t.Fatalf("nbdinfo says %s", out)
	}
	for name, want := range map[string]any{
		"export-size": float64(300 << 20), "block_size_minimum": float64(1),
		"block_size_preferred": float64(4096), "can_flush": true, "can_fua": true, "can_trim": true,
		"can_zero": true, "can_fast_zero": true, "can_cache": true, "can_df": true,
		"can_multi_conn": true, "is_read_only": false,
	} {
		if got := info.Exports[0][name]; got != want {
			t.Errorf("%s is %v, expected %v", name, got, want)
		}
	}
	if !strings.Contains(fmt.Sprint(info.Exports[0]["contexts"]), "base:allocation") {
		t.Errorf("no base:allocation in %v", info.Exports[0]["contexts"])
	}
}

// pattern writes a file of size bytes with data and holes.
func pattern(t *testing.T, path string, size int64, seed uint64) {
	t.Helper()
	file, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if err := file.Truncate(size); err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(seed, 1))
	block := make([]byte, 1<<20)
	for at := int64(0); at < size; at += int64(len(block)) {
		if random.IntN(4) == 0 {
			continue // a hole
		}
		for i := 0; i+8 <= len(block); i += 8 {
			word := random.Uint64()
			for j := range 8 {
				block[i+j] = byte(word >> (8 * j))
			}
		}
		if _, err := file.WriteAt(block[:min(int64(len(block)), size-at)], at); err != nil {
			t.Fatal(err)
		}
	}
}

// Goal: an image of 1 GiB comes back as it went in, and writing it spread over
// the devices evenly. Method: in by nbdcopy on four connections, out by qemu-img.
func TestImageInAndOut(t *testing.T) {
	c := up(t, "--sds", "4", "--size", "2G")
	c.volume(t, "vol", "1G", "--replicas", "2")
	e := c.serve(t, "vol")
	in, out := filepath.Join(c.dir, "in"), filepath.Join(c.dir, "out")
	pattern(t, in, 1<<30, 7)
	c.do(t, "nbdcopy", "--connections=4", "--flush", in, e.uri)
	c.do(t, "qemu-img", "convert", "-f", "raw", "-O", "raw", e.uri, out)
	c.do(t, "cmp", in, out)
}

// Goal: a sequential write uses all devices evenly. Method: what the devices say
// they have in use after 1 GiB of data without holes.
func TestSequentialWriteSpreads(t *testing.T) {
	c := up(t, "--sds", "4", "--size", "2G")
	c.volume(t, "vol", "1G", "--replicas", "2")
	e := c.serve(t, "vol")
	c.do(t, "fio", "--name=seq", "--ioengine=nbd", "--uri="+e.uri, "--rw=write", "--bs=1M",
		"--size=1G", "--iodepth=8")
	type device struct{ Used any }
	var used []float64
	// The figures come with the servers' next renewals.
	waitFor(t, "2 GiB in use", func() bool {
		used = used[:0]
		total := 0.0
		for _, d := range decode[[]device](t, c.do(t, "scli", "device", "list", "-o", "json")) {
			var bytes float64
			if _, err := fmt.Sscan(fmt.Sprint(d.Used), &bytes); err != nil {
				t.Fatalf("used is %v", d.Used)
			}
			used = append(used, bytes)
			total += bytes
		}
		return total >= 2<<30
	})
	for _, bytes := range used {
		if mean := float64(2<<30) / float64(len(used)); bytes < 0.9*mean || bytes > 1.1*mean {
			t.Errorf("devices have %.0f bytes in use, one of them beyond 10 %% of %.0f", used, mean)
		}
	}
}

// Goal: holes of an image stay holes, and the client is told. Method: a sparse
// qcow2 image by qemu-img, then nbdinfo --map.
func TestMapShowsDataAndHoles(t *testing.T) {
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "256M")
	e := c.serve(t, "vol")
	image := filepath.Join(c.dir, "image.qcow2")
	c.do(t, "qemu-img", "create", "-q", "-f", "qcow2", image, "256M")
	c.do(t, "qemu-io", "-f", "qcow2", "-c", "write -P 7 16M 8M", "-c", "write -P 9 200M 1M", image)
	c.do(t, "qemu-img", "convert", "-n", "-f", "qcow2", "-O", "raw", image, e.uri)
	type extent struct {
		Offset, Length, Type int64
	}
	const mib = 1 << 20
	var holes, data int64
	for _, x := range decode[[]extent](t, c.do(t, "nbdinfo", "--map", "--json", e.uri)) {
		if x.Type&1 != 0 {
			holes += x.Length
			continue
		}
		data += x.Length
		inFirst := x.Offset >= 16*mib && x.Offset+x.Length <= 24*mib
		inSecond := x.Offset >= 200*mib && x.Offset+x.Length <= 201*mib
		if !inFirst && !inSecond {
			t.Errorf("data at %d, %d bytes, where the image has none", x.Offset, x.Length)
		}
	}
	if holes != 247*mib || data != 9*mib {
		t.Errorf("%d MiB of holes and %d of data; expected 247 and 9", holes/mib, data/mib)
	}
}

// waitFor repeats a check for half a minute.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	if err := poll(done); err != nil {
		t.Fatalf("%s: %v", what, err)
	}
}
