// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"io"

	"connectrpc.com/connect"

	"braid/cluster"
	"braid/mdm/pb"
)

// WatchMap follows the cluster's map and calls deliver with each new one, on
// the caller's goroutine, until ctx ends or mdm refuses the request for good;
// it returns why. volumes limits the map to those volumes and the groups that
// hold them; none means everything, as a server needs it. Members that go away
// are survived: the last map stays valid meanwhile.
func (c *Client) WatchMap(ctx context.Context, volumes []cluster.VolumeID,
	deliver func(*cluster.Map)) error {
	w := mapWatch{current: cluster.NewMap(), deliver: deliver}
	for _, id := range volumes {
		w.volumes = append(w.volumes, uint64(id))
	}
	backOff := firstBackOff
	for try := 0; ; try++ {
		// Any member serves watches. The first try goes to whoever is known to
		// answer, later ones to one address after the other.
		addr := c.addrs[try%len(c.addrs)]
		if try == 0 {
			addr = c.candidate(0)
		}
		progress, err := w.follow(ctx, c, addr)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if answered(err) {
			return &OpError{Op: "watch the map", Kind: kindOf(err), Err: err}
		}
		if progress {
			backOff = firstBackOff
		}
		if !pause(ctx, backOff) {
			return ctx.Err()
		}
		backOff = min(2*backOff, longestBackOff)
	}
}

type mapWatch struct {
	volumes []uint64
	current *cluster.Map
	deliver func(*cluster.Map)
	offered string // term of the leader that was told of current, see RestoredKey
}

// follow reads one stream until it breaks. progress says that a delta came.
func (w *mapWatch) follow(ctx context.Context, c *Client, addr string) (progress bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.member(addr).WatchMap(ctx, connect.NewRequest(&pb.WatchMapRequest{
		HaveVersion: w.current.Version, Volumes: w.volumes}))
	if err != nil {
		return false, err
	}
	defer stream.Close()
	for stream.Receive() {
		delta, err := pb.ToDelta(stream.Msg())
		if err != nil {
			return progress, err
		}
		next, err := w.current.Apply(delta)
		if err != nil {
			// Whatever went wrong, a whole map puts it right.
			w.current = cluster.NewMap()
			return progress, err
		}
		w.current, progress = next, true
		w.deliver(next)
	}
	if err := stream.Err(); err != nil {
		w.offer(ctx, c, addr, err)
		return progress, err
	}
	return progress, io.EOF
}

// Events calls deliver with each event after the one numbered after, oldest
// first, at most limit of those that are already there (0: all). With follow it
// goes on until ctx ends.
func (c *Client) Events(ctx context.Context, after uint64, limit uint32, follow bool,
	deliver func(*pb.Event)) error {
	backOff := firstBackOff
	for try := 0; ; try++ {
		addr := c.candidate(try)
		last, err := c.events(ctx, addr, &pb.EventsRequest{After: after, Limit: limit, Follow: follow}, deliver)
		switch {
		case ctx.Err() != nil:
			return ctx.Err()
		case err == nil && !follow:
			return nil
		case err != nil && answered(err):
			return &OpError{Op: "read events", Kind: kindOf(err), Err: err}
		}
		if last > after {
			after, limit, backOff = last, 0, firstBackOff
		}
		c.setLeader("")
		if !follow && try >= 2*len(c.addrs) {
			return c.unreachable("read events", err, false)
		}
		if !pause(ctx, backOff) {
			return ctx.Err()
		}
		backOff = min(2*backOff, longestBackOff)
	}
}

func (c *Client) events(ctx context.Context, addr string, r *pb.EventsRequest,
	deliver func(*pb.Event)) (last uint64, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stream, err := c.member(addr).Events(ctx, connect.NewRequest(r))
	if err != nil {
		return 0, err
	}
	defer stream.Close()
	for stream.Receive() {
		last = stream.Msg().Seq
		deliver(stream.Msg())
	}
	if err := stream.Err(); err != nil && !errors.Is(err, io.EOF) {
		return last, err
	}
	return last, nil
}
