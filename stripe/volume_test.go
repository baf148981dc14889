// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"bytes"
	"context"
	"errors"
	"runtime"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
	"braid/transport/loop"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// call is a request that a test waits for.
type call struct {
	bio.Request
	done chan struct{}
}

func (c *call) RequestDone(*bio.Request) { close(c.done) }

func (r *rig) begin(q bio.Request) *call {
	c := &call{Request: q, done: make(chan struct{})}
	c.Done = c
	r.loop.Post(func() { r.v.Submit(&c.Request) })
	return c
}

func (c *call) wait(t *testing.T) error {
	t.Helper()
	select {
	case <-c.done:
		return c.Err
	case <-time.After(patience):
		t.Fatalf("%s [%d,+%d) does not end", c.Op, c.Off, c.Len)
		return nil
	}
}

func (r *rig) do(t *testing.T, q bio.Request) {
	t.Helper()
	if err := r.begin(q).wait(t); err != nil {
		t.Fatalf("%s [%d,+%d): %v", q.Op, q.Off, q.Len, err)
	}
}

func (r *rig) write(t *testing.T, off uint64, data []byte) {
	t.Helper()
	r.do(t, bio.Request{Op: bio.Write, Off: off, Len: uint64(len(data)), Data: data})
}

func (r *rig) read(t *testing.T, off uint64, length int) []byte {
	t.Helper()
	data := make([]byte, length)
	r.do(t, bio.Request{Op: bio.Read, Off: off, Len: uint64(length), Data: data})
	return data
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("gave up waiting until %s", what)
		}
	}
}

func pattern(n int, seed byte) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>8)*31 + byte(i) + seed
	}
	return b
}

// Goal: bytes go to the servers and come back, aligned or not, small and large.
// Method: over real sockets; also that a server was asked at all.
func TestReadWrite(t *testing.T) {
	r := newRig(t, 3, 2)
	for _, c := range []struct {
		off uint64
		n   int
	}{{0, 4096}, {512, 512}, {1<<20 - 100, 300}, {3 << 20, 1 << 20}, {70001, 700_001}} {
		want := pattern(c.n, byte(c.off))
		r.write(t, c.off, want)
		if got := r.read(t, c.off, c.n); !bytes.Equal(got, want) {
			t.Errorf("[%d,+%d): wrong bytes", c.off, c.n)
		}
	}
	r.do(t, bio.Request{Op: bio.Flush})
	total := 0
	for _, s := range r.servers {
		total += s.count(transport.OpFlush)
	}
	if total != 3 {
		t.Errorf("%d flushes, want one for each server", total)
	}
}

// workload keeps a number of requests in flight on the loop until enough ended.
type workload struct {
	r        *rig
	requests []bio.Request
	left     int
	running  int
	done     chan struct{}
}

func (w *workload) RequestDone(q *bio.Request) {
	if q.Err != nil {
		panic(q.Err)
	}
	w.running--
	w.next(q)
}

func (w *workload) next(q *bio.Request) {
	if w.left == 0 {
		if w.running == 0 {
			close(w.done)
		}
		return
	}
	w.left--
	w.running++
	q.Off = (q.Off + 7*4096) % (16 << 20)
	w.r.v.Submit(q)
}

func (w *workload) run(n int) {
	w.left, w.done = n, make(chan struct{})
	w.r.loop.Call(func() {
		for i := range w.requests {
			w.next(&w.requests[i])
		}
	})
	<-w.done
}

// Goal: 4 KiB reads and writes allocate nothing in client, transport and loop.
// Method: count the process' allocations over many of them; the few that are
// allowed belong to timers and to the garbage collector's own goroutines.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	// Renewals of the session do allocate: none for the time of the test.
	r := newRigWith(t, 3, 2, func(m *fakeMdm) { m.lease = time.Hour })
	for _, op := range []bio.Op{bio.Write, bio.Read} {
		w := &workload{r: r, requests: make([]bio.Request, 16)}
		for i := range w.requests {
			w.requests[i] = bio.Request{Op: op, Off: uint64(i) << 16, Len: 4096,
				Data: make([]byte, 4096), Done: w}
		}
		w.run(20_000) // every chunk of the fake servers exists then
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		const n = 20_000
		w.run(n)
		runtime.ReadMemStats(&after)
		if got := after.Mallocs - before.Mallocs; got > n/20 {
			t.Errorf("%s: %d allocations in %d requests", op, got, n)
		}
	}
}

// Goal: what a server damages on the way is read again from the other copy.
// Method: one wrong byte.
func TestSpoiltReadIsReadAgain(t *testing.T) {
	r := newRig(t, 2, 2)
	want := pattern(64<<10, 1)
	r.write(t, 0, want)
	for _, s := range r.servers {
		s.set(func(k *knobs) { k.spoilOnce = true })
		if got := r.read(t, 0, len(want)); !bytes.Equal(got, want) {
			t.Fatal("wrong bytes")
		}
	}
	if s := r.v.Stats(); s.BadSums == 0 {
		t.Error("no damage was noticed")
	}
}

// Goal: broken connections cost time, not requests. Method: kick the client out
// again and again under load.
func TestConnectionsBreak(t *testing.T) {
	r := newRig(t, 3, 2)
	w := &workload{r: r, requests: make([]bio.Request, 8)}
	for i := range w.requests {
		op := []bio.Op{bio.Write, bio.Read}[i%2]
		w.requests[i] = bio.Request{Op: op, Off: uint64(i) << 20, Len: 100_000, Data: make([]byte, 100_000), Done: w}
	}
	stop := make(chan struct{})
	kicked := make(chan struct{})
	go func() {
		defer close(kicked)
		for i := 0; ; i++ {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
				r.servers[i%3].kick()
			}
		}
	}()
	w.run(1500)
	close(stop)
	<-kicked
	if s := r.v.Stats(); s.Retries == 0 {
		t.Error("nothing was sent again")
	}
}

// knock submits a request from the completion of an operation, as the NBD server does.
type knock struct {
	op   loop.Op
	v    *Volume
	call call
}

func (k *knock) OpDone(*loop.Op, int) { k.v.Submit(&k.call.Request) }

func (k *knock) RequestDone(*bio.Request) { close(k.call.done) }

// Goal: requests that come in one turn of the loop with the end of a connection, before
// it, are sent again on the next one. Method: a byte on a socket pair, whose receipt
// submits a write, and all connections shut down behind it.
func TestConnectionsBreakBehindASubmit(t *testing.T) {
	r := newRig(t, 2, 2)
	r.write(t, 0, pattern(4096, 1))
	for range 20 {
		pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		k := &knock{v: r.v, call: call{done: make(chan struct{})}}
		k.call.Request = bio.Request{Op: bio.Write, Len: 4096, Data: make([]byte, 4096), Done: k}
		k.op = loop.Op{Kind: loop.Recv, FD: pair[0], Buf: make([]byte, 1), Done: k}
		r.loop.Call(func() { r.loop.Submit(&k.op) })
		r.loop.Call(func() {
			_, _ = unix.Write(pair[1], []byte{1})
			for _, p := range r.v.peers {
				p.close("the test cuts it")
			}
		})
		if err := k.call.wait(t); err != nil {
			t.Errorf("write: %v", err)
		}
		_, _ = unix.Close(pair[0]), unix.Close(pair[1])
		r.write(t, 0, pattern(4096, 2)) // all is connected again
	}
}

// Goal: a server that refuses, or says nothing, is named with its own words.
// Method: refuse the Hello; then hold all answers.
func TestWaitingTellsWhy(t *testing.T) {
	r := newRig(t, 2, 2)
	r.write(t, 0, pattern(4096, 1))
	r.servers[1].set(func(k *knobs) { k.refuse = "the disk is on holiday" })
	r.servers[1].kick()
	w := r.begin(bio.Request{Op: bio.Write, Len: 4096, Data: pattern(4096, 2)})
	eventually(t, "the reason is told", func() bool {
		for _, l := range r.v.Waiting() {
			if l.Server == "fake2" && l.Requests == 1 && strings.Contains(l.Why, "the disk is on holiday") {
				return true
			}
		}
		return false
	})
	r.servers[1].set(func(k *knobs) { k.refuse = "" })
	if err := w.wait(t); err != nil {
		t.Fatal(err)
	}
	r.servers[0].set(func(k *knobs) { k.hold = true })
	w = r.begin(bio.Request{Op: bio.Write, Len: 4096, Data: pattern(4096, 2)})
	eventually(t, "the silent one is told", func() bool {
		for _, l := range r.v.Waiting() {
			if l.Server == "fake1" && strings.Contains(l.Why, "no answer yet") {
				return true
			}
		}
		return false
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Millisecond)
	defer cancel()
	if err := r.v.Detach(ctx); err == nil || !strings.Contains(err.Error(), "1 requests were abandoned") {
		t.Errorf("detach says %v", err)
	}
	if err := w.wait(t); !errors.Is(err, bio.ErrShutdown) {
		t.Errorf("the abandoned write ends with %v", err)
	}
	late := r.begin(bio.Request{Op: bio.Read, Len: 4096, Data: make([]byte, 4096)})
	if err := late.wait(t); !errors.Is(err, bio.ErrShutdown) {
		t.Errorf("a request after the detach ends with %v", err)
	}
}

// Goal: a map that cannot be taken is told with the reason, I/O goes on by the last one,
// and a later one that can ends it.
func TestRefusedMapIsTold(t *testing.T) {
	r := newRig(t, 2, 2)
	publish := func(edit func(*cluster.Map)) {
		r.mdm.mu.Lock()
		defer r.mdm.mu.Unlock()
		next := *r.mdm.current
		next.Version++
		edit(&next)
		r.mdm.publish(&next)
	}
	sets := r.mdm.current.Sets
	publish(func(m *cluster.Map) { m.Sets = nil })
	eventually(t, "the refusal is told", func() bool {
		return strings.Contains(r.v.Snapshot().Refused, "lacks volume vol or its placement groups")
	})
	r.write(t, 0, pattern(4096, 1))
	publish(func(m *cluster.Map) { m.Sets = sets })
	eventually(t, "the next map is taken", func() bool {
		s := r.v.Snapshot()
		return s.Refused == "" && s.MapVersion == 3
	})
}

// Goal: being fenced is told once, with the reason, and ends all I/O. Method: a
// server fences at OpOpen; and the metadata manager ends the session.
func TestLosingTheVolume(t *testing.T) {
	for name, lose := range map[string]func(*rig){
		"by a server": func(r *rig) {
			r.servers[0].set(func(k *knobs) { k.open = transport.StatusFenced })
			r.servers[0].kick()
		},
		"by the manager": func(r *rig) {
			r.mdm.mu.Lock()
			defer r.mdm.mu.Unlock()
			r.mdm.lost = true
		},
	} {
		r := newRig(t, 2, 2)
		r.write(t, 0, pattern(4096, 1))
		lose(r)
		select {
		case err := <-r.lost:
			if !strings.Contains(err.Error(), "attached elsewhere") {
				t.Errorf("%s: the reason is %v", name, err)
			}
		case <-time.After(patience):
			t.Fatalf("%s: nobody was told", name)
		}
		w := r.begin(bio.Request{Op: bio.Write, Len: 4096, Data: pattern(4096, 2)})
		if err := w.wait(t); !errors.Is(err, bio.ErrShutdown) {
			t.Errorf("%s: a write ends with %v", name, err)
		}
	}
}

// Goal: a device that lost acked writes is reported, and I/O goes on without it
// once the map says so (rules 5 and 16). Method: a new incarnation.
func TestBrokenCopyIsDropped(t *testing.T) {
	r := newRig(t, 2, 2)
	want := pattern(1<<20, 1)
	r.write(t, 0, want)
	s := r.servers[1]
	s.loop.Call(func() {
		clear(s.chunks)
		s.knobs.inc++
	})
	s.kick()
	r.do(t, bio.Request{Op: bio.Flush})
	if got := r.read(t, 0, len(want)); !bytes.Equal(got, want) {
		t.Error("wrong bytes from the copy that stayed")
	}
	r.write(t, 0, want)
	r.mdm.mu.Lock()
	defer r.mdm.mu.Unlock()
	if len(r.mdm.drops) != 1 || r.mdm.drops[0].Device != s.id || !strings.Contains(r.mdm.drops[0].Reason, "cache") {
		t.Errorf("reports: %+v", r.mdm.drops)
	}
}

// Goal: Detach flushes and gives the session back, once. Method: look at what
// servers and manager saw.
func TestDetachFlushes(t *testing.T) {
	r := newRig(t, 2, 2)
	r.write(t, 0, pattern(1<<20, 1))
	for range 2 {
		if err := r.v.Detach(context.Background()); err != nil {
			t.Fatal(err)
		}
	}
	for _, s := range r.servers {
		if n := s.count(transport.OpFlush); n != 1 {
			t.Errorf("%s saw %d flushes, want 1", s.name, n)
		}
	}
	r.mdm.mu.Lock()
	defer r.mdm.mu.Unlock()
	if got := strings.Join(r.mdm.calls, " "); got != "attach detach" {
		t.Errorf("the manager saw: %s", got)
	}
}
