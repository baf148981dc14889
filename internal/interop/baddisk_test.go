// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	model "braid/cluster"
)

// Goal: devices that are not what they should be are refused in words, stay as
// they are, and no byte of a volume is lost. Method: the lines about devices of
// "Bad input and faults" in docs/failure-model.md, on real processes.
func TestBadDevices(t *testing.T) {
	b := newBench(t, "--size", "256M", "--backing", "file")
	for _, line := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"device in use", deviceInUse},
		{"device too small", deviceTooSmall},
		{"device foreign", foreignDevice},
		{"device vanished", deviceVanished},
		{"server of another cluster", anotherCluster},
		{"superblock", damagedSuperblock},
	} {
		t.Run(line.name, func(t *testing.T) {
			line.run(t, b)
			b.intact(t)
		})
	}
}

// disk is the file that a server's only device is.
func (c *cluster) disk(who string) string { return filepath.Join(c.dir, "disks", who+"-disk1") }

// serveArgs is the command line of one more server of the cluster.
func (c *cluster) serveArgs(path string) []string {
	return []string{"serve", "--name", "more", "--listen", "127.0.0.1:0", "--lock-memory", "off",
		"--mdm", c.mdm, "--device", path}
}

// unchanged runs what must not change the file.
func unchanged(t *testing.T, path string, run func()) {
	t.Helper()
	before := read(t, path)
	run()
	if read(t, path) != before {
		t.Errorf("%s was changed", path)
	}
}

func deviceInUse(t *testing.T, b *bench) {
	path := b.disk("sds1")
	for _, args := range [][]string{{"format", path}, {"format", "--force", path}, {"check", path}} {
		b.refused(t, 1, []string{path, "in use", "an sds, has locked it"}, "sds", args...)
	}
}

func deviceTooSmall(t *testing.T, b *bench) {
	path := filepath.Join(b.dir, "small")
	b.refused(t, 1, []string{"format " + path, "too small: 65536 bytes"}, "sds", "format", path, "--size", "64K")
	if _, err := os.Stat(path); err == nil {
		t.Errorf("a failed format left %s", path)
	}
}

func foreignDevice(t *testing.T, b *bench) {
	path := filepath.Join(b.dir, "foreign")
	for _, c := range []struct {
		word    string
		command []string
	}{
		{"ext4 file system", []string{"mkfs.ext4", "-q", path}},
		{"XFS", []string{"mkfs.xfs", "-q", "-f", path}},
		{"swap", []string{"mkswap", "-q", path}},
		{"GUID partition table", []string{"sh", "-c", "printf 'label: gpt\nsize=16M\n' | sfdisk -q " + path}},
		{"MBR partition table", []string{"sh", "-c", "printf 'label: dos\nsize=16M\n' | sfdisk -q " + path}},
	} {
		b.do(t, "rm", "-f", path)
		b.do(t, "truncate", "-s", "320M", path)
		b.do(t, c.command[0], c.command[1:]...)
		unchanged(t, path, func() {
			b.refused(t, 1, []string{"format " + path, c.word, "--force"}, "sds", "format", path)
			b.refused(t, 1, []string{path, c.word}, "sds", b.serveArgs(path)...)
		})
	}
	b.do(t, "rm", path)
}

// deviceVanished: a server without its device says which one is missing; with
// another device it serves that one.
func deviceVanished(t *testing.T, b *bench) {
	path := b.disk("sds1")
	b.script(t, "kill", "sds1", "--signal", "TERM")
	b.do(t, "mv", path, path+".away")
	b.refused(t, 1, []string{"open " + path, "no such file"}, "sds", b.serveArgs(path)...)
	other := filepath.Join(b.dir, "other")
	b.do(t, "sds", "format", other, "--size", "64M")
	sds := b.start(t, "sds", append(b.serveArgs(path), "--device", other)...)
	sds.says(t, "map learned; serving")
	if !strings.Contains(sds.log.String(), "device left out") || !strings.Contains(sds.log.String(), path) {
		t.Error("it does not say which device is left out")
	}
	sds.stop(t)
	b.do(t, "mv", path+".away", path)
	b.script(t, "start", "sds1")
}

// anotherCluster: a device of one cluster is neither formatted nor served for
// another, and both are named.
func anotherCluster(t *testing.T, b *bench) {
	other := newBench(t, "--size", "256M", "--backing", "file")
	ours, _ := b.hello(t, "sds2")
	theirs, _ := other.hello(t, "sds1")
	id := func(raw [16]byte) string { return model.UUID(raw).String() }
	other.script(t, "kill", "sds1", "--signal", "TERM")
	path := other.disk("sds1")
	unchanged(t, path, func() {
		b.refused(t, 1, []string{"format " + path, "of cluster " + id(theirs.Cluster), "--force"},
			"sds", "format", path)
	})
	b.refused(t, 1, []string{id(theirs.Cluster), id(ours.Cluster)}, "sds", b.serveArgs(path)...)
	other.script(t, "start", "sds1")
	other.intact(t)
}

// damagedSuperblock: one of the two is enough; with both damaged the device is
// refused and stays as it is.
func damagedSuperblock(t *testing.T, b *bench) {
	path := b.disk("sds1")
	damage := func(off int64, with []byte) {
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := f.WriteAt(with, off); err != nil {
			t.Fatal(err)
		}
	}
	const first, second = 0, 32 << 10 // docs/on-disk-format.md
	b.script(t, "kill", "sds1", "--signal", "TERM")
	damage(first+100, bytes.Repeat([]byte{0xa5}, 64))
	b.script(t, "start", "sds1")
	b.intact(t)

	b.script(t, "kill", "sds1", "--signal", "TERM")
	good := []byte(read(t, path)[:second+4096])
	damage(first+100, bytes.Repeat([]byte{0xa5}, 64))
	damage(second+100, bytes.Repeat([]byte{0xa5}, 64))
	unchanged(t, path, func() {
		for _, args := range [][]string{b.serveArgs(path), {"format", path}, {"check", path}, {"inspect", path}} {
			b.refused(t, 1, []string{path, "superblock"}, "sds", args...)
		}
	})
	damage(first, good)
	b.script(t, "start", "sds1")
}

// faulty starts a server again on a disk with faults (server/disk, BRAID_TEST_DISK)
// that fault switches on and heal off.
func (b *bench) faulty(t *testing.T, who, faults string) (fault, heal func()) {
	t.Helper()
	file := filepath.Join(b.dir, "fault-of-"+who)
	b.script(t, "kill", who, "--signal", "TERM")
	b.scriptWith(t, "BRAID_TEST_DISK="+faults+",while="+file, "start", who)
	b.intact(t)
	return func() {
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}, func() {
			if err := os.Remove(file); err != nil {
				t.Fatal(err)
			}
		}
}

// deviceOf is what scli says of a server's only device.
func (c *cluster) deviceOf(t *testing.T, who string) device {
	t.Helper()
	for _, d := range c.devices(t) {
		if d.Server == who {
			return d
		}
	}
	t.Fatalf("no device of %s", who)
	return device{}
}

// Goal: a disk that cannot read costs nothing: the other copy answers.
func TestDiskFailsToRead(t *testing.T) {
	b := newBench(t, "--size", "256M")
	fault, heal := b.faulty(t, "sds1", "read-fails-after=0")
	fault()
	b.do(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", b.in, b.e.uri)
	heal()
	b.intact(t)
}

// Goal: a disk that cannot write is taken out of service and named, and nothing is
// lost: what waited for it goes on without it, or when its server has it again.
func TestDiskFailsToWrite(t *testing.T) {
	b := newBench(t, "--size", "256M")
	fault, _ := b.faulty(t, "sds1", "write-fails-after=0")
	fault()
	pattern(t, b.in, 64<<20, 12)
	nbdcopy := b.command(t, "nbdcopy", "--flush", b.in, b.e.uri)
	if err := nbdcopy.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "sds1's device is reported as failed", func() bool { return b.deviceOf(t, "sds1").Failed != "" })
	if failed := b.deviceOf(t, "sds1").Failed; !strings.Contains(failed, "input/output error") {
		t.Errorf("the device failed for this reason: %s", failed)
	}
	b.refused(t, 1, []string{"sds1", "input/output error"}, "sh", "-c", "scli status; exit 1")
	b.script(t, "kill", "sds1", "--signal", "TERM")
	b.script(t, "start", "sds1")
	if err := nbdcopy.Wait(); err != nil {
		t.Errorf("nbdcopy: %v", err)
	}
	b.intact(t)
}

// Goal: a disk that hangs is reported as that, and what waited for it is done, and
// durable, when it answers again.
func TestDiskHangs(t *testing.T) {
	b := newBench(t, "--size", "256M")
	fault, heal := b.faulty(t, "sds1", "flush-delay=1h")
	fault()
	pattern(t, b.in, 64<<20, 13)
	nbdcopy := b.command(t, "nbdcopy", "--flush", b.in, b.e.uri)
	if err := nbdcopy.Start(); err != nil {
		t.Fatal(err)
	}
	waitFor(t, "sds1's device is reported as hung", func() bool { return b.deviceOf(t, "sds1").Failed != "" })
	heal()
	if err := nbdcopy.Wait(); err != nil {
		t.Errorf("nbdcopy: %v", err)
	}
	b.intact(t)
}

// Goal: full devices stop what needs more space and nothing else: what exists stays
// readable and writable. It is ENOSPC where that is asked for, otherwise it waits, says
// so, and goes on when trim makes room. Method: two volumes that promise more than there
// is.
func TestDiskFull(t *testing.T) {
	c := up(t, "--size", "128M", "--backing", "file")
	c.volume(t, "first", "160M", "--replicas", "2")
	c.volume(t, "second", "160M", "--replicas", "2")
	first, second := c.serve(t, "first"), c.offer(t, "second", "second", "--on-full", "error")
	in := filepath.Join(c.dir, "in")
	pattern(t, in, 150<<20, 14)
	c.do(t, "nbdcopy", "--flush", in, first.uri)
	c.refused(t, 1, []string{"No space left on device"}, "qemu-io", "-f", "raw",
		"-c", "write 0 32M", "-c", "write 32M 32M", "-c", "write 64M 32M", "-c", "write 96M 32M", second.uri)
	c.do(t, "qemu-io", "-f", "raw", "-c", "write -q -P 8 1M 3M", in)
	c.do(t, "qemu-io", "-f", "raw", "-c", "write -q -P 8 1M 3M", "-c", "flush", first.uri)
	c.do(t, "sh", "-c", "truncate -s 160M "+in)
	c.do(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", in, first.uri)
	waitFor(t, "scli says full", func() bool {
		return decode[struct{ Health string }](t, c.do(t, "scli", "status", "-o", "json")).Health == "full"
	})
	second.stop(t)
	second = c.serve(t, "second")
	late := c.launch(t, "qemu-io", "-f", "raw", "-c", "write -q -P 9 144M 8M", "-c", "flush", second.uri)
	late.until(t, "why says that writes wait for space", func() bool {
		why := decode[whyReply](t, c.do(t, "sdc", "why", "second", "-o", "json"))
		return slices.ContainsFunc(why.Waits, func(w wait) bool { return w.Reason == "space" && w.Server != "" })
	})
	c.do(t, "qemu-io", "-f", "raw", "-c", "discard -q 0 136M", "-c", "flush", second.uri)
	if code := late.end(t); code != 0 {
		t.Errorf("writes that waited for space: exit code %d", code)
	}
	c.do(t, "qemu-io", "-f", "raw", "-c", "read -q -P 9 144M 8M", "-c", "discard -q 0 160M", "-c", "flush", second.uri)
	c.do(t, "qemu-io", "-f", "raw", "-c", "write -q -P 9 0 16M", "-c", "flush", "-c", "read -q -P 9 0 16M", second.uri)
}

// Goal: what was flushed survives that all servers lose power at once, also where
// the write was the first to its block. Method: disks that forget what was not
// flushed when their process is killed; rounds of writes to new places and old.
func TestPowerLoss(t *testing.T) {
	t.Setenv("BRAID_TEST_DISK", "volatile")
	b := newBench(t, "--size", "256M")
	servers := []string{"sds1", "sds2", "sds3"}
	for round := range 3 {
		for _, where := range []string{b.in, b.e.uri} {
			var args []string
			for _, command := range qemuScript(uint64(100+round), 10, 48<<20) {
				args = append(args, "-c", command)
			}
			b.do(t, "qemu-io", append(append([]string{"-f", "raw", where}, args...), "-c", "flush")...)
		}
		for _, who := range servers {
			b.script(t, "kill", who)
		}
		for _, who := range servers {
			b.script(t, "start", who)
		}
		b.intact(t)
	}
}
