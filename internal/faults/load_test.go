// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"errors"
	"flag"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// restFlag is there so that histories stay short. perf/pauses does without it.
var restFlag = flag.Duration("rest", 20*time.Millisecond, "how long a worker rests between requests")

const (
	blocks  = 512                 // with a history
	stride  = volumeSize / blocks // from one to the next
	workers = 32                  // requests under way
)

// Of each stride, the first block has a history. What lies behind it is one worker's
// own, who knows what must be there.
const (
	scratchFrom   = 16 << 10
	scratchBlocks = (stride - scratchFrom) / block
	scratchMost   = 8 // blocks of a request
)

// load keeps requests under way through whatever client there is.
type load struct {
	t      *testing.T
	c      *cluster
	h      *history
	values atomic.Uint64
	stop   chan struct{}
	wg     sync.WaitGroup
	mirror []byte // of the volume

	mu      sync.Mutex // guards client, waiting and recent
	client  *client
	seen    *sync.Cond       // a client came
	waiting int              // workers that wait for one
	recent  map[int][]uint64 // what each block of a worker's own has held since the last flush at rest: checksums
}

func newLoad(t *testing.T, c *cluster) *load {
	l := &load{t: t, c: c, h: newHistory(), client: c.attach(t, clients[0], "vol"), mirror: make([]byte, volumeSize)}
	l.seen = sync.NewCond(&l.mu)
	for b := range blocks { // so that each chunk is there
		l.write(workers, b)
	}
	l.rest()
	return l
}

// run begins.
func (l *load) run() {
	l.stop = make(chan struct{})
	l.h.mark()
	for w := range workers {
		l.wg.Go(func() { l.work(w, rand.New(rand.NewPCG(uint64(w), 1))) })
	}
}

// end ends it, waits for every request, and comes to rest.
func (l *load) end() {
	l.t.Helper()
	close(l.stop)
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		l.t.Fatalf("requests are without an answer after %v\n%s%s", patience, l.c.waits(l.client), l.c.tails())
	}
	l.rest()
}

// rest flushes, reads the blocks with a history, and settles that.
func (l *load) rest() {
	l.t.Helper()
	if a := l.client.do(cmdFlush, 0, 0, nil); a.err != nil {
		l.t.Errorf("flush: %v", a.err)
	}
	values := make([]uint64, blocks)
	for b := range values {
		values[b] = l.read(workers, b)
		stamp(l.mirror[b*stride:][:block], b, values[b])
	}
	l.h.settle(l.t, values)
	l.recent = map[int][]uint64{}
}

// replace sets a client on the other node in place of the one that is gone or fenced.
func (l *load) replace() {
	l.t.Helper()
	l.use(l.another())
}

// another attaches the volume on the other node.
func (l *load) another() *client {
	l.t.Helper()
	node := clients[0]
	if l.client.node == node {
		node = clients[1]
	}
	n := l.c.attach(l.t, node, "vol")
	n.attach = l.h.attached()
	return n
}

// use gives that client to the workers.
func (l *load) use(n *client) {
	l.mu.Lock()
	old := l.client
	l.client = n
	l.mu.Unlock()
	l.seen.Broadcast()
	// Whatever the old one had not answered is over now.
	old.conn.end()
}

func (l *load) current(not *client) *client {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.waiting++
	for l.client == not {
		l.seen.Wait()
	}
	l.waiting--
	return l.client
}

func (l *load) work(w int, r *rand.Rand) {
	rest := time.NewTicker(max(*restFlag, 1))
	defer rest.Stop()
	for {
		select {
		case <-l.stop:
			return
		case <-rest.C:
		}
		b := r.IntN(blocks)
		switch r.IntN(20) {
		case 0:
			l.flush()
		case 1, 2, 3, 4:
			l.read(w, b)
		case 5, 6, 7, 8, 9:
			l.scratch(w, r)
		default:
			l.write(w, b)
		}
	}
}

func (l *load) flush() {
	call := l.h.now()
	switch a := l.current(nil).do(cmdFlush, 0, 0, nil); {
	case a.err == nil:
		l.h.flush(call)
	case !errors.Is(a.err, errBroken):
		l.t.Errorf("flush: %v", a.err)
	}
}

func (l *load) read(w, b int) (value uint64) {
	for s := l.current(nil); ; s = l.current(s) {
		call := l.h.now()
		a := s.do(cmdRead, uint64(b)*stride, block, nil)
		if errors.Is(a.err, errBroken) {
			continue
		}
		if a.err != nil {
			l.t.Errorf("read of block %d: %v", b, a.err)
			return 0
		}
		value, err := stamped(a.data, b)
		if err != nil {
			l.t.Error(err)
		}
		l.h.done(w, request{block: b}, call, value)
		return value
	}
}

func (l *load) write(w, b int) {
	value := l.values.Add(1)
	data := make([]byte, block)
	stamp(data, b, value)
	s := l.current(nil)
	r, cmd := request{block: b, write: true, value: value}, uint32(cmdWrite)
	if r.durable = value%4 == 0; r.durable {
		cmd |= flagFUA
	}
	call := l.h.now()
	a := s.do(cmd, uint64(b)*stride, block, data)
	switch {
	case a.err == nil:
		l.h.done(w, r, call, 0)
	case errors.Is(a.err, errBroken):
		l.h.lost(w, r, call, s.attach)
		l.current(s)
	default:
		l.t.Errorf("write of block %d: %v", b, a.err)
		l.h.lost(w, r, call, s.attach)
	}
}
