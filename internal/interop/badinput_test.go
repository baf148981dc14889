// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	model "braid/cluster"
	"braid/transport"
	"braid/transport/loop"
)

// bench is a cluster with a volume full of known bytes that is served all the time.
type bench struct {
	*cluster
	e  *export
	in string // what the volume holds
}

func newBench(t *testing.T, options ...string) *bench {
	t.Helper()
	c := up(t, options...)
	c.volume(t, "keep", "64M", "--replicas", "2")
	b := &bench{cluster: c, e: c.serve(t, "keep"), in: filepath.Join(c.dir, "in")}
	pattern(t, b.in, 64<<20, 11)
	c.do(t, "nbdcopy", "--flush", b.in, b.e.uri)
	return b
}

// intact holds the volume against what it must hold, and shows that it takes writes.
func (b *bench) intact(t *testing.T) {
	t.Helper()
	b.do(t, "qemu-img", "compare", "-f", "raw", "-F", "raw", b.in, b.e.uri)
	for _, where := range []string{b.in, b.e.uri} {
		b.do(t, "qemu-io", "-f", "raw", "-c", "write -q -P 77 5M 300k", "-c", "flush", where)
	}
}

// Goal: what a person or a machine does wrong gets a clear error, and nothing is
// lost. Method: each line of "Bad input and faults" in docs/failure-model.md, on
// real processes: the words of the error, then every byte of a volume that is
// served meanwhile. Faults of disks are in baddisk_test.go, a busy /dev/nbd0 in
// scripts/guest-tests/ext4.sh.
func TestBadInput(t *testing.T) {
	b := newBench(t, "--size", "512M")
	for _, line := range []struct {
		name string
		run  func(*testing.T, *bench)
	}{
		{"volume size", badSizes},
		{"name in use", nameInUse},
		{"second attach elsewhere", secondAttach},
		{"server of another version", anotherVersion},
		{"frames", badFrames},
		{"mdm unreachable", noManager},
		{"no nbd module", noModule},
		{"not root", notRoot},
	} {
		t.Run(line.name, func(t *testing.T) {
			line.run(t, b)
			b.intact(t)
		})
	}
}

func badSizes(t *testing.T, b *bench) {
	before := b.do(t, "scli", "volume", "list", "-o", "json")
	for size, words := range map[string][]string{
		"0":    {"create volume bad", "size is 0", "--size 10G"},
		"100T": {"create volume bad", "100T is more than the cluster can hold with 2 replicas", "add devices"},
		"5000": {"create volume bad", "5000 is not a multiple of 4096", "8192"},
	} {
		b.refused(t, 1, words, "scli", "volume", "create", "bad", "--size", size)
		b.refused(t, 1, words[1:], "scli", "volume", "resize", "keep", "--shrink", "--size", size)
	}
	b.refused(t, 1, []string{"resize volume keep", "--shrink"}, "scli", "volume", "resize", "keep", "--size", "4M")
	if after := b.do(t, "scli", "volume", "list", "-o", "json"); after != before {
		t.Errorf("the volumes were\n%s\nand are\n%s", before, after)
	}
}

func nameInUse(t *testing.T, b *bench) {
	b.refused(t, 1, []string{"create volume keep", "name is in use", "scli volume list"},
		"scli", "volume", "create", "keep", "--size", "128M")
	b.refused(t, 1, []string{"delete volume keep", "attached on host", "--force"}, "scli", "volume", "delete", "keep")
}

// secondAttach: refused with the holder's name; --force fences the holder, and what
// that one had flushed is there.
func secondAttach(t *testing.T, b *bench) {
	host, err := os.Hostname()
	if err != nil {
		t.Fatal(err)
	}
	b.refused(t, 1, []string{"attach volume keep", "it is attached on host " + host, "since", "--force"},
		"sdc", "serve", "--volume", "keep", "--socket", filepath.Join(b.dir, "second.sock"))
	b.intact(t)

	b.volume(t, "taken", "16M", "--replicas", "2")
	b.refused(t, 1, []string{"sdc: attach the only volume: there are several volumes", "--volume", "keep, taken"},
		"sdc", "serve", "--socket", filepath.Join(b.dir, "second.sock"))
	first := b.offer(t, "taken", "first")
	b.do(t, "qemu-io", "-f", "raw", "-c", "write -q -P 3 0 1M", "-c", "flush", first.uri)
	second := b.offer(t, "taken", "second", "--force")
	b.refused(t, 1, []string{"failed"}, "qemu-io", "-f", "raw", "-c", "write -P 4 0 1M", "-c", "flush", first.uri)
	first.says(t, "attached elsewhere")
	b.do(t, "qemu-io", "-f", "raw", "-c", "read -q -P 3 0 1M", second.uri)
	if err := first.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	code := first.end(t)
	if code != 1 || !strings.Contains(first.log.String(), "sdc: detach volume taken: it was lost") {
		t.Errorf("the fenced sdc ends with code %d", code)
	}
	second.stop(t)
	b.do(t, "scli", "volume", "delete", "taken")
}

// device is one of the cluster's devices, as scli shows it.
type device struct {
	UUID                       model.UUID
	Server, Addr, Path, Failed string
	Up                         bool
	Used                       uint64
}

func (c *cluster) devices(t *testing.T) []device {
	t.Helper()
	return decode[[]device](t, c.do(t, "scli", "device", "list", "-o", "json"))
}

// hello is a greeting to the device of that server, and the server's address.
func (c *cluster) hello(t *testing.T, server string) (transport.Hello, string) {
	t.Helper()
	status := decode[struct{ Cluster model.UUID }](t, c.do(t, "scli", "status", "-o", "json"))
	for _, d := range c.devices(t) {
		if d.Server == server {
			return transport.Hello{Role: transport.Client, Cluster: status.Cluster, Device: d.UUID}, d.Addr
		}
	}
	t.Fatalf("no device of server %s", server)
	return transport.Hello{}, ""
}

// anotherVersion: who speaks no common version of the protocol is told which ones
// the other side speaks.
func anotherVersion(t *testing.T, b *bench) {
	hello, addr := b.hello(t, "sds1")
	hello.VersionMin, hello.VersionMax = 90, 91
	l, err := loop.New(loop.Options{})
	if err != nil {
		t.Fatal(err)
	}
	l.Start()
	_, _, err = transport.Dial(t.Context(), l, addr, hello, func(transport.HelloReply) transport.Handler { return nil })
	if !errors.Is(err, transport.ErrVersion) || !strings.Contains(err.Error(), "the server speaks versions 1 to 1") {
		t.Errorf("a peer of another version: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

// badFrames: a frame with a wrong magic, length or checksum ends its connection,
// which is counted, and nothing else.
func badFrames(t *testing.T, b *bench) {
	path := filepath.Join(b.dir, "frames-disk")
	b.do(t, "sds", "format", path, "--size", "64M")
	sds := b.start(t, "sds", "serve", "--name", "frames", "--listen", "127.0.0.1:0", "--device", path,
		"--metrics", "127.0.0.1:0", "--lock-memory", "off")
	sds.says(t, "map learned; serving")
	url := metricsURL(sds)
	hello, addr := b.hello(t, "frames")
	frame := make([]byte, transport.HeaderSize)
	long := transport.Header{Op: transport.OpWrite, Payload: 1<<32 - 4096}
	for reason, spoil := range map[string]func(){
		"magic":  func() { copy(frame, "GET / HTTP/1.1\r\n\r\n") },
		"length": func() { long.Encode(frame) },
		"header": func() { frame[20] ^= 1 },
	} {
		(&transport.Header{Op: transport.OpRead, Length: 4096}).Encode(frame)
		spoil()
		counter := `braid_sds_connections_closed_total{reason="` + reason + `"} 1`
		if strings.Contains(metrics(t, url), counter) {
			t.Errorf("counted before it was sent: %s", counter)
		}
		nc := greet(t, addr, hello)
		if _, err := nc.Write(frame); err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, nc); err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("wrong %s: the connection is not closed: %d bytes, %v", reason, n, err)
		}
		_ = nc.Close()
		sds.until(t, "it counted "+counter, func() bool { return strings.Contains(metrics(t, url), counter) })
	}
	sds.stop(t)
}

// greet makes a connection that has said hello.
func greet(t *testing.T, addr string, hello transport.Hello) net.Conn {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	_ = nc.SetDeadline(time.Now().Add(patience))
	hello.VersionMin, hello.VersionMax = transport.VersionMin, transport.VersionMax
	b := make([]byte, transport.HelloReplySize)
	hello.Encode(b)
	if _, err := nc.Write(b[:transport.HelloSize]); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(nc, b); err != nil {
		t.Fatal(err)
	}
	var reply transport.HelloReply
	if err := reply.Decode(b); err != nil || reply.Status != transport.HelloOK {
		t.Fatalf("hello: %v, %v", reply.Status, err)
	}
	return nc
}

// metricsURL is where an sds with --metrics says that they are.
func metricsURL(sds *process) string {
	return regexp.MustCompile(`http://\S+/metrics`).FindString(sds.log.String())
}

func metrics(t *testing.T, url string) string {
	t.Helper()
	answer, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer answer.Body.Close()
	text, err := io.ReadAll(answer.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// noManager: a manager that does not answer is named, with what to do; I/O goes on;
// what was asked in vain works later.
func noManager(t *testing.T, b *bench) {
	b.script(t, "kill", "mdm1", "--signal", "STOP")
	defer b.script(t, "kill", "mdm1", "--signal", "CONT")
	b.refused(t, 1, []string{"create volume late", b.mdm, "mdm serve"},
		"scli", "volume", "create", "late", "--size", "16M", "--timeout", "500ms")
	b.refused(t, 1, []string{"127.0.0.1:1", "mdm serve"},
		"scli", "status", "--mdm", "127.0.0.1:1", "--timeout", "500ms")
	b.intact(t)
	b.script(t, "kill", "mdm1", "--signal", "CONT")
	b.volume(t, "later", "16M")
	b.do(t, "scli", "volume", "delete", "later")
}

// noModule: without the nbd module attach says how to get it and what works without.
// Method: a mount namespace in which there are no modules, and no sysfs.
func noModule(t *testing.T, b *bench) {
	script := `mount -t tmpfs none /sys && mkdir -p /lib/modules && mount -t tmpfs none /lib/modules && ` +
		`exec "$0" attach /dev/nbd0 --volume keep`
	if _, err := os.Stat("/lib/modules"); errors.Is(err, os.ErrNotExist) {
		script = `mount -t tmpfs none /sys && exec "$0" attach /dev/nbd0 --volume keep`
	}
	b.refused(t, 1, []string{"attach /dev/nbd0", "no nbd module", "linux-modules-extra", "sdc serve"},
		"unshare", "--mount", "sh", "-c", script, filepath.Join(b.bin, "sdc"))
}

// notRoot: an ordinary user is told what needs root, and what does not.
func notRoot(t *testing.T, b *bench) {
	dir, err := os.MkdirTemp("", "braid-user-")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b.do(t, "cp", filepath.Join(b.bin, "sdc"), dir)
	for _, verb := range []string{"attach", "detach"} {
		cmd := exec.Command(filepath.Join(dir, "sdc"), verb, "/dev/nbd0")
		cmd.Dir, cmd.Env = dir, []string{"BRAID_MDM=" + b.mdm, "BRAID_RUN=" + filepath.Join(dir, "run")}
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
		out, err := cmd.CombinedOutput()
		if err == nil || cmd.ProcessState.ExitCode() != 1 {
			t.Errorf("sdc %s as a user: %v", verb, err)
		}
		for _, word := range []string{verb + " /dev/nbd0", "needs root"} {
			if !strings.Contains(string(out), word) {
				t.Errorf("sdc %s as a user does not say %q: %s", verb, word, out)
			}
		}
	}
}
