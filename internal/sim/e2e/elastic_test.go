// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"braid/mdm/pb"
	"braid/stripe"
	"braid/transport/bio"
)

// load writes and reads ranges of its own until it is stopped, and knows what
// each byte has to be.
type load struct {
	c     *Cluster
	v     *stripe.Volume
	span  int
	model [][]byte
	stop  chan struct{}
	group sync.WaitGroup
}

func startLoad(c *Cluster, v *stripe.Volume, workers, span int) *load {
	l := &load{c: c, v: v, span: span, stop: make(chan struct{})}
	for range workers {
		l.model = append(l.model, make([]byte, span))
	}
	for w := range workers {
		l.group.Go(func() { l.work(w) })
	}
	c.T.Cleanup(l.end)
	return l
}

func (l *load) work(w int) {
	rng := rand.New(rand.NewPCG(uint64(w), 17))
	for round := uint64(0); ; round++ {
		select {
		case <-l.stop:
			return
		default:
		}
		length := 1 + rng.IntN(200_000)
		off := rng.IntN(l.span - length)
		data := random(length, round*31+uint64(w))
		copy(l.model[w][off:], data)
		at := uint64(w*l.span + off)
		write := Begin(l.v, bio.Request{Op: bio.Write, Off: at, Len: uint64(length), Data: data})
		back := make([]byte, length)
		read := Begin(l.v, bio.Request{Op: bio.Read, Off: at, Len: uint64(length), Data: back})
		calls := []*Call{write, read}
		if round%8 == 0 {
			calls = append(calls, Begin(l.v, bio.Request{Op: bio.Flush}))
		}
		for _, call := range calls {
			if err := call.Wait(Patience); err != nil {
				l.c.T.Errorf("worker %d, round %d: %v; waiting: %+v", w, round, err, l.v.Waiting())
				return
			}
		}
		if !bytes.Equal(back, l.model[w][off:off+length]) {
			l.c.T.Errorf("worker %d, round %d: wrong bytes at %d", w, round, at)
			return
		}
	}
}

func (l *load) end() {
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.group.Wait()
}

// check ends the load and compares every byte.
func (l *load) check() {
	l.c.T.Helper()
	l.end()
	for w, model := range l.model {
		for off := 0; off < l.span; off += 1 << 20 {
			if got := Read(l.c.T, l.v, uint64(w*l.span+off), 1<<20); !bytes.Equal(got, model[off:off+1<<20]) {
				l.c.T.Fatalf("worker %d: other bytes at %d", w, off)
			}
		}
	}
}

// balanced waits until nothing moves and no group lacks copies, and returns how
// many bytes each device uses.
func (c *Cluster) balanced(what string) map[uint32]uint64 {
	c.T.Helper()
	used := map[uint32]uint64{}
	c.awaitMoves("all is in place: "+what, func(m *pb.MovesResponse, s *pb.StatusResponse) bool {
		return len(m.Leaving) == 0 && m.Refused == "" && s.PgsRebuilding == 0
	})
	ctx := context.Background()
	devices, err := c.Api.ListDevices(ctx)
	if err != nil {
		c.T.Fatal(err)
	}
	for _, d := range devices {
		used[d.Id] = d.Used
	}
	return used
}

// awaitMoves waits until nothing moves, no group lacks copies, and more.
func (c *Cluster) awaitMoves(what string, more func(*pb.MovesResponse, *pb.StatusResponse) bool) {
	c.T.Helper()
	last := ""
	defer func() {
		if c.T.Failed() {
			c.T.Logf("%s: %s", what, last)
		}
	}()
	Eventually(c.T, what, func() bool {
		m, err := c.Api.Moves(context.Background())
		s, failed := c.Api.Status(context.Background())
		last = m.String() + "; " + s.String()
		return err == nil && failed == nil && m.Groups == 0 && s.PgsDegraded == 0 && more(m, s)
	})
}

// Goal: data follows membership under load without an error or a wrong byte:
// three servers become five, one is removed in order, one is lost for good. What
// a device gave away is free there.
func TestElastic(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{DiskSize: 512 << 20})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	l := startLoad(c, v, 3, 16<<20)
	c.balanced("at first")
	c.AddNode(1, 512<<20)
	c.AddNode(1, 512<<20)
	c.AwaitDevices(5)
	Eventually(t, "the new devices have copies", func() bool { // that they are to is planned by and by
		used := c.balanced("after two joined")
		return used[4] > 0 && used[5] > 0
	})
	if _, err := c.Api.Evacuate(t.Context(), &pb.EvacuateRequest{Server: "sds2"}); err != nil {
		t.Fatal(err)
	}
	if used := c.balanced("after one was removed"); len(used) != 4 {
		t.Errorf("devices %v are left", used)
	}
	c.Node[1].Stop()
	grace := uint64((2 * time.Second).Milliseconds())
	if _, err := c.Api.SetMoves(t.Context(), &pb.SetMovesRequest{GraceMs: &grace}); err != nil {
		t.Fatal(err)
	}
	c.Node[0].Kill(true)
	c.awaitMoves("the lost copies are made again", func(_ *pb.MovesResponse, s *pb.StatusResponse) bool {
		return s.DevicesUp == 3
	})
	l.check()
	Flush(t, v)
	total := uint64(0)
	Eventually(t, "what was moved away is free", func() bool {
		devices, err := c.Api.ListDevices(t.Context())
		total = 0
		for _, d := range devices {
			if d.Up {
				total += d.Used
			}
		}
		return err == nil && total == 2*48<<20
	})
	if err := Detach(v, Patience); err != nil {
		t.Error(err)
	}
}

// Goal: a server in protected maintenance is emptied before it is stopped: no group
// has fewer copies than it should at any time, under load; afterwards data is back.
// Without room for that on another server it is refused.
func TestProtectedMaintenance(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 32 << 20, Replicas: 2}))
	l := startLoad(c, v, 2, 8<<20)
	c.balanced("at first")
	whole := func() {
		if s := c.status(); s.PgsDegraded > 0 {
			t.Fatalf("%d groups lack copies: %v", s.PgsDegraded, s)
		}
	}
	protect := &pb.MaintainRequest{Server: "sds2", Enter: true, Protected: true}
	Eventually(t, "the server is empty", func() bool {
		left, err := c.Api.Maintain(t.Context(), protect)
		whole()
		return err == nil && left == 0
	})
	if _, err := c.Api.Maintain(t.Context(), &pb.MaintainRequest{Server: "sds1", Enter: true,
		Protected: true}); err == nil {
		t.Error("two copies may go to one server")
	}
	c.Node[1].Stop()
	Eventually(t, "mdm knows that it is down", func() bool { whole(); return c.status().DevicesUp == 2 })
	c.Node[1].Start()
	c.AwaitDevices(3)
	whole()
	if _, err := c.Api.Maintain(t.Context(), &pb.MaintainRequest{Server: "sds2"}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "data is back on it", func() bool { whole(); return c.balanced("at the end")[2] > 0 })
	l.check()
	if err := Detach(v, Patience); err != nil {
		t.Error(err)
	}
}
