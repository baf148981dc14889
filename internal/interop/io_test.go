// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"braid/transport/loop"
)

func poll(done func() bool) error {
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(30 * time.Second); !done(); {
		select {
		case <-tick.C:
		case <-limit:
			return errors.New("not within 30 s")
		}
	}
	return nil
}

// qemuScript makes n random qemu-io commands: asynchronous reads and writes of odd
// offsets and lengths (1 byte to 32 MiB), with FUA, zeroes and discards between.
// Several are in flight at a time; those that overlap have no order among each
// other, so what is in flight is waited for before the next that does.
func qemuScript(seed uint64, n int, size int64) []string {
	random := rand.New(rand.NewPCG(seed, 2))
	type extent struct{ from, to int64 }
	var commands []string
	var flying []extent
	wait := func() {
		commands, flying = append(commands, "aio_flush"), flying[:0]
	}
	for range n {
		length := int64(1) << random.IntN(26)
		length += random.Int64N(length)
		length = min(length, 32<<20, size/2)
		offset := random.Int64N(size - length)
		overlaps := func(x extent) bool { return x.from < offset+length && offset < x.to }
		if len(flying) == 8 || slices.ContainsFunc(flying, overlaps) {
			wait()
		}
		flying = append(flying, extent{offset, offset + length})
		fill := 1 + random.IntN(255)
		switch random.IntN(8) {
		case 0:
			commands = append(commands, fmt.Sprintf("aio_write -q -z %d %d", offset, length))
		case 1:
			commands = append(commands, fmt.Sprintf("aio_write -q -f -P %d %d %d", fill, offset, length))
		case 2:
			commands = append(commands, fmt.Sprintf("aio_read -q %d %d", offset, length))
		case 3:
			// A discard may leave anything, so what it covered is written afterwards.
			commands = append(commands, fmt.Sprintf("discard -q %d %d", offset, length),
				fmt.Sprintf("write -q -P %d %d %d", fill, offset, length))
		default:
			commands = append(commands, fmt.Sprintf("aio_write -q -P %d %d %d", fill, offset, length))
		}
	}
	wait()
	return commands
}

// Goal: any offset and length gives what a plain file gives. Method: the same
// random qemu-io commands on the export and on a file, then a comparison.
func TestQemuIOLikeAPlainFile(t *testing.T) {
	const size = 128 << 20
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "128M", "--replicas", "2")
	e := c.serve(t, "vol")
	plain := filepath.Join(c.dir, "plain")
	pattern(t, plain, size, 3)
	c.do(t, "qemu-img", "convert", "-n", "-f", "raw", "-O", "raw", plain, e.uri)
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	var args []string
	for _, command := range qemuScript(seed, 120, size) {
		args = append(args, "-c", command)
	}
	args = append(args, "-c", "flush")
	c.do(t, "qemu-io", append([]string{"-f", "raw", plain}, args...)...)
	c.do(t, "qemu-io", append([]string{"-f", "raw", e.uri}, args...)...)
	c.do(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", plain, e.uri)
}

// Goal: reading beyond the end fails as it must, and the export lives on.
func TestReadBeyondTheEnd(t *testing.T) {
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "64M")
	e := c.serve(t, "vol")
	out, _ := c.command(t, "qemu-io", "-f", "raw", "-c", "read 64M 4096", e.uri).CombinedOutput()
	if !strings.Contains(string(out), "failed") && !strings.Contains(string(out), "offset") {
		t.Errorf("read beyond the end: %s", out)
	}
	c.do(t, "qemu-io", "-f", "raw", "-c", "read 0 4096", e.uri)
}

// Goal: a mixed load over four connections verifies. Method: fio's NBD engine.
func TestFioVerify(t *testing.T) {
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "512M", "--replicas", "2")
	e := c.serve(t, "vol")
	c.do(t, "fio", "--name=mix", "--ioengine=nbd", "--uri="+e.uri, "--rw=randrw",
		"--bsrange=512-256k", "--iodepth=16", "--numjobs=4", "--size=96M",
		"--offset_increment=128M", "--verify=crc32c", "--verify_fatal=1", "--group_reporting")
}

// Goal: trims between writes do no harm, and what was trimmed reads as zeroes.
// Method: fio trims a part of what it is about to verify; then a load of trims.
func TestFioTrims(t *testing.T) {
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "512M", "--replicas", "2")
	e := c.serve(t, "vol")
	c.do(t, "fio", "--name=mix", "--ioengine=nbd", "--uri="+e.uri, "--rw=randrw", "--bs=4k",
		"--iodepth=16", "--numjobs=4", "--size=24M", "--offset_increment=128M", "--verify=crc32c",
		"--verify_fatal=1", "--verify_backlog=256", "--trim_percentage=20", "--trim_backlog=256",
		"--trim_verify_zero=1", "--group_reporting")
	c.do(t, "fio", "--name=trim", "--ioengine=nbd", "--uri="+e.uri, "--rw=randtrimwrite",
		"--bs=64k", "--iodepth=16", "--size=128M")
	c.do(t, "fio", "--name=verify", "--ioengine=nbd", "--uri="+e.uri, "--rw=randwrite",
		"--bs=4k", "--iodepth=16", "--size=32M", "--verify=crc32c", "--verify_fatal=1")
}

// Goal: where the kernel allows io_uring, it is what serves the disks, and the
// fallback serves the same. Method: the engines' own counters over the same random
// commands, held against a plain file.
func TestBothEngines(t *testing.T) {
	const size = 64 << 20
	for _, engine := range []string{"io_uring", "pool"} {
		t.Run(engine, func(t *testing.T) {
			if engine == "io_uring" && !uringAllowed() {
				t.Log("this kernel refuses io_uring: only the fallback can be tested")
				return
			}
			t.Setenv("BRAID_ENGINE", engine)
			c := up(t, "--size", "256M", "--sds", "1")
			c.script(t, "kill", "sds1", "--signal", "TERM")
			words := strings.Split(strings.TrimSpace(read(t, filepath.Join(c.dir, "sds1.command"))), "\n")
			sds := c.start(t, "sds", append(words[1:], "--metrics", "127.0.0.1:0")...)
			sds.says(t, "engine="+engine)
			sds.says(t, "map learned; serving")
			c.volume(t, "vol", "64M", "--replicas", "1")
			e := c.serve(t, "vol")
			e.says(t, "engine "+engine)
			plain := filepath.Join(c.dir, "plain")
			c.do(t, "truncate", "-s", "64M", plain)
			var args []string
			for _, command := range qemuScript(5, 60, size) {
				args = append(args, "-c", command)
			}
			for _, where := range []string{plain, e.uri} {
				c.do(t, "qemu-io", append(append([]string{"-f", "raw", where}, args...), "-c", "flush")...)
			}
			c.do(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", plain, e.uri)
			by := counter(t, sds, "braid_sds_loop_ring_operations_total")
			disk := counter(t, sds, "braid_sds_disk_operations_total")
			if engine == "io_uring" && by < disk || engine == "pool" && by != 0 || disk == 0 {
				t.Errorf("%.0f operations of the disk, %.0f by io_uring", disk, by)
			}
			e.stop(t)
			sds.stop(t)
		})
	}
}

// uringAllowed reports whether this kernel gives this process a ring.
func uringAllowed() bool {
	l, err := loop.New(loop.Options{Engine: loop.Uring})
	if err != nil {
		return false
	}
	l.Start()
	return l.Close() == nil
}

// counter is one of the metrics of an sds with a single device.
func counter(t *testing.T, sds *process, name string) float64 {
	t.Helper()
	for line := range strings.Lines(metrics(t, metricsURL(sds))) {
		if strings.HasPrefix(line, name+"{") {
			value, err := strconv.ParseFloat(strings.TrimSpace(line[strings.LastIndex(line, " "):]), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}

// Goal: nbdfuse makes a file of the export. Method: bytes through the file.
func TestNbdfuse(t *testing.T) {
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "64M")
	e := c.serve(t, "vol")
	mnt := filepath.Join(c.dir, "mnt")
	if err := os.Mkdir(mnt, 0o755); err != nil {
		t.Fatal(err)
	}
	fuse := c.command(t, "nbdfuse", mnt, e.uri)
	if err := fuse.Start(); err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(mnt, "nbd")
	waitFor(t, "nbdfuse", func() bool { _, err := os.Stat(file); return err == nil })
	c.do(t, "dd", "if=/dev/zero", "of="+file, "bs=1M", "count=8", "conv=notrunc,fsync")
	c.do(t, "cmp", "-n", "8388608", file, "/dev/zero")
	c.do(t, "fusermount3", "-u", mnt)
	if err := fuse.Wait(); err != nil {
		t.Errorf("nbdfuse: %v", err)
	}
}

// Goal: what was flushed survives kill -9 of each server and of mdm in turn, while
// the client lives on. Method: an image in, one process killed and started, the
// image compared, then a write to show that the volume works on.
func TestKillEachInTurn(t *testing.T) {
	c := up(t, "--size", "1G")
	c.volume(t, "vol", "128M", "--replicas", "2")
	e := c.serve(t, "vol")
	in := filepath.Join(c.dir, "in")
	for i, who := range []string{"sds1", "sds2", "sds3", "mdm1"} {
		pattern(t, in, 128<<20, uint64(i))
		c.do(t, "nbdcopy", "--flush", in, e.uri)
		c.script(t, "kill", who)
		c.script(t, "start", who)
		c.do(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, e.uri)
	}
}
