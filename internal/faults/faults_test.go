// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"
)

// servers of the cluster.
var servers = []string{"sds1", "sds2", "sds3"}

// rounds is how often each fault happens.
func rounds() int {
	if os.Getenv("BRAID_SOAK") != "" {
		return 8 // more make a block's history longer than the checker can bear
	}
	return 1
}

// during waits until n more requests have been answered.
func (l *load) during(n int) {
	l.t.Helper()
	count := func() int { l.h.mu.Lock(); defer l.h.mu.Unlock(); return len(l.h.ops) }
	from := count()
	waitFor(l.t, "requests are answered", func() bool { return count() >= from+n }, l.c.tails)
}

// Goal: no fault of one process, and none of some pairs, is an error or a wrong byte
// for who uses the volume. Method: 32 requests under way to 512 blocks in all chunks;
// one fault after the other; the history of each block has to be linearizable, and
// each copy has to answer the same alone.
func TestFaults(t *testing.T) {
	c := up(t)
	l := newLoad(t, c)
	for i, fault := range []struct {
		name string
		run  func(*load, string)
	}{
		{"server loses power", powerLoss},
		{"server stands still", standsStill},
		{"disk hangs", diskHangs},
		{"disk refuses flushes", refusesFlush},
		{"disk refuses writes", refusesWrites},
		{"server loses power while mdm stands still", powerLossWithoutManager},
		{"mdm is killed", managerKilled},
		{"client is killed", clientKilled},
		{"client and server lose power", clientAndServer},
		{"old client returns", oldClient},
	} {
		t.Run(fault.name, func(t *testing.T) {
			l.t = t
			for round := range rounds() {
				l.run()
				l.during(300)
				l.h.mark()
				fault.run(l, servers[(i+round)%len(servers)])
				l.during(300)
				pause := l.h.mark()
				healed := c.healthy(t)
				l.end()
				t.Logf("longest pause %v, healthy %v later", pause, healed)
			}
		})
		if t.Failed() {
			break
		}
	}
	l.t = t
	l.alone()
	l.h.check(t)
}

func powerLoss(l *load, who string) {
	l.c.kill(l.t, who)
	l.during(300)
	l.c.start(l.t, who)
}

func standsStill(l *load, who string) {
	l.c.signal(l.t, who, syscall.SIGSTOP)
	l.during(300)
	l.c.signal(l.t, who, syscall.SIGCONT)
}

// faulty restarts a server on a disk with a fault, switches that on, and off again
// by a restart on a good disk.
func (l *load) faulty(who, fault string) {
	file := filepath.Join(l.c.dir, "fault")
	l.c.kill(l.t, who)
	l.c.start(l.t, who, fault, "while="+file)
	l.c.healthy(l.t)
	l.h.mark()
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		l.t.Fatal(err)
	}
	l.during(600)
	if err := os.Remove(file); err != nil {
		l.t.Fatal(err)
	}
	l.c.kill(l.t, who)
	l.c.start(l.t, who)
}

func diskHangs(l *load, who string)     { l.faulty(who, "flush-delay=1h") }
func refusesFlush(l *load, who string)  { l.faulty(who, "flush-fails-after=0") }
func refusesWrites(l *load, who string) { l.faulty(who, "write-fails-after=0") }

// powerLossWithoutManager: nobody can take the lost copy out until mdm is back.
func powerLossWithoutManager(l *load, who string) {
	l.c.signal(l.t, "mdm1", syscall.SIGSTOP)
	l.c.kill(l.t, who)
	l.c.signal(l.t, "mdm1", syscall.SIGCONT)
	l.during(300)
	l.c.start(l.t, who)
}

func managerKilled(l *load, _ string) {
	l.c.kill(l.t, "mdm1")
	l.during(300)
	l.c.script(l.t, "", "start", "mdm1")
}

func clientKilled(l *load, _ string) {
	l.client.kill()
	l.replace("client")
}

func clientAndServer(l *load, who string) {
	l.c.kill(l.t, who)
	l.client.kill()
	l.c.start(l.t, who)
	l.replace("client")
}

// oldClient: a client that stood still while another took the volume must not be
// able to write, whatever it was asked before or after.
func oldClient(l *load, _ string) {
	old := l.client
	_ = old.cmd.Process.Signal(syscall.SIGSTOP)
	sock := filepath.Join(l.c.dir, "client.sock")
	if err := os.Rename(sock, sock+".old"); err != nil {
		l.t.Fatal(err)
	}
	l.replace("client")
	late, err := wake(sock+".old", old)
	if err != nil {
		l.t.Logf("the old client refuses connections: %v", err)
		return
	}
	defer late.end()
	data := make([]byte, block)
	stamp(data, 7, 1<<62)
	answered := make(chan answer, 1)
	go func() { answered <- late.do(cmdWrite, 7*stride, block, data) }()
	l.during(600)
	select {
	case a := <-answered:
		if a.err == nil {
			l.t.Error("a client that was fenced has written")
		}
	case <-time.After(time.Second):
	}
	old.kill()
}

// wake wakes the old client and connects to it.
func wake(sock string, old *client) (*conn, error) {
	_ = old.cmd.Process.Signal(syscall.SIGCONT)
	return dial(sock, "vol")
}

// alone reads everything from each copy: with one server away at a time, each chunk
// is read from either of its copies.
func (l *load) alone() {
	for _, who := range servers {
		l.c.healthy(l.t)
		if a := l.client.do(cmdFlush, 0, 0, nil); a.err != nil {
			l.t.Errorf("flush: %v", a.err)
		}
		l.c.kill(l.t, who)
		l.readAll()
		l.c.start(l.t, who)
	}
	l.c.healthy(l.t)
}
