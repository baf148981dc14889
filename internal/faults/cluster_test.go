// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// patience is how long a test waits for what must come. A device that comes and goes
// is brought in sync again after 30 s only, and in the long form each one does.
const patience = 90 * time.Second

const (
	manager    = "mdm1"
	managerAPI = ":7400"
	serverAPI  = ":7420"
	metricsAPI = "127.0.0.1:7421" // in the namespace
	deviceSize = "128M"
	volumeSize = 32 << 20
)

// servers of the cluster, and the nodes for its clients.
var (
	servers = []string{"sds1", "sds2", "sds3"}
	clients = []string{"client1", "client2"}
)

// cluster is a running cluster: one mdm, three servers on disks that forget what
// was not flushed when their process is killed, one volume with two copies. Each
// process has a network namespace.
type cluster struct {
	dir, disks, bin string
	net             *network
	daemons         map[string]*daemon
	attached        int        // clients so far
	filler          string     // a second volume, if there is one
	whole           *testing.T // at whose end everything ends
}

// daemon is a process on a node.
type daemon struct {
	name  string
	cmd   *exec.Cmd
	ended chan struct{}
}

func up(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{whole: t, daemons: map[string]*daemon{}, bin: os.Getenv("BRAID_BIN")}
	if c.bin == "" {
		c.bin = "../../bin"
	}
	var err error
	if c.bin, err = filepath.Abs(c.bin); err != nil {
		t.Fatal(err)
	}
	for i, dir := range []*string{&c.dir, &c.disks} {
		if *dir, err = os.MkdirTemp(folderPlaces[i], folderName); err != nil {
			t.Fatal(err)
		}
		lock, err := claim(*dir)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _, _ = os.RemoveAll(*dir), lock.Close() })
	}
	c.net = newNetwork(t, append(append([]string{manager}, servers...), clients...)...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.tails())
			if c.net.nodes[manager] != nil { // finish may have ended them
				t.Log(c.command(manager, "scli", "events"))
			}
		}
		for who := range c.daemons {
			c.kill(t, who)
		}
	})
	c.start(t, manager)
	for _, who := range servers {
		c.run(t, who, "sds", "format", c.disk(who), "--size", deviceSize)
		c.start(t, who)
	}
	waitFor(t, "all devices are up", func() bool {
		var devices []struct{ Up bool }
		if err := json.Unmarshal([]byte(c.scli(t, "device", "list", "-o", "json")), &devices); err != nil {
			t.Fatal(err)
		}
		n := 0
		for _, d := range devices {
			if d.Up {
				n++
			}
		}
		return n == len(servers)
	}, c.tails)
	c.scli(t, "volume", "create", "vol", "--size", fmt.Sprint(volumeSize), "--replicas", "2")
	return c
}

func (c *cluster) disk(who string) string { return filepath.Join(c.disks, who) }

// mdm is the managers' address.
func (c *cluster) mdm() string { return c.net.nodes[manager].addr + managerAPI }

// start starts a daemon and waits until it listens. A server's disk does what is
// asked of it by c.fault.
func (c *cluster) start(t *testing.T, who string) {
	t.Helper()
	n := c.net.nodes[who]
	listen := n.addr + managerAPI
	args := []string{"serve", "--data-dir", filepath.Join(c.dir, who), "--insecure", "--name", who}
	if who != manager {
		listen = n.addr + serverAPI
		args = []string{"serve", "--mdm", c.mdm(), "--name", who, "--insecure", "--fault-set", who,
			"--metrics", metricsAPI, "--device", c.disk(who)}
	}
	d := c.launch(t, who, who, who[:3], append(args, "--listen", listen)...)
	c.daemons[who] = d
	waitFor(t, who+" listens", func() bool {
		select {
		case <-d.ended:
			t.Fatalf("%s has ended\n%s", who, c.tails())
		default:
		}
		conn, err := n.dial(listen)
		if err == nil {
			_ = conn.Close()
		}
		return err == nil
	}, c.tails)
	if who == manager {
		waitFor(t, who+" answers", func() bool {
			_, err := c.command(manager, "scli", "status")
			return err == nil
		}, c.tails)
	}
}

// env is the environment of a process of the cluster.
func (c *cluster) env(name string) []string {
	return append(os.Environ(), "BRAID_MDM="+c.mdm(), "BRAID_RUN="+c.dir,
		"BRAID_TEST_DISK=volatile,faults="+c.faultFile(name))
}

// launch starts one of Braid's programs on a node.
func (c *cluster) launch(t *testing.T, node, name, program string, args ...string) *daemon {
	t.Helper()
	log, err := os.OpenFile(filepath.Join(c.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	d := &daemon{name: name, cmd: exec.Command(filepath.Join(c.bin, program), args...), ended: make(chan struct{})}
	d.cmd.Env = c.env(name)
	d.cmd.Stdout, d.cmd.Stderr = log, log
	if err := c.net.nodes[node].start(d.cmd); err != nil {
		t.Fatal(err)
	}
	go func() { _ = d.cmd.Wait(); close(d.ended) }()
	return d
}

// stop asks a process to end, which it has to do cleanly.
func (d *daemon) stop(t *testing.T) {
	t.Helper()
	_ = d.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-d.ended:
	case <-time.After(patience):
		t.Fatalf("%s does not end", d.name)
	}
	if code := d.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("%s: exit code %d after SIGTERM", d.name, code)
	}
}

// kill kills a daemon, which takes its disk's cache with it.
func (c *cluster) kill(t *testing.T, who string) {
	t.Helper()
	_ = c.daemons[who].cmd.Process.Kill()
	<-c.daemons[who].ended
}

// signal sends a signal to a daemon.
func (c *cluster) signal(t *testing.T, who string, sig syscall.Signal) {
	t.Helper()
	if err := c.daemons[who].cmd.Process.Signal(sig); err != nil {
		t.Fatalf("signal to %s: %v", who, err)
	}
}

func (c *cluster) faultFile(who string) string { return filepath.Join(c.dir, who+".faults") }

// fault lets a server's disk have these faults (server/disk, BRAID_TEST_DISK) until
// good is called.
func (c *cluster) fault(t *testing.T, who, faults string) {
	t.Helper()
	file := c.faultFile(who)
	if err := os.WriteFile(file+".new", []byte(faults), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(file+".new", file); err != nil {
		t.Fatal(err)
	}
}

func (c *cluster) good(t *testing.T, who string) {
	t.Helper()
	if err := os.Remove(c.faultFile(who)); err != nil {
		t.Fatal(err)
	}
}

// command runs one of Braid's programs on a node to its end.
func (c *cluster) command(node, program string, args ...string) (string, error) {
	cmd := exec.Command(filepath.Join(c.bin, program), args...)
	cmd.Env = c.env("")
	var out, says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &says
	err := c.net.nodes[node].start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		err = fmt.Errorf("%s %s: %w\n%s%s", program, strings.Join(args, " "), err, out.Bytes(), says.Bytes())
	}
	return out.String(), err
}

// run is command for what must succeed.
func (c *cluster) run(t *testing.T, node, program string, args ...string) string {
	t.Helper()
	out, err := c.command(node, program, args...)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func (c *cluster) scli(t *testing.T, args ...string) string {
	t.Helper()
	return c.run(t, manager, "scli", args...)
}

// waits says what requests of a client wait for, and what mdm thinks of it.
func (c *cluster) waits(of *client) string {
	why, err := c.command(of.node, "sdc", "why", of.volume)
	status, problem := c.command(manager, "scli", "status")
	return fmt.Sprintln(why, err, "\n", status, problem)
}

// healthy waits until each chunk has its copies again, and returns after how long.
func (c *cluster) healthy(t *testing.T) time.Duration {
	t.Helper()
	from := time.Now()
	c.waitHealth(t, "ok")
	return time.Since(from)
}

// waitHealth waits for one of these words.
func (c *cluster) waitHealth(t *testing.T, words ...string) {
	t.Helper()
	text := ""
	waitFor(t, "health is "+strings.Join(words, " or "), func() bool {
		var s struct{ Health string }
		var err error
		if text, err = c.command(manager, "scli", "status", "-o", "json"); err != nil {
			text = err.Error()
			return false
		}
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			t.Fatal(err)
		}
		for _, w := range words {
			if s.Health == w {
				return true
			}
		}
		return false
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
			from := slices.IndexFunc(lines, func(line string) bool {
				return strings.HasPrefix(line, "panic: ") || strings.HasPrefix(line, "fatal error: ")
			})
			if from < 0 {
				from = max(0, len(lines)-15)
			}
			lines = lines[from:]
			fmt.Fprintf(&all, "%s:\n  %s\n", log, strings.Join(lines[:min(len(lines), 60)], "\n  "))
		}
	}
	return all.String()
}

// client is `sdc serve` of a volume, and a connection to it.
type client struct {
	*conn
	*daemon
	node, sock, volume string
	attach             int // the how manieth of the volume, from 0
}

// attach takes a volume, also from somebody who holds it.
func (c *cluster) attach(t *testing.T, node, volume string) *client {
	t.Helper()
	c.attached++
	name := fmt.Sprintf("sdc%d", c.attached)
	s := &client{node: node, sock: filepath.Join(c.dir, name+".sock"), volume: volume}
	s.daemon = c.launch(t, node, name, "sdc", "serve", "--volume", volume, "--socket", s.sock, "--force")
	c.whole.Cleanup(s.kill)
	problem := errors.New("not tried")
	waitFor(t, name+" serves the volume", func() bool {
		s.conn, problem = dial(s.sock, volume)
		return problem == nil
	}, func() string { return problem.Error() + "\n" + c.tails() })
	return s
}

// kill kills the client; what it had not answered is lost.
func (s *client) kill() {
	_ = s.cmd.Process.Kill()
	<-s.ended
	if s.conn != nil {
		s.conn.end()
	}
}

// stop lets the client end; everything has to be answered.
func (s *client) stop(t *testing.T) {
	t.Helper()
	s.conn.end()
	s.daemon.stop(t)
}
