// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"flag"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// fault is something that happens to a process while the volume is used.
type fault struct {
	name   string
	run    func(*load, string) // with the server whose turn it is
	isLong bool                // happens in the long form only
}

// isLong asks for the long form.
func isLong() bool { return os.Getenv("BRAID_SOAK") != "" }

var roundsFlag = flag.Int("rounds", 0, "how often each fault happens (0: once, on each server in the long form)")

func rounds() int {
	switch {
	case *roundsFlag > 0:
		return *roundsFlag
	case isLong():
		return len(servers)
	}
	return 1
}

// answered counts the requests of the history.
func (l *load) answered() int { l.h.mu.Lock(); defer l.h.mu.Unlock(); return l.h.count }

// during waits until n more requests have been answered.
func (l *load) during(n int) {
	l.t.Helper()
	from := l.answered()
	waitFor(l.t, "requests are answered", func() bool { return l.answered() >= from+n }, l.c.tails)
}

// stalls waits until no request has been answered for a while: all wait for what is
// away.
func (l *load) stalls() {
	l.t.Helper()
	while := time.Second
	if isLong() {
		while = 8 * time.Second
	}
	count, since := l.answered(), time.Now()
	waitFor(l.t, "requests wait", func() bool {
		if n := l.answered(); n != count {
			count, since = n, time.Now()
		}
		return time.Since(since) > while
	}, l.c.tails)
}

// suffer lets one fault happen after the other, and looks at everything at the end.
func suffer(t *testing.T, faults []fault) {
	t.Parallel()
	c := up(t)
	l := newLoad(t, c)
	for i, fault := range faults {
		if fault.isLong && !isLong() {
			continue
		}
		t.Run(fault.name, func(t *testing.T) {
			l.t = t
			for round := range rounds() {
				l.run()
				l.during(300)
				l.h.mark()
				fault.run(l, servers[(i+round)%len(servers)])
				l.during(300)
				pause := l.h.mark()
				if isLong() { // without load, catching up is faster
					c.healthy(t)
				}
				l.end()
				t.Logf("longest pause %v, healthy %v later", pause, c.healthy(t))
			}
		})
		l.t = t
		if t.Failed() {
			return
		}
	}
	if isLong() {
		l.alone()
	}
	l.finish()
}

// Goal: no fault of one process or disk, and none of some pairs, is an error or a
// wrong byte for who uses the volume. Method: 32 requests under way to all chunks;
// one fault after the other; the history of each block has to be linearizable, the
// rest equal to a mirror, and both copies have to be equal to the byte.
func TestFaults(t *testing.T) {
	suffer(t, []fault{
		{name: "server loses power", run: powerLoss},
		{name: "server stands still", run: standsStill},
		{name: "disk hangs", run: diskHangs},
		{name: "disk refuses flushes", run: refusesFlush},
		{name: "disk refuses writes", run: refusesWrites},
		{name: "disk refuses reads", run: refusesReads},
		{name: "disk is slow", run: slowDisk},
		{name: "disk is slow, another server loses power", run: slowAndPowerLoss},
		{name: "server loses power while mdm stands still", run: powerLossWithoutManager},
		{name: "mdm is killed", run: managerKilled},
		{name: "client is killed", run: clientKilled},
		{name: "client and server lose power", run: clientAndServer},
		{name: "all lose power", run: allLosePower},
		{name: "old client wakes", run: oldClient},
		{name: "devices are full, server loses power", run: fullAndPowerLoss},
	})
}

// next is the server after that one.
func next(who string) string {
	for i, s := range servers {
		if s == who {
			return servers[(i+1)%len(servers)]
		}
	}
	return servers[0]
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

// restarted lets a disk have a fault that lasts until its server starts again.
func (l *load) restarted(who, fault string) {
	l.c.fault(l.t, who, fault)
	l.during(600)
	l.c.good(l.t, who)
	l.c.kill(l.t, who)
	l.c.start(l.t, who)
}

func diskHangs(l *load, who string)     { l.restarted(who, "flush-delay=1h") }
func refusesFlush(l *load, who string)  { l.restarted(who, "flush-fails-after=0") }
func refusesWrites(l *load, who string) { l.restarted(who, "write-fails-after=0") }
func refusesReads(l *load, who string)  { l.restarted(who, "read-fails-after=0") }

const slowly = "io-delay=3ms,flush-delay=50ms"

func slowDisk(l *load, who string) {
	l.c.fault(l.t, who, slowly)
	l.during(600)
	l.c.good(l.t, who)
}

func slowAndPowerLoss(l *load, who string) {
	l.c.fault(l.t, who, slowly)
	l.during(100)
	l.c.kill(l.t, next(who))
	l.during(300)
	l.c.start(l.t, next(who))
	l.during(300) // while a slow disk is the source
	l.c.good(l.t, who)
}

// powerLossWithoutManager: nobody can take the lost copy out until mdm is back.
func powerLossWithoutManager(l *load, who string) {
	l.c.signal(l.t, manager, syscall.SIGSTOP)
	l.c.kill(l.t, who)
	l.stalls()
	l.c.signal(l.t, manager, syscall.SIGCONT)
	l.during(300)
	l.c.start(l.t, who)
}

func managerKilled(l *load, _ string) {
	l.c.kill(l.t, manager)
	l.during(300)
	l.c.start(l.t, manager)
}

func clientKilled(l *load, _ string) {
	l.client.kill()
	l.replace()
}

func clientAndServer(l *load, who string) {
	l.c.kill(l.t, who)
	l.client.kill()
	l.c.start(l.t, who)
	l.replace()
}

// allLosePower: what was flushed is there, and nothing that never was.
func allLosePower(l *load, _ string) {
	for _, who := range servers {
		l.c.kill(l.t, who)
	}
	l.c.kill(l.t, manager)
	l.client.kill()
	waitFor(l.t, "all workers wait", func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.waiting == workers
	}, l.c.tails)
	l.c.start(l.t, manager)
	for _, who := range servers {
		l.c.start(l.t, who)
	}
	n := l.another()
	l.survey(n)
	l.use(n)
}

// oldClient: a client stood still while another took the volume.
func oldClient(l *load, _ string) {
	old := l.client
	_ = old.cmd.Process.Signal(syscall.SIGSTOP)
	l.replace()
	l.during(300)
	l.returns(old, func() { _ = old.cmd.Process.Signal(syscall.SIGCONT) })
}

// returns lets a client come back from which the volume was taken. It must not be
// able to write; what it reads becomes part of the history, so that nothing old
// passes.
func (l *load) returns(old *client, wake func()) {
	wake()
	late, err := dial(old.sock, "vol")
	if err != nil {
		l.t.Logf("the old client refuses connections: %v", err)
		old.kill()
		return
	}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for w := range 4 {
		wg.Go(func() { l.insist(late, 1+workers+w, stop) })
	}
	l.during(1200)
	close(stop)
	late.end()
	wg.Wait()
	old.kill()
}

// insist asks a client that may not answer.
func (l *load) insist(late *conn, w int, stop chan struct{}) {
	rest := time.NewTicker(20 * time.Millisecond)
	defer rest.Stop()
	data := make([]byte, block)
	for b := w; ; b = (b + 4) % blocks {
		select {
		case <-stop:
			return
		case <-rest.C:
		}
		stamp(data, b, l.values.Add(1))
		if a := late.do(cmdWrite, uint64(b)*stride, block, data); a.err == nil {
			l.t.Errorf("a client that was fenced has written block %d", b)
		}
		call := l.h.now()
		a := late.do(cmdRead, uint64(b)*stride, block, nil)
		if a.err != nil {
			continue
		}
		value, err := stamped(a.data, b)
		if err != nil {
			l.t.Error(err)
		}
		l.h.done(w, request{block: b}, call, value)
	}
}

// fullAndPowerLoss: another volume takes all the room there is, and its writer waits for more; this
// one, which has its chunks, does not notice, and a server that comes back needs no room.
// What is trimmed lets the writer go on.
func fullAndPowerLoss(l *load, who string) {
	const size, piece = 160 << 20, 1 << 20
	filler := l.filler()
	var written atomic.Int64
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for at := 0; at < size; at += piece {
			if a := filler.do(cmdWrite, uint64(at), piece, make([]byte, piece)); a.err != nil {
				l.t.Errorf("write to full devices: %v", a.err)
			}
			written.Store(int64(at + piece))
		}
	}()
	waitFor(l.t, "the writer waits for space", func() bool {
		why, err := l.c.command(filler.node, "sdc", "why", filler.volume, "-o", "json")
		return err == nil && strings.Contains(why, `"space"`)
	}, l.c.tails)
	if a := filler.do(cmdFlush, 0, 0, nil); a.err != nil {
		l.t.Errorf("flush of full devices: %v", a.err)
	}
	l.during(300)
	powerLoss(l, who)
	l.during(300)
	l.c.waitHealth(l.t, "full")
	// What is left is compared at the end.
	waitFor(l.t, "the writer goes on where something is trimmed", func() bool {
		if n := written.Load() - 16*piece; n > 0 {
			if a := filler.do(cmdTrim, 0, int(n), nil); a.err != nil {
				l.t.Errorf("trim: %v", a.err)
			}
		}
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}, l.c.tails)
	if a := filler.do(cmdFlush, 0, 0, nil); a.err != nil {
		l.t.Errorf("flush: %v", a.err)
	}
	filler.stop(l.t)
}

// filler serves a volume beside the one that is used.
func (l *load) filler() *client {
	l.t.Helper()
	if l.c.filler == "" {
		l.c.filler = "filler"
		l.c.scli(l.t, "volume", "create", l.c.filler, "--size", "160M", "--replicas", "2")
	}
	return l.c.attach(l.t, clients[1], l.c.filler)
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
		l.compare()
		// Until mdm knows, health is ok: then the next one would be killed while this one's
		// copies are not back.
		l.c.waitHealth(l.t, "degraded")
		l.c.start(l.t, who)
	}
	l.c.healthy(l.t)
}
