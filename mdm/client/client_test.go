// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"connectrpc.com/connect"
	"go.uber.org/goleak"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
)

// fakeMember answers as the test says.
type fakeMember struct {
	pbconnect.UnimplementedMdmHandler
	addr   string
	server *http.Server

	mu     sync.Mutex
	calls  []string // what was asked, by request identity or name
	create func(n int, r *pb.CreateVolumeRequest) error
	remove func(n int) error
	watch  func(n int, have uint64, send func(*pb.MapDelta) error) error
	watchN int
}

func newFake(t *testing.T) *fakeMember {
	f := &fakeMember{}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f.addr = l.Addr().String()
	mux := http.NewServeMux()
	mux.Handle(pbconnect.NewMdmHandler(f))
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	f.server = &http.Server{Handler: mux, Protocols: protocols}
	done := make(chan struct{})
	go func() {
		defer close(done)
		f.server.Serve(l)
	}()
	t.Cleanup(func() {
		f.server.Close()
		<-done
	})
	return f
}

func (f *fakeMember) called(what string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, what)
	return len(f.calls)
}

func (f *fakeMember) CreateVolume(_ context.Context, r *connect.Request[pb.CreateVolumeRequest],
) (*connect.Response[pb.VolumeResponse], error) {
	if err := f.create(f.called(r.Msg.Request), r.Msg); err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.VolumeResponse{Volume: &pb.Volume{Name: r.Msg.Name}}), nil
}

func (f *fakeMember) DeleteVolume(_ context.Context, r *connect.Request[pb.DeleteVolumeRequest],
) (*connect.Response[pb.DeleteVolumeResponse], error) {
	return connect.NewResponse(&pb.DeleteVolumeResponse{}), f.remove(f.called(r.Msg.Name))
}

func (f *fakeMember) WatchMap(_ context.Context, r *connect.Request[pb.WatchMapRequest],
	stream *connect.ServerStream[pb.MapDelta]) error {
	f.mu.Lock()
	f.watchN++
	n := f.watchN
	f.mu.Unlock()
	return f.watch(n, r.Msg.HaveVersion, stream.Send)
}

func dial(t *testing.T, patience time.Duration, addrs ...string) *Client {
	c, err := New(addrs, Options{Patience: patience})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func notLeading(leader string) error {
	err := connect.NewError(connect.CodeUnavailable, errors.New("this member does not lead"))
	err.Meta().Set(LeaderKey, leader)
	return err
}

// Goal: a call goes where the members say that the leader is, also to one that
// the client was not told of, and stays there.
func TestCallsFindTheLeader(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	follower, leader := newFake(t), newFake(t)
	follower.create = func(int, *pb.CreateVolumeRequest) error { return notLeading(leader.addr) }
	leader.create = func(int, *pb.CreateVolumeRequest) error { return nil }
	c := dial(t, 10*time.Second, "127.0.0.1:1", follower.addr)
	for range 3 {
		if _, err := c.CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: "v"}); err != nil {
			t.Fatal(err)
		}
	}
	if len(follower.calls) != 1 || len(leader.calls) != 3 {
		t.Errorf("%d calls to the follower, %d to the leader", len(follower.calls), len(leader.calls))
	}
}

// Goal: a call whose answer was lost is repeated as the same wish, and one that
// may have been done already is not "not found".
func TestLostAnswers(t *testing.T) {
	f := newFake(t)
	lost := connect.NewError(connect.CodeAborted, errors.New("etcd is slow"))
	f.create = func(n int, _ *pb.CreateVolumeRequest) error {
		if n < 3 {
			return lost
		}
		return nil
	}
	c := dial(t, 10*time.Second, f.addr)
	if _, err := c.CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: "v"}); err != nil {
		t.Fatal(err)
	}
	if len(f.calls) != 3 || len(slices.Compact(f.calls)) != 1 || f.calls[0] == "" {
		t.Errorf("the calls were %q", f.calls)
	}
	f.calls = nil
	gone := connect.NewError(connect.CodeNotFound, errors.New("delete volume v: there is none"))
	f.remove = func(n int) error {
		if n == 1 {
			return lost
		}
		return gone
	}
	if err := c.DeleteVolume(t.Context(), "v", false); err != nil {
		t.Errorf("deleted by the first try, which lost its answer: %v", err)
	}
	f.remove = func(int) error { return gone }
	if err := c.DeleteVolume(t.Context(), "v", false); !errors.Is(err, ErrNotFound) ||
		err.Error() != "delete volume v: there is none" {
		t.Errorf("%v", err)
	}
}

// Goal: answers are not retried, patience ends, and so does the caller's.
func TestCallsEnd(t *testing.T) {
	f := newFake(t)
	f.create = func(int, *pb.CreateVolumeRequest) error {
		return connect.NewError(connect.CodeFailedPrecondition, errors.New("no"))
	}
	c := dial(t, 300*time.Millisecond, f.addr)
	_, err := c.CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: "v"})
	if !errors.Is(err, ErrRefused) || err.Error() != "create volume v: no" || len(f.calls) != 1 {
		t.Errorf("%v after %d calls", err, len(f.calls))
	}
	f.create = func(int, *pb.CreateVolumeRequest) error { return notLeading("") }
	_, err = c.CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: "v"})
	if !errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "does not lead") {
		t.Errorf("%v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err = dial(t, time.Hour, f.addr).CreateVolume(ctx, &pb.CreateVolumeRequest{Name: "v"})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
}

// Goal: a watch survives broken streams, asks for what it misses, and for
// everything when a delta does not fit.
func TestWatchSurvives(t *testing.T) {
	f := newFake(t)
	var asked []uint64
	f.watch = func(n int, have uint64, send func(*pb.MapDelta) error) error {
		asked = append(asked, have)
		volume := []*pb.Volume{{Id: uint64(n)}}
		switch n {
		case 1:
			return send(&pb.MapDelta{Version: 5, Volumes: volume})
		case 2:
			return errors.Join(send(&pb.MapDelta{From: 5, Version: 7, Volumes: volume}),
				connect.NewError(connect.CodeUnavailable, errors.New("going down")))
		case 3: // from another history
			return send(&pb.MapDelta{From: 6, Version: 8, Volumes: volume})
		case 4:
			return send(&pb.MapDelta{Version: 3, Volumes: volume})
		}
		return connect.NewError(connect.CodeInvalidArgument, errors.New("enough"))
	}
	var versions []uint64
	var last *cluster.Map
	err := dial(t, time.Second, f.addr).WatchMap(t.Context(), nil, func(m *cluster.Map) {
		versions = append(versions, m.Version)
		last = m
	})
	if !errors.Is(err, ErrInvalid) || !slices.Equal(versions, []uint64{5, 7, 3}) ||
		!slices.Equal(asked, []uint64{0, 5, 7, 0, 3}) || len(last.Volumes) != 1 {
		t.Errorf("%v; delivered versions %v, asked from %v", err, versions, asked)
	}
}

func TestAddresses(t *testing.T) {
	c := dial(t, time.Second, "a:1, http://b:2/", "a:1,c:3")
	if !slices.Equal(c.Addrs(), []string{"a:1", "b:2", "c:3"}) {
		t.Errorf("addresses %q", c.Addrs())
	}
}
