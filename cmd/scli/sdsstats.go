// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"braid/cluster"
	"braid/mdm/pb"
	sds "braid/server"
	"braid/transport"
	"braid/transport/loop"
)

// askTime bounds a question to one device.
const askTime = 2 * time.Second

// asker asks devices for their counters, straight: neither mdm nor etcd is on the
// way. A connection is kept for each device between questions.
type asker struct {
	loop  *loop.Loop
	mu    sync.Mutex // guards lines
	lines map[uint32]*line
}

func newAsker() (*asker, error) {
	l, err := loop.New(loop.Options{Name: "scli", Engine: loop.Pool})
	if err != nil {
		return nil, fmt.Errorf("event loop: %w", err)
	}
	l.Start()
	return &asker{loop: l, lines: map[uint32]*line{}}, nil
}

func (a *asker) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	for id := range a.lines {
		a.hangUp(id)
	}
	_ = a.loop.Close()
}

// hangUp ends a connection. mu is held.
func (a *asker) hangUp(id uint32) {
	if l := a.lines[id]; l != nil {
		delete(a.lines, id)
		a.loop.Call(func() { l.conn.Close(nil) })
		<-l.ended
	}
}

// deviceAnswer is a device with what it said, or why it said nothing.
type deviceAnswer struct {
	Device *pb.Device
	Time   time.Time
	Stats  *sds.DeviceStats
	Err    error
}

// all asks every device at the same time.
func (a *asker) all(ctx context.Context, clusterID []byte, devices []*pb.Device) []deviceAnswer {
	out := make([]deviceAnswer, len(devices))
	var wait sync.WaitGroup
	for i, d := range devices {
		wait.Go(func() {
			ctx, cancel := context.WithTimeout(ctx, askTime)
			defer cancel()
			stats, err := a.ask(ctx, clusterID, d)
			out[i] = deviceAnswer{Device: d, Time: time.Now(), Stats: stats, Err: err}
		})
	}
	wait.Wait()
	return out
}

func (a *asker) ask(ctx context.Context, clusterID []byte, d *pb.Device) (*sds.DeviceStats, error) {
	l, err := a.line(ctx, clusterID, d)
	if err != nil {
		return nil, err
	}
	a.loop.Call(func() { l.conn.Send(&l.msg) })
	select {
	case b := <-l.answers:
		s := &sds.DeviceStats{}
		if err := json.Unmarshal(b, s); err != nil {
			return nil, fmt.Errorf("device %d: decode its counters: %w", d.Id, err)
		}
		return s, nil
	case err = <-l.ended:
		l.ended <- err
	case <-ctx.Done():
		err = ctx.Err()
	}
	a.mu.Lock()
	a.hangUp(d.Id)
	a.mu.Unlock()
	return nil, fmt.Errorf("device %d of %s at %s does not answer: %w", d.Id, d.Server, d.Addr, err)
}

// line returns the connection to a device, a new one if there is none.
func (a *asker) line(ctx context.Context, clusterID []byte, d *pb.Device) (*line, error) {
	a.mu.Lock()
	l := a.lines[d.Id]
	a.mu.Unlock()
	if l != nil {
		return l, nil
	}
	hello := transport.Hello{Role: transport.Client}
	if copy(hello.Cluster[:], clusterID) != len(cluster.UUID{}) ||
		copy(hello.Device[:], d.Uuid) != len(cluster.UUID{}) {
		return nil, fmt.Errorf("device %d: the metadata manager does not say its identity", d.Id)
	}
	l = &line{answers: make(chan []byte, 1), ended: make(chan error, 1)}
	l.msg.Header = transport.Header{Op: transport.OpStats}
	conn, _, err := transport.Dial(ctx, a.loop, d.Addr, hello,
		func(transport.HelloReply) transport.Handler { return l })
	if err != nil {
		return nil, err
	}
	l.conn = conn
	a.mu.Lock()
	a.lines[d.Id] = l
	a.mu.Unlock()
	return l, nil
}

// line is a connection to a device; one question at a time.
type line struct {
	conn    *transport.Conn
	msg     transport.Msg
	buf     []byte
	answers chan []byte
	ended   chan error
}

// Incoming makes room for an answer. It is part of transport.Handler.
func (l *line) Incoming(_ *transport.Conn, h *transport.Header) ([][]byte, bool) {
	if h.Payload == 0 {
		return nil, true
	}
	l.buf = make([]byte, h.Payload) // not more than transport.MaxPayload
	return [][]byte{l.buf}, true
}

// Frame takes an answer. It is part of transport.Handler.
func (l *line) Frame(c *transport.Conn, h *transport.Header, _ []byte) {
	if h.Op != transport.OpStats || h.Flags&transport.FlagReply == 0 || h.Status != transport.StatusOK {
		c.Close(errors.New("it does not tell its counters: an older version?"))
		return
	}
	select {
	case l.answers <- l.buf:
	default: // an answer that nobody has waited for
	}
}

// Closed is part of transport.Handler.
func (l *line) Closed(_ *transport.Conn, err error) { l.ended <- err }
