// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"errors"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const (
	blocks  = 512       // that the load uses
	stride  = 128 << 10 // from one to the next: all chunks of 64 MiB
	workers = 32        // requests under way
)

// load keeps requests under way through whatever client there is.
type load struct {
	t      *testing.T
	c      *cluster
	h      *history
	values atomic.Uint64
	stop   chan struct{}
	wg     sync.WaitGroup
	mu     sync.Mutex // guards client
	client *client
	seen   *sync.Cond // a client came
}

func newLoad(t *testing.T, c *cluster) *load {
	l := &load{t: t, c: c, h: newHistory(), client: c.attach(t, "client")}
	l.seen = sync.NewCond(&l.mu)
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

// end ends it, waits for every request, flushes, and reads all blocks.
func (l *load) end() {
	l.t.Helper()
	close(l.stop)
	done := make(chan struct{})
	go func() { l.wg.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(patience):
		l.t.Fatalf("requests are without an answer after %v\n%s", patience, l.c.tails())
	}
	if a := l.client.do(cmdFlush, 0, 0, nil); a.err != nil {
		l.t.Errorf("flush: %v", a.err)
	}
	l.readAll()
}

// readAll makes the blocks' contents part of the history.
func (l *load) readAll() {
	l.t.Helper()
	for b := range blocks {
		l.read(workers, b)
	}
}

// replace sets another client in place of the one that is gone or fenced.
func (l *load) replace(name string) {
	l.t.Helper()
	n := l.c.attach(l.t, name)
	n.attach = l.h.attached()
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
	for l.client == not {
		l.seen.Wait()
	}
	return l.client
}

func (l *load) work(w int, r *rand.Rand) {
	rest := time.NewTicker(20 * time.Millisecond) // histories have to stay short
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
			if a := l.current(nil).do(cmdFlush, 0, 0, nil); a.err != nil && !errors.Is(a.err, errBroken) {
				l.t.Errorf("flush: %v", a.err)
			}
		case 1, 2, 3, 4:
			l.read(w, b)
		default:
			l.write(w, b)
		}
	}
}

func (l *load) read(w, b int) {
	for s := l.current(nil); ; s = l.current(s) {
		call := l.h.now()
		a := s.do(cmdRead, uint64(b)*stride, block, nil)
		if errors.Is(a.err, errBroken) {
			continue
		}
		if a.err != nil {
			l.t.Errorf("read of block %d: %v", b, a.err)
			return
		}
		value, err := stamped(a.data, b)
		if err != nil {
			l.t.Error(err)
		}
		l.h.done(w, request{block: b}, call, value)
		return
	}
}

func (l *load) write(w, b int) {
	value := l.values.Add(1)
	data := make([]byte, block)
	stamp(data, b, value)
	s := l.current(nil)
	r := request{block: b, write: true, value: value}
	call := l.h.now()
	a := s.do(cmdWrite, uint64(b)*stride, block, data)
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
