// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/stripe/core"
	"braid/transport"
	"braid/transport/bio"
)

// maxConnsPerDevice is how many connections a device's server can tell apart.
const maxConnsPerDevice = 4

// How long the parts of a Detach may take when the cluster does not answer.
const (
	closePatience  = 3 * time.Second
	detachPatience = 2 * time.Second
)

// Attach takes the volume's session and returns when requests may be submitted.
// It does not wait for servers: requests do.
func Attach(ctx context.Context, cfg Config) (*Volume, error) {
	if cfg.ConnsPerDevice == 0 {
		cfg.ConnsPerDevice = 1
	}
	if cfg.ConnsPerDevice < 0 || cfg.ConnsPerDevice > maxConnsPerDevice {
		return nil, fmt.Errorf("attach: %d connections per device: want 1 to %d",
			cfg.ConnsPerDevice, maxConnsPerDevice)
	}
	v := &Volume{cfg: cfg, loop: cfg.Loop, client: hex.EncodeToString(cfg.ClientID[:]),
		peers: map[peerKey]*peer{}, reports: map[cluster.DeviceID]bool{}, adopting: true,
		soon: make(chan struct{}, 1), scratch: make([]byte, transport.MaxPayload)}
	v.dialer.Counters = cfg.Counters
	v.isLocal = localDevices(cfg.Host)
	session, err := cfg.Mdm.Attach(ctx, client.AttachRequest{Volume: cfg.Volume, ID: cfg.ID,
		Client: v.client, Host: cfg.Host, Force: cfg.Force, GuestAlive: cfg.GuestAlive,
		Continues: cfg.Continues, ReadOnly: cfg.ReadOnly})
	if err != nil {
		return nil, err
	}
	v.volume, v.gen, v.lease = session.Volume, session.Generation, session.Lease
	if v.lease <= 0 {
		v.lease = 15 * time.Second
	}
	if err := v.begin(session); err != nil {
		err = fmt.Errorf("attach volume %s: %w", v.volume.Name, err)
		return nil, errors.Join(err, v.giveBack(ctx))
	}
	return v, nil
}

func (v *Volume) begin(s *client.Session) error {
	m := s.Map
	c, err := core.New(core.Config{Volume: v.volume, Generation: v.gen, ReadOnly: v.cfg.ReadOnly,
		FailFull: v.cfg.FailFull,
		Before: core.Before{GuestAlive: v.cfg.GuestAlive, Source: s.Before.Source,
			Fence: s.Before.Fence, Wait: s.Before.Wait}})
	if err != nil {
		return err
	}
	v.core = c
	v.msgs = make([]message, c.Frames())
	for i := range v.msgs {
		m := &v.msgs[i]
		m.v, m.frame, m.Sent = v, int32(i), m
	}
	v.timer.Fire = v.fire
	v.ctx, v.cancel = context.WithCancel(context.Background())
	err = errors.New("the event loop has ended")
	v.loop.Call(func() {
		if err = c.SetMap(v.loop.Now(), m, v.isLocal); err == nil {
			v.current = m
			v.drain()
			v.connect()
		}
	})
	if err != nil {
		v.cancel()
		return err
	}
	v.work.Go(v.watch)
	v.work.Go(v.renew)
	return nil
}

// giveBack ends the session, which nobody uses.
func (v *Volume) giveBack(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), detachPatience)
	defer cancel()
	return v.cfg.Mdm.Detach(ctx, client.Held{Volume: v.volume.ID, Name: v.volume.Name, Client: v.client,
		Generation: v.gen})
}

// localDevices tells devices of this host by their address.
func localDevices(host string) func(*cluster.Device) bool {
	own := map[string]bool{"localhost": true, host: host != ""}
	if addrs, err := net.InterfaceAddrs(); err == nil { // else: no device is local
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok {
				own[n.IP.String()] = true
			}
		}
	}
	return func(d *cluster.Device) bool {
		h, _, err := net.SplitHostPort(d.Addr)
		return err == nil && own[h]
	}
}

// Detach flushes, ends the session and closes everything. When ctx ends it
// abandons what waits, which fails with bio.ErrShutdown, and returns within a
// few seconds all the same. The error says what was not flushed. Calling it
// again returns the same.
func (v *Volume) Detach(ctx context.Context) error {
	v.once.Do(func() { v.result = v.detach(ctx) })
	return v.result
}

func (v *Volume) detach(ctx context.Context) error {
	err := v.settle(ctx)
	quiet := make(chan struct{})
	v.loop.Call(func() {
		v.ended = true
		v.core.Abort(v.loop.Now(), bio.ErrShutdown)
		v.drain()
		v.loop.Disarm(&v.timer)
		v.quiet = quiet
		v.closePeers()
	})
	v.cancel()
	patience := time.NewTimer(closePatience)
	defer patience.Stop()
	select {
	case <-quiet:
	case <-v.loop.Done():
	case <-patience.C:
		err = errors.Join(err, fmt.Errorf("detach volume %s: connections did not close in time",
			v.volume.Name))
	}
	v.work.Wait()
	if e := v.giveBack(ctx); e != nil {
		err = errors.Join(err, fmt.Errorf("%w; the session ends by itself in %s", e, v.lease))
	}
	return err
}

// settle waits until all requests have ended, and flushes. What waits for room is given
// up: that may never come.
func (v *Volume) settle(ctx context.Context) error {
	idle := make(chan struct{})
	var lost error
	v.loop.Call(func() {
		v.closing = true
		lost = v.core.Err()
		v.core.EndRoom(v.loop.Now(), bio.ErrShutdown)
		v.idle = idle
		v.drain()
	})
	if lost != nil {
		return fmt.Errorf("detach volume %s: it was lost before: %w", v.volume.Name, lost)
	}
	select {
	case <-idle:
	case <-v.loop.Done():
		return fmt.Errorf("detach volume %s: its event loop has ended", v.volume.Name)
	case <-ctx.Done():
		var n uint64
		v.loop.Call(func() { n, v.idle = v.core.Stats().Inflight, nil })
		return fmt.Errorf("detach volume %s: %d requests were abandoned: %w", v.volume.Name, n, ctx.Err())
	}
	flush := &ended{done: make(chan struct{})}
	flush.request = bio.Request{Op: bio.Flush, Done: flush}
	v.loop.Call(func() {
		v.core.Submit(v.loop.Now(), &flush.request)
		v.drain()
	})
	select {
	case <-flush.done:
	case <-v.loop.Done():
		return fmt.Errorf("detach volume %s: its event loop has ended", v.volume.Name)
	case <-ctx.Done():
		return fmt.Errorf("detach volume %s: the last flush got no answer: %w", v.volume.Name, ctx.Err())
	}
	if err := flush.request.Err; err != nil {
		return fmt.Errorf("detach volume %s: the last flush failed: %w", v.volume.Name, err)
	}
	return nil
}

// ended is a request that a goroutine waits for.
type ended struct {
	request bio.Request
	done    chan struct{}
}

// RequestDone is part of bio.Completer.
func (e *ended) RequestDone(*bio.Request) { close(e.done) }
