// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
)

// needs is what the machine has to have for namespaces.
const needs = "this needs root with CAP_SYS_ADMIN and CAP_NET_ADMIN, or a kernel that lets users make " +
	"namespaces (user.max_user_namespaces above 0, kernel.unprivileged_userns_clone 1 where it exists), " +
	"veth and bridge devices, and ip of iproute2"

// inside tells the process that TestMain started again in a user namespace.
const inside = "BRAID_FAULTS_INSIDE"

// TestMain: who is not root becomes root of a user namespace.
func TestMain(m *testing.M) {
	if os.Geteuid() == 0 || os.Getenv(inside) != "" {
		sweep()
		os.Exit(m.Run())
	}
	again := exec.Command("/proc/self/exe", os.Args[1:]...)
	again.Env = append(os.Environ(), inside+"=1")
	again.Stdout, again.Stderr = os.Stdout, os.Stderr
	again.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}},
	}
	// What is left of the run when this process is killed goes with it.
	runtime.LockOSThread()
	again.SysProcAttr.Pdeathsig = syscall.SIGKILL
	err := again.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		fmt.Fprintf(os.Stderr, "faults: no user namespace: %v; %s\n", err, needs)
		os.Exit(1)
	}
	os.Exit(again.ProcessState.ExitCode())
}

// folderName and folderPlaces say where a run has its folders.
const folderName = "braid-faults-"

var folderPlaces = []string{os.TempDir(), "/dev/shm"}

// claim locks a folder until the file is closed, or the process ends; it fails while
// another process has it.
func claim(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

// sweep removes what runs that were killed have left.
func sweep() {
	for _, place := range folderPlaces {
		dirs, _ := filepath.Glob(filepath.Join(place, folderName+"*"))
		for _, dir := range dirs {
			if f, err := claim(dir); err == nil {
				_, _ = os.RemoveAll(dir), f.Close()
			}
		}
	}
}

// node is a machine: a network namespace with one interface, eth0. A thread of this
// process is all that holds it, so that nothing can outlive the process: neither the
// namespace nor what runs there.
type node struct {
	name, addr string
	jobs       chan func() // for the thread
	task       string      // the thread's folder in /proc
	id         string      // of the namespace
	ended      chan struct{}
}

func newNode(name, addr string) (*node, error) {
	n := &node{name: name, addr: addr, jobs: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	onThread(func() {
		defer close(n.ended)
		if err := syscall.Unshare(syscall.CLONE_NEWNET); err != nil {
			ready <- fmt.Errorf("no network namespace: %w; %s", err, needs)
			return
		}
		n.task = fmt.Sprintf("/proc/%d/task/%d", os.Getpid(), syscall.Gettid())
		var err error
		n.id, err = os.Readlink(filepath.Join(n.task, "ns/net"))
		ready <- err
		for job := range n.jobs {
			job()
		}
	})
	return n, <-ready
}

// onThread runs f on a thread of its own, which ends with f. The main thread does
// not: it never ends, and it is what others see of this process.
func onThread(f func()) {
	go func() {
		runtime.LockOSThread() // and never unlocked
		if syscall.Gettid() != syscall.Getpid() {
			f()
			return
		}
		taken := make(chan struct{})
		go func() { runtime.LockOSThread(); close(taken); f() }()
		<-taken
		runtime.UnlockOSThread()
	}()
}

// do runs f in the namespace.
func (n *node) do(f func()) {
	done := make(chan struct{})
	n.jobs <- func() { f(); close(done) }
	<-done
}

// start starts a process there; it dies with this one.
func (n *node) start(cmd *exec.Cmd) (err error) {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	n.do(func() { err = cmd.Start() })
	return err
}

// ip calls ip.
func (n *node) ip(words string) error {
	cmd := exec.Command("ip", strings.Fields(words)...)
	var says bytes.Buffer
	cmd.Stdout, cmd.Stderr = &says, &says
	err := n.start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("ip %s, in the namespace of %s: %w: %s", words, n.name, err, says.Bytes())
	}
	return nil
}

// dial connects from there.
func (n *node) dial(addr string) (c net.Conn, err error) {
	n.do(func() { c, err = net.DialTimeout("tcp4", addr, patience) })
	return c, err
}

func (n *node) close() { close(n.jobs); <-n.ended }

// network is nodes that hang on one bridge.
type network struct {
	t     *testing.T
	hub   *node
	nodes map[string]*node
}

// newNetwork makes a node for each name. They end with the test.
func newNetwork(t *testing.T, names ...string) *network {
	t.Helper()
	hub, err := newNode("hub", "")
	if err != nil {
		t.Fatal(err)
	}
	w := &network{t: t, hub: hub, nodes: map[string]*node{}}
	t.Cleanup(w.close)
	w.must(hub, "link add br0 type bridge", "link set br0 up")
	for i, name := range names {
		n, err := newNode(name, fmt.Sprintf("10.88.0.%d", i+1))
		if err != nil {
			t.Fatal(err)
		}
		w.nodes[name] = n
		w.must(n, "link set lo up",
			"link add eth0 type veth peer name "+name+" netns "+hub.task+"/ns/net",
			"addr add "+n.addr+"/24 dev eth0", "link set eth0 up")
		w.must(hub, "link set dev "+name+" master br0 up")
	}
	return w
}

func (w *network) close() {
	for _, n := range w.nodes {
		n.close()
	}
	if w.hub != nil {
		w.hub.close()
	}
	w.nodes, w.hub = nil, nil
}

// must calls ip, once for each of the commands.
func (w *network) must(n *node, commands ...string) {
	w.t.Helper()
	for _, words := range commands {
		if err := n.ip(words); err != nil {
			w.t.Fatalf("%v; %s", err, needs)
		}
	}
}

// cut takes a node off the bridge; heal puts it back.
func (w *network) cut(name string)  { w.must(w.hub, "link set dev "+name+" down") }
func (w *network) heal(name string) { w.must(w.hub, "link set dev "+name+" up") }

// nowhere is an interface that no node has.
const nowhere = "02:00:00:00:00:01"

// lose lets what one node sends to another vanish on the way: it goes to an address
// that nobody has. What the other one sends arrives.
func (w *network) lose(from, to string) {
	w.must(w.nodes[from], "neigh replace "+w.nodes[to].addr+" lladdr "+nowhere+" dev eth0 nud permanent")
}

// find ends that.
func (w *network) find(from, to string) {
	w.must(w.nodes[from], "neigh del "+w.nodes[to].addr+" dev eth0")
}

// mute lets all vanish that a node sends, deafen all that is sent to it.
func (w *network) mute(name string)   { w.others(name, func(o string) { w.lose(name, o) }) }
func (w *network) unmute(name string) { w.others(name, func(o string) { w.find(name, o) }) }
func (w *network) deafen(name string) { w.others(name, func(o string) { w.lose(o, name) }) }
func (w *network) undeaf(name string) { w.others(name, func(o string) { w.find(o, name) }) }

func (w *network) others(name string, f func(other string)) {
	for other := range w.nodes {
		if other != name {
			f(other)
		}
	}
}

// Goal: cuts cut what they say and no more, and nothing is left of a network. Method:
// two nodes on one bridge, messages each way.
func TestNetwork(t *testing.T) {
	w := newNetwork(t, "a", "b")
	a, b := listen(t, w.nodes["a"]), listen(t, w.nodes["b"])
	for _, step := range []struct {
		name        string
		change      func()
		there, back bool
	}{
		{"whole", func() {}, true, true},
		{"cut", func() { w.cut("b") }, false, false},
		{"healed", func() { w.heal("b") }, true, true},
		{"a is mute", func() { w.mute("a") }, false, true},
		{"a is not", func() { w.unmute("a") }, true, true},
		{"a is deaf", func() { w.deafen("a") }, true, false},
		{"a is not deaf", func() { w.undeaf("a") }, true, true},
	} {
		step.change()
		if x, y := arrives(a, b, step.there), arrives(b, a, step.back); x != step.there || y != step.back {
			t.Fatalf("%s: a to b %t, b to a %t; want %t, %t", step.name, x, y, step.there, step.back)
		}
	}
	ids := w.ids()
	_, _ = a.Close(), b.Close()
	w.close()
	noNamespace(t, ids)
}
