// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"braid/cluster"
	"braid/transport"
)

// Dial pauses: they double from first to most, with jitter, so that a server
// that comes back is not met by all its clients at once.
const (
	firstPause = 50 * time.Millisecond
	mostPause  = time.Second
)

// peerKey names one of the connections that the volume keeps to a device.
type peerKey struct {
	dev    cluster.DeviceID
	number int
}

// peer is such a connection, through all its lives:
//
//	idle --dial--> dialling --Hello--> opening --OpOpen's reply--> up
//	 ^                |                   |                         |
//	 +----pause-------+-------------------+------- Closed ----------+
type peer struct {
	v       *Volume
	key     peerKey
	state   peerState
	conn    *transport.Conn
	link    int32
	pause   time.Duration
	lastErr error // why it is not up
	// nextDial is when the next attempt begins; for people.
	nextDial time.Time
	wanted   bool

	open    transport.Msg
	openBuf [transport.OpenRequestSize]byte
	openDst [1][]byte
	views   [1][]byte // of a payload that nobody wants
	text    [256]byte // of an error
}

type peerState uint8

const (
	peerIdle peerState = iota
	peerDialling
	peerOpening
	peerUp
)

// openID is the request id of OpOpen: no frame of the core has it.
const openID = ^uint64(0)

// connect dials what is wanted and not there, and drops what is not wanted.
func (v *Volume) connect() {
	if v.ended {
		return
	}
	for _, p := range v.peers {
		p.wanted = false
	}
	v.core.Wanted(func(id cluster.DeviceID, broken bool) {
		for n := range v.cfg.ConnsPerDevice {
			key := peerKey{id, n}
			p := v.peers[key]
			if p == nil {
				p = &peer{v: v, key: key, link: -1, pause: firstPause}
				v.peers[key] = p
			}
			p.wanted = !broken
			if p.wanted && p.state == peerIdle {
				p.dial(0)
			}
		}
	})
	for _, p := range v.peers {
		if !p.wanted && p.conn != nil {
			p.close("the device is not needed any more")
		}
	}
}

// dial starts a goroutine that waits, connects once, and reports to the loop.
func (p *peer) dial(after time.Duration) {
	v := p.v
	dev := v.current.Devices[p.key.dev]
	if dev == nil || v.ended {
		p.state = peerIdle
		p.lastErr = errors.New("the map does not know the device")
		return
	}
	p.state, p.nextDial = peerDialling, time.Now().Add(after)
	addr := dev.Addr
	hello := transport.Hello{Cluster: v.current.Cluster, Device: dev.UUID, Client: v.cfg.ClientID,
		Role: transport.Client, Flags: uint8(p.key.number)}
	v.work.Go(func() {
		if !sleep(v.ctx, after) {
			return
		}
		_, _, err := v.dialer.Dial(v.ctx, v.loop, addr, hello, p.accept)
		if err != nil {
			v.loop.Post(func() { p.failed(err) })
		}
	})
}

func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// accept gives a connection that has said hello its handler, on the loop.
func (p *peer) accept(transport.HelloReply) transport.Handler {
	if p.v.ended || !p.wanted {
		return nil
	}
	return p
}

// failed plans the next try.
func (p *peer) failed(err error) {
	p.lastErr = err
	p.state = peerIdle
	if !p.wanted || p.v.ended {
		return
	}
	wait := p.pause + time.Duration(rand.Int64N(int64(p.pause)))
	p.pause = min(2*p.pause, mostPause)
	p.dial(wait / 2)
}

// Opened opens the session, before anything else is sent. It is part of
// transport.Opener.
func (p *peer) Opened(c *transport.Conn) {
	p.conn = c
	p.state = peerOpening
	p.v.quietChanged()
	// A read-only volume is opened for writing all the same: what an older session
	// left may have to be resolved.
	req := transport.OpenRequest{Volume: uint64(p.v.volume.ID), Generation: uint64(p.v.gen)}
	p.openDst[0] = req.Encode(p.openBuf[:])
	p.open.Header = transport.Header{Op: transport.OpOpen, ID: openID}
	p.open.Sums, p.open.Payload = nil, p.openDst[:]
	c.Send(&p.open)
}

// Incoming is part of transport.Handler.
func (p *peer) Incoming(c *transport.Conn, h *transport.Header) ([][]byte, bool) {
	if p.state == peerUp {
		dst, wanted, err := p.v.core.Incoming(p.link, h)
		if err != nil {
			c.Close(err)
		} else if wanted {
			return dst, true
		}
	}
	if h.Payload == 0 {
		return nil, true
	}
	if int(h.Payload) <= len(p.text) {
		p.views[0] = p.text[:h.Payload]
	} else {
		p.views[0] = p.v.scratch[:h.Payload]
	}
	return p.views[:], true
}

// Frame is part of transport.Handler.
func (p *peer) Frame(c *transport.Conn, h *transport.Header, sums []byte) {
	var text []byte
	if h.Status != transport.StatusOK && int(h.Payload) <= len(p.text) {
		text = p.text[:h.Payload]
	}
	switch p.state {
	case peerOpening:
		p.opened(c, h, text)
	case peerUp:
		if h.Flags&transport.FlagReply == 0 {
			p.v.core.Request(p.v.loop.Now(), p.link, h)
			p.v.drain()
			return
		}
		p.v.core.Reply(p.v.loop.Now(), p.link, h, sums, text)
		p.v.drain()
	}
}

// opened takes the answer to OpOpen.
func (p *peer) opened(c *transport.Conn, h *transport.Header, text []byte) {
	v := p.v
	if h.Op != transport.OpOpen || h.ID != openID || h.Flags&transport.FlagReply == 0 {
		c.Close(fmt.Errorf("open a session: the server answers with op %d", h.Op))
		return
	}
	switch h.Status {
	case transport.StatusOK:
	case transport.StatusFenced:
		v.core.Fenced(v.loop.Now(), string(text))
		v.drain()
		c.Close(errors.New("open a session: fenced"))
		return
	default:
		c.Close(fmt.Errorf("open a session: %s", openStatus(h.Status, text)))
		return
	}
	l := v.core.LinkUp(v.loop.Now(), p.key.dev, h.Session, cluster.Incarnation(h.Interval))
	if l < 0 {
		v.drain()
		c.Close(errors.New("the device's copies are not in sync any more"))
		v.connect() // that it was opened may be all that was wanted
		return
	}
	for int(l) >= len(v.links) {
		v.links = append(v.links, nil)
	}
	v.links[l] = p
	p.link, p.state, p.pause, p.lastErr = l, peerUp, firstPause, nil
	v.drain()
}

func openStatus(s transport.Status, text []byte) string {
	switch {
	case len(text) > 0:
		return string(text)
	case s == transport.StatusRetry:
		return "the server is not ready (it waits for a map, or drains)"
	case s == transport.StatusRefused:
		return "refused by the server"
	case s == transport.StatusIO:
		return "the device has failed"
	}
	return fmt.Sprintf("status %d", s)
}

// Closed is part of transport.Handler.
func (p *peer) Closed(_ *transport.Conn, err error) {
	v := p.v
	// Requests that came in this turn may be about to be sent here. They are let go
	// like all that was sent, and LinkClosed sends them elsewhere.
	v.drain()
	up := p.state == peerUp
	l := p.link
	p.conn, p.link = nil, -1
	if up {
		v.links[l] = nil
	}
	p.failed(err)
	if up {
		v.core.LinkClosed(v.loop.Now(), l)
	}
	v.drain()
	v.quietChanged()
}

func (p *peer) close(why string) {
	if p.conn != nil {
		p.conn.Close(errors.New(why))
	}
}

func (v *Volume) closePeers() {
	for _, p := range v.peers {
		p.close("the volume is detached")
	}
	v.quietChanged()
}

// quietChanged tells Detach when the last connection has gone.
func (v *Volume) quietChanged() {
	if v.quiet == nil {
		return
	}
	for _, p := range v.peers {
		if p.conn != nil {
			return
		}
	}
	close(v.quiet)
	v.quiet = nil
}
