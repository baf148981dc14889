// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/mdm"
	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/server/disk"
	"braid/transport"
	"braid/transport/loop"
)

const patience = 30 * time.Second

// process is an sds of its own.
type process struct {
	cmd   *exec.Cmd
	lines chan string // of its log; closed at its end
	err   error       // valid once lines is closed
}

// serve starts sds and waits until it has joined, and serves, its device.
func serve(t *testing.T, mdmAddr, path string, more ...string) *process {
	t.Helper()
	p := start(t, mdmAddr, path, more...)
	p.await(t, "map learned; serving")
	return p
}

// start starts sds and does not wait.
func start(t *testing.T, mdmAddr, path string, more ...string) *process {
	t.Helper()
	args := append([]string{"serve", "--mdm", mdmAddr, "--listen", "127.0.0.1:0", "--name", "sds1",
		"--lock-memory", "auto", "--device", path}, more...)
	p := &process{cmd: exec.Command(os.Args[0], args...), lines: make(chan string, 1000)}
	p.cmd.Env = append(os.Environ(), "SDS_TEST_MAIN=1")
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go p.read(stderr)
	t.Cleanup(func() {
		_ = p.cmd.Process.Kill() // ended already, unless the test failed
		p.wait(t)
	})
	return p
}

func (p *process) read(r io.Reader) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		p.lines <- sc.Text()
	}
	p.err = p.cmd.Wait()
	close(p.lines)
}

// await returns the first log line from now on that contains the text.
func (p *process) await(t *testing.T, text string) string {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				t.Fatalf("sds ended (%v) without %q", p.err, text)
			}
			t.Log(line)
			if strings.Contains(line, text) {
				return line
			}
		case <-deadline:
			t.Fatalf("no %q in the log", text)
		}
	}
}

// wait returns the exit error after the end.
func (p *process) wait(t *testing.T) error {
	t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case line, ok := <-p.lines:
			if !ok {
				return p.err
			}
			t.Log(line)
		case <-deadline:
			t.Fatal("sds does not end")
		}
	}
}

// volumeClient is a client of one volume on one device.
type volumeClient struct {
	t       *testing.T
	m       *cluster.Map
	volume  *cluster.Volume
	conn    *transport.Conn
	loop    *loop.Loop
	session uint32
	reply   chan transport.Header
	data    []byte
	ended   chan error
}

func (c *volumeClient) Incoming(_ *transport.Conn, h *transport.Header) ([][]byte, bool) {
	c.data = make([]byte, h.Payload)
	return [][]byte{c.data}, true
}
func (c *volumeClient) Frame(_ *transport.Conn, h *transport.Header, _ []byte) { c.reply <- *h }
func (c *volumeClient) Closed(_ *transport.Conn, err error)                    { c.ended <- err }

// attach opens the volume, as sdc does, on its only device.
func attach(t *testing.T, m *client.Client, name string) *volumeClient {
	t.Helper()
	s, err := m.Attach(t.Context(), client.AttachRequest{Volume: name, Client: "test", Host: "test", Force: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &volumeClient{t: t, m: s.Map, volume: s.Volume, reply: make(chan transport.Header, 1),
		ended: make(chan error, 1)}
	if c.loop, err = loop.New(loop.Options{}); err != nil {
		t.Fatal(err)
	}
	c.loop.Start()
	for _, d := range s.Map.Devices {
		c.conn, _, err = transport.Dial(t.Context(), c.loop, d.Addr, transport.Hello{Cluster: s.Map.Cluster,
			Device: d.UUID, Role: transport.Client}, func(transport.HelloReply) transport.Handler { return c })
		if err != nil {
			t.Fatal(err)
		}
	}
	req := transport.OpenRequest{Volume: uint64(s.Volume.ID), Generation: uint64(s.Generation)}
	h := c.do(transport.Header{Op: transport.OpOpen}, req.Encode(make([]byte, transport.OpenRequestSize)))
	c.session = h.Session
	return c
}

func (c *volumeClient) close() {
	c.loop.Call(func() { c.conn.Close(nil) })
	<-c.ended
	if err := c.loop.Close(); err != nil {
		c.t.Error(err)
	}
}

// do sends a request until the answer is not "later", which must then be OK.
func (c *volumeClient) do(h transport.Header, payload []byte) transport.Header {
	c.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	h.Session = c.session
	if pg := c.m.VolumePG(c.volume, h.Chunk); pg != nil {
		h.PG, h.Epoch = uint32(pg.ID), pg.Epoch
	}
	m := &transport.Msg{Header: h}
	if len(payload) > 0 {
		m.Payload = [][]byte{payload}
	}
	if h.Op == transport.OpWrite {
		m.Sums = transport.BlockSums(make([]byte, 8*transport.Blocks(len(payload))), payload)
	}
	for {
		c.loop.Call(func() { c.conn.Send(m) })
		select {
		case r := <-c.reply:
			if r.Status == transport.StatusRetry {
				continue
			}
			if r.Status != transport.StatusOK {
				c.t.Fatalf("op %d: status %v", h.Op, r.Status)
			}
			return r
		case err := <-c.ended:
			c.t.Fatalf("connection ended: %v", err)
		case <-deadline.C:
			c.t.Fatal("no answer")
		}
	}
}

func (c *volumeClient) write(chunk uint64, b []byte) {
	c.t.Helper()
	c.do(transport.Header{Op: transport.OpWrite, Chunk: chunk, Length: uint32(len(b)), Interval: 1}, b)
}

func (c *volumeClient) read(chunk uint64, n int) []byte {
	c.t.Helper()
	c.do(transport.Header{Op: transport.OpRead, Chunk: chunk, Length: uint32(n)}, nil)
	return c.data
}

// Goal: a start right after a kill -9 waits for the device, which the kernel
// releases later than it ends the process. Method: hold the device until sds says
// that it waits.
func TestServeWaitsForTheRelease(t *testing.T) {
	path := formatted(t)
	member, err := mdm.Start(t.Context(), mdm.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0",
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer member.Close()
	holder, err := disk.Open(path, disk.Options{Force: true})
	if err != nil {
		t.Fatal(err)
	}
	p := start(t, member.Addr(), path)
	p.await(t, "waiting for its release")
	if err := holder.Close(); err != nil {
		t.Fatal(err)
	}
	p.await(t, "map learned; serving")
	if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
}

// Goal: the whole program with a real metadata manager: what was flushed before
// a kill -9 is there after the restart; SIGTERM ends it with 0 and a clean
// device; engines both.
func TestServeKillAndStop(t *testing.T) {
	for _, engine := range []string{"auto", "pool"} {
		t.Run(engine, func(t *testing.T) {
			path := formatted(t)
			quiet := slog.New(slog.DiscardHandler)
			member, err := mdm.Start(t.Context(), mdm.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0", Log: quiet})
			if err != nil {
				t.Fatal(err)
			}
			defer member.Close()
			m, err := client.New([]string{member.Addr()}, client.Options{})
			if err != nil {
				t.Fatal(err)
			}
			defer m.Close()
			p := serve(t, member.Addr(), path, "--engine", engine)
			if _, err := m.CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: "v", Size: 32 << 20,
				Replicas: 1}); err != nil {
				t.Fatal(err)
			}
			want := bytes.Repeat([]byte("survives"), 8192)
			c := attach(t, m, "v")
			for chunk := range uint64(8) {
				c.write(chunk, want)
			}
			c.do(transport.Header{Op: transport.OpFlush, Interval: 1}, nil)
			if err := p.cmd.Process.Kill(); err != nil {
				t.Fatal(err)
			}
			p.wait(t)
			<-c.ended
			c.ended <- nil
			c.close()

			p = serve(t, member.Addr(), path, "--engine", engine)
			c = attach(t, m, "v")
			for chunk := range uint64(8) {
				if !bytes.Equal(c.read(chunk, len(want)), want) {
					t.Errorf("chunk %d is not what was flushed", chunk)
				}
			}
			if err := p.cmd.Process.Signal(syscall.SIGTERM); err != nil {
				t.Fatal(err)
			}
			if err := p.wait(t); err != nil {
				t.Errorf("exit after SIGTERM: %v", err)
			}
			<-c.ended
			c.ended <- nil
			c.close()
			inspectAndCheck(t, path, member.Cluster(), uint64(len(want)/cluster.BlockSize*8))
			refusesOtherCluster(t, path, member.Cluster())
		})
	}
}

// inspectAndCheck looks at a device that was stopped cleanly, then damages one of
// its blocks and looks again.
func inspectAndCheck(t *testing.T, path string, id cluster.UUID, blocks uint64) {
	t.Helper()
	var seen inspection
	code, out, errs := sds("inspect", "-o", "json", path)
	if err := json.Unmarshal([]byte(out), &seen); err != nil || code != cli.ExitDone {
		t.Fatalf("inspect: exit %d, %v: %s", code, err, errs)
	}
	if !seen.Clean || seen.Cluster != id.String() || seen.BlocksUsed != blocks || len(seen.Volumes) != 1 {
		t.Errorf("inspect: %s", out)
	}
	if code, out, errs = sds("check", path); code != cli.ExitDone || !strings.Contains(out, " 0 problems") {
		t.Errorf("check: exit %d\n%s%s", code, out, errs)
	}
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	at := bytes.Index(content, []byte("survives"))
	patch(t, path, int64(at), []byte("perishes"))
	var found finding
	code, out, _ = sds("check", "-o", "json", path)
	if err := json.Unmarshal([]byte(out), &found); err != nil || code != cli.ExitFailed || found.Total != 1 {
		t.Errorf("check of a damaged block: exit %d, %v\n%s", code, err, out)
	}
	if code, out, _ = sds("check", "--metadata-only", path); code != cli.ExitDone {
		t.Errorf("check of the metadata: exit %d\n%s", code, out)
	}
	patch(t, path, int64(at), []byte("survives"))
}

// refusesOtherCluster serves a device with a metadata manager that is not its own.
func refusesOtherCluster(t *testing.T, path string, own cluster.UUID) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	other, err := mdm.Start(ctx, mdm.Config{DataDir: t.TempDir(), Listen: "127.0.0.1:0",
		Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	cmd := exec.CommandContext(ctx, os.Args[0], "serve", "--mdm", other.Addr(), "--listen", "127.0.0.1:0",
		"--name", "sds1", "--device", path)
	cmd.Env = append(os.Environ(), "SDS_TEST_MAIN=1")
	out, err := cmd.CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != cli.ExitFailed ||
		!strings.Contains(string(out), own.String()) || !strings.Contains(string(out), other.Cluster().String()) {
		t.Errorf("with another cluster's manager: %v\n%s", err, out)
	}
}
