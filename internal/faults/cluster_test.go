// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come.
const patience = 30 * time.Second

// cluster is a running cluster: one mdm, three servers on disks that forget what
// was not flushed when their process is killed, one volume with two copies.
type cluster struct {
	dir, bin, root string
	mdm            string
	whole          *testing.T // at whose end everything ends
}

func up(t *testing.T) *cluster {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "braid-faults-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{whole: t, dir: dir, root: root, bin: os.Getenv("BRAID_BIN")}
	if c.bin == "" {
		c.bin = filepath.Join(root, "bin")
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.tails())
		}
		c.script(t, "", "down", "--remove")
		_ = os.RemoveAll(dir)
	})
	c.script(t, "BRAID_TEST_DISK=volatile", "up", "--sds", "3", "--size", "256M", "--backing", "file", "--ram")
	env, err := os.ReadFile(filepath.Join(dir, "env"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(env)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), "export BRAID_MDM="); ok {
			c.mdm = strings.ReplaceAll(value, `\`, "")
		}
	}
	c.scli(t, "volume", "create", "vol", "--size", "64M", "--replicas", "2")
	return c
}

// script calls scripts/cluster with one more variable in its environment.
func (c *cluster) script(t *testing.T, variable string, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(c.root, "scripts", "cluster"), append(args, "--dir", c.dir)...)
	cmd.Env = append(os.Environ(), "BRAID_BIN="+c.bin)
	if variable != "" {
		cmd.Env = append(cmd.Env, variable)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("scripts/cluster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// kill kills a daemon, which takes its disk's cache with it.
func (c *cluster) kill(t *testing.T, who string) { t.Helper(); c.script(t, "", "kill", who) }

// start starts it again, on a disk that forgets and that has these faults, too.
func (c *cluster) start(t *testing.T, who string, faults ...string) {
	t.Helper()
	c.script(t, "BRAID_TEST_DISK="+strings.Join(append([]string{"volatile"}, faults...), ","), "start", who)
}

// signal sends a signal to a daemon of scripts/cluster.
func (c *cluster) signal(t *testing.T, who string, sig syscall.Signal) {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(c.dir, who+".pid"))
	if err != nil {
		t.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatalf("signal to %s, process %d: %v", who, pid, err)
	}
}

func (c *cluster) scli(t *testing.T, args ...string) string {
	t.Helper()
	cmd := exec.Command(filepath.Join(c.bin, "scli"), args...)
	cmd.Env = append(os.Environ(), "BRAID_MDM="+c.mdm)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("scli %s: %v\n%s%s", strings.Join(args, " "), err, out, errors.Bytes())
	}
	return string(out)
}

// healthy waits until each chunk has its copies again, and returns after how long.
func (c *cluster) healthy(t *testing.T) time.Duration {
	t.Helper()
	from := time.Now()
	c.waitHealth(t, "ok", func(health string) bool { return health == "ok" })
	return time.Since(from)
}

func (c *cluster) waitHealth(t *testing.T, what string, good func(string) bool) {
	t.Helper()
	text := ""
	waitFor(t, "health is "+what, func() bool {
		text = c.scli(t, "status", "-o", "json")
		var s struct{ Health string }
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		return good(s.Health)
	}, func() string { return text })
}

func waitFor(t *testing.T, what string, done func() bool, state func() string) {
	t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for limit := time.After(patience); !done(); {
		select {
		case <-tick.C:
		case <-limit:
			t.Fatalf("not within %v: %s\n%s", patience, what, state())
		}
	}
}

func (c *cluster) tails() string {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
	var all strings.Builder
	for _, log := range logs {
		if content, err := os.ReadFile(log); err == nil {
			lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
			fmt.Fprintf(&all, "%s:\n  %s\n", log, strings.Join(lines[max(0, len(lines)-25):], "\n  "))
		}
	}
	return all.String()
}

// client is `sdc serve` of the volume, and a connection to it.
type client struct {
	*conn
	cmd    *exec.Cmd
	attach int // the how manieth of the volume, from 0
	ended  chan struct{}
	once   sync.Once
}

// attach takes the volume, also from somebody who holds it.
func (c *cluster) attach(t *testing.T, name string) *client {
	t.Helper()
	sock := filepath.Join(c.dir, name+".sock")
	log, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	s := &client{cmd: exec.Command(filepath.Join(c.bin, "sdc"), "serve", "--volume", "vol", "--socket", sock,
		"--force"), ended: make(chan struct{})}
	s.cmd.Env = append(os.Environ(), "BRAID_MDM="+c.mdm, "BRAID_RUN="+c.dir)
	s.cmd.Stdout, s.cmd.Stderr = log, log
	if err := s.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { _ = s.cmd.Wait(); close(s.ended) }()
	c.whole.Cleanup(s.kill)
	var problem error
	waitFor(t, name+" serves the volume", func() bool {
		s.conn, problem = dial(sock, "vol")
		return problem == nil
	}, func() string { return problem.Error() + "\n" + c.tails() })
	return s
}

// kill kills the client; what it had not answered is lost.
func (s *client) kill() {
	s.once.Do(func() {
		_ = s.cmd.Process.Kill()
		<-s.ended
		if s.conn != nil {
			s.conn.end()
		}
	})
}
