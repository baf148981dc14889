// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"braid/cluster"
	"braid/mdm/state"
	"braid/server/gate"
	"braid/stripe/core"
	"braid/transport"
	"braid/transport/bio"
)

// Client is one process that has one volume attached: what package stripe is in
// production, with the world's network in place of sockets.
type Client struct {
	w       *World
	vol     *Volume
	name    string
	host    string
	number  int // of the volume's clients
	attempt int
	force   bool
	alive   bool // attach with the guest alive

	gen     cluster.Generation
	core    *core.Core
	m       *cluster.Map
	peers   []*peer // by device, in order of first sight
	links   []*peer
	dead    bool // the process has died
	ended   bool // it serves no longer
	cutOff  bool // from the manager
	busy    bool
	armed   int64
	armings int
	skew    int64      // ns that its clock is ahead
	drift   int64      // and gains in 1000 s
	ghosts  []*request // a zombie's reads
	told    uint64     // map version reported as adopted
	telling bool
	mapHeld bool  // the map does not come, other answers of the manager do
	acks    []ack // not flushed yet, see answered
}

// peer is a client's connection to one device.
type peer struct {
	c       *Client
	dev     cluster.DeviceID
	conn    *Conn
	link    int32
	state   peerState
	wanted  bool
	pause   int64
	queue   []int32 // frames that the transport has not taken yet
	writing bool
	asked   map[uint64]asked
}

type peerState uint8

const (
	peerIdle peerState = iota
	peerDialling
	peerOpening
	peerUp
)

const openID = ^uint64(0)

func (c *Client) who() uint32  { return 1000 + uint32(c.vol.id)*100 + uint32(c.gen) }
func (c *Client) reach() bool  { return !c.cutOff }
func (c *Client) clock() int64 { return c.w.now + c.skew + c.w.now/s1*c.drift/1000 + s1 }

// later runs do if the process is still alive then.
func (c *Client) later(d int64, k kind, do func()) {
	c.w.after(d, k, c.who(), func() {
		if !c.dead {
			do()
		}
	})
}

// begin serves a volume that was attached.
func (c *Client) begin(a *attached) error {
	b := &a.before
	c.unreached()
	co, err := core.New(core.Config{Volume: a.volume, Generation: a.gen, Requests: 6, Frames: 24,
		HedgeAfter: 60 * time.Millisecond, FlushEvery: c.w.flushEvery(), Off: c.w.cfg.Off,
		FailFull: c.w.cfg.Faults.Full,
		Before:   core.Before{GuestAlive: c.alive, Fence: b.Fence, Wait: b.Wait, Source: sourceOf(b)}})
	if err != nil {
		return err
	}
	c.core, c.gen, c.m = co, a.gen, a.m
	if err := co.SetMap(c.clock(), a.m, nil); err != nil {
		return err
	}
	c.drain()
	c.connect()
	c.w.mdm.watch(&watcher{volumes: []cluster.VolumeID{c.vol.id}, alive: func() bool { return !c.dead && !c.ended },
		reach: c.reach, held: &c.mapHeld, adopt: c.learn})
	c.renewLater(sessionLease / 3)
	return nil
}

// sourceOf is rule 6's test: what mdm knows of the copies that an old session
// left.
func sourceOf(b *state.Before) func(cluster.PGID, cluster.DeviceID, cluster.Incarnation) bool {
	return func(pg cluster.PGID, dev cluster.DeviceID, inc cluster.Incarnation) bool {
		return !slices.Contains(b.Broken, state.BrokenCopy{PG: pg, Device: dev}) &&
			slices.Contains(b.Sources, state.Source{Device: dev, Incarnation: inc})
	}
}

// tell reports soon what has been adopted, when a target waits for that.
func (c *Client) tell() {
	if c.telling || c.ended || c.adopted() == c.told {
		return
	}
	c.telling = true
	c.later(c.w.between(ms, 50*ms), evRPC, func() {
		c.telling = false
		if !c.ended && c.adopted() != c.told {
			c.renew(func(error) {})
		}
	})
}

// learn adopts a map.
func (c *Client) learn(m *cluster.Map) {
	if c.ended || m.Version <= c.m.Version {
		return
	}
	if err := c.core.SetMap(c.clock(), m, nil); err != nil {
		return
	}
	c.m = m
	c.drain()
	c.connect()
}

// adopted is what the client reports to the manager (rule 23).
func (c *Client) adopted() uint64 { return c.core.Adopted() }

func (c *Client) renewLater(d int64) {
	c.later(d, evRPC, func() {
		if c.ended {
			return
		}
		c.renew(func(err error) {
			if err != nil {
				c.renewLater(s1 / 2)
				return
			}
			c.renewLater(sessionLease / 3)
		})
	})
}

// renew keeps the lease, and tells what was adopted.
func (c *Client) renew(then func(error)) {
	c.told = c.adopted()
	c.w.mdm.renewSession(c, func(err error) {
		if c.dead || c.ended {
			return
		}
		if errors.Is(err, errGone) {
			c.core.Fenced(c.clock(), "mdm")
			c.drain()
			return
		}
		if err != nil {
			c.told = 0
		}
		then(err)
	})
}

// submit hands a request of the guest to the core.
func (c *Client) submit(r *bio.Request) {
	c.core.Submit(c.clock(), r)
	c.drain()
}

// drain carries out the core's effects.
func (c *Client) drain() {
	if c.busy {
		return
	}
	c.busy = true
	for !c.dead {
		effects := c.core.Effects()
		if len(effects) == 0 {
			break
		}
		for i := range effects {
			e := effects[i]
			effects[i] = core.Effect{}
			c.do(&e)
		}
	}
	c.busy = false
	c.tell()
	if d := c.core.Deadline(); d != c.armed {
		c.arm(d)
	}
}

func (c *Client) arm(deadline int64) {
	c.armed = deadline
	c.armings++
	if deadline == 0 {
		return
	}
	n := c.armings
	c.later(deadline-c.clock(), evTick, func() {
		if n != c.armings {
			return
		}
		c.armed = 0
		c.core.Tick(c.clock())
		c.drain()
	})
}

func (c *Client) do(e *core.Effect) {
	switch e.Kind {
	case core.Send:
		p := c.links[e.Link]
		if p == nil || p.state != peerUp {
			c.w.failf("client %s sends on link %d, which is not up", c.name, e.Link)
			return
		}
		p.queue = append(p.queue, e.Frame)
		p.write()
	case core.Complete:
		c.vol.guest.completed(c, e.Request)
	case core.CloseLink:
		if p := c.links[e.Link]; p != nil {
			p.conn.close(sideClient)
		}
	case core.DropReplica:
		c.w.logf("client %s reports device %d: %s", c.name, e.Device, e.Text)
		c.w.mark("client reports a device")
		c.dropReplica(e.Device, e.Text)
	case core.Report:
		c.w.mark("client reports a device that it cannot reach")
		dev, sets, attaching := e.Device, e.FaultSets, e.Attaching
		c.w.mdm.call(c.who(), c.reach, func() error {
			return c.w.mdm.judge(c, dev, sets, attaching)
		}, func(error) {})
	case core.Room:
		if c.core.Stats().Roomless > 0 {
			c.w.mark(markRoom)
		}
	case core.Lost:
		c.w.logf("client %s is lost: %v", c.name, e.Err)
		c.ended = true
		c.vol.lost(c, e.Err)
	}
}

func (c *Client) dropReplica(dev cluster.DeviceID, why string) {
	c.w.mdm.dropReplica(c, dev, why, func(last []cluster.PGID, err error) {
		if c.dead || c.ended {
			return
		}
		if err != nil {
			c.later(s1/2, evRPC, func() {
				if !c.ended {
					c.dropReplica(dev, why)
				}
			})
			return
		}
		c.core.Dropped(c.clock(), dev, last)
		c.drain()
	})
}

// connect dials what is wanted and not there, and drops what is not wanted.
func (c *Client) connect() {
	if c.ended || c.dead {
		return
	}
	for _, p := range c.peers {
		p.wanted = false
	}
	c.core.Wanted(func(id cluster.DeviceID, broken bool) {
		p := c.peer(id)
		p.wanted = !broken
		if p.wanted && p.state == peerIdle {
			p.dial(0)
		}
	})
	for _, p := range c.peers {
		if !p.wanted && p.conn != nil {
			p.conn.close(sideClient)
		}
	}
}

func (c *Client) peer(id cluster.DeviceID) *peer {
	for _, p := range c.peers {
		if p.dev == id {
			return p
		}
	}
	p := &peer{c: c, dev: id, link: -1, pause: 10 * ms}
	c.peers = append(c.peers, p)
	return p
}

// dial tries once, after a pause.
func (p *peer) dial(after int64) {
	p.state = peerDialling
	p.c.later(after+p.c.w.between(latMin, latMax), evNet, func() {
		c, w := p.c, p.c.w
		p.state = peerIdle
		if c.ended || !p.wanted {
			return
		}
		n := w.nodeOf(p.dev)
		if n == nil || n.state != nodeUp || n.clean || w.isCut(c, n) {
			p.again()
			return
		}
		p.open(n)
	})
}

func (p *peer) again() {
	p.pause = min(2*p.pause, s1)
	p.dial(p.pause/2 + p.c.w.rng.Int64N(p.pause))
}

// open says hello and opens the session, before anything else is sent.
func (p *peer) open(n *Node) {
	c := p.c
	s := &serverConn{n: n}
	p.conn = c.w.connect(p, s)
	p.conn.node, p.conn.client = n, c
	s.c, s.id = p.conn, gate.ConnID(p.conn.id)
	n.conns = append(n.conns, s)
	p.state, p.asked = peerOpening, map[uint64]asked{}
	req := transport.OpenRequest{Volume: uint64(c.vol.id), Generation: uint64(c.gen)}
	payload := slices.Clone(req.Encode(make([]byte, transport.OpenRequestSize)))
	p.conn.send(sideClient, message{payload: payload,
		h: transport.Header{Op: transport.OpOpen, ID: openID, Payload: uint32(len(payload))}})
}

// write has the transport take frames, some at a time.
func (p *peer) write() {
	if p.writing {
		return
	}
	p.writing = true
	conn := p.conn
	p.c.later(p.c.w.between(us, 60*us), evNet, func() {
		if p.conn != conn {
			return
		}
		p.writing = false
		for len(p.queue) > 0 {
			p.take()
			if p.c.w.chance(1, 4) {
				break
			}
		}
		if len(p.queue) > 0 {
			p.write()
		}
	})
}

// take moves the bytes of one frame to the network.
func (p *peer) take() {
	c := p.c
	fi := p.queue[0]
	p.queue = p.queue[1:]
	f := c.core.Frame(fi)
	m := message{h: f.Header, sums: slices.Clone(f.Sums)}
	for _, v := range f.Payload {
		m.payload = append(m.payload, v...)
	}
	p.asks(&m)
	p.conn.send(sideClient, m)
	if !c.w.planted(plantFrame) {
		c.core.Sent(c.clock(), fi)
	}
	c.drain()
}

func (p *peer) received(_ *Conn, m message) {
	c := p.c
	if c.dead {
		return
	}
	switch p.state {
	case peerOpening:
		p.opened(&m.h)
	case peerUp:
		p.answered(&m.h)
		if m.h.Flags&transport.FlagReply == 0 {
			c.core.Request(c.clock(), p.link, &m.h)
			c.drain()
			return
		}
		dst, wanted, err := c.core.Incoming(p.link, &m.h)
		if err != nil {
			c.w.failf("client %s does not take a reply: %v", c.name, err)
			return
		}
		if wanted {
			rest := m.payload
			for _, v := range dst {
				rest = rest[copy(v, rest):]
			}
		}
		if len(m.payload) > 0 && c.w.chance(1, 400) { // the rest never comes
			c.w.mark("a reply is cut off")
			p.conn.cut()
			return
		}
		c.core.Reply(c.clock(), p.link, &m.h, m.sums, nil)
		c.drain()
	}
}

func (p *peer) opened(h *transport.Header) {
	c := p.c
	switch h.Status {
	case transport.StatusOK:
	case transport.StatusFenced:
		c.core.Fenced(c.clock(), "the server")
		c.drain()
		p.conn.close(sideClient)
		return
	default:
		p.conn.close(sideClient)
		return
	}
	l := c.core.LinkUp(c.clock(), p.dev, h.Session, cluster.Incarnation(h.Interval))
	if l < 0 {
		c.drain()
		p.conn.close(sideClient)
		return
	}
	for int(l) >= len(c.links) {
		c.links = append(c.links, nil)
	}
	c.links[l] = p
	p.link, p.state, p.pause = l, peerUp, 10*ms
	c.drain()
}

// closed is part of end: the transport lets go of everything.
func (p *peer) closed(*Conn) {
	c := p.c
	if c.dead {
		return
	}
	up, l := p.state == peerUp, p.link
	for len(p.queue) > 0 { // to be told may make the core send more
		fi := p.queue[0]
		p.queue = p.queue[1:]
		c.core.Sent(c.clock(), fi)
		c.drain()
	}
	p.queue, p.conn, p.link, p.state, p.writing = nil, nil, -1, peerIdle, false
	if up {
		c.links[l] = nil
		c.core.LinkClosed(c.clock(), l)
	}
	c.drain()
	if p.wanted && !c.ended && p.state == peerIdle {
		p.again()
	}
}

// die is the end of the process: what is on its way may still arrive.
func (c *Client) die() {
	if c.vol.client == c {
		c.w.leavesBehind(c.vol)
	}
	c.dead = true
	for _, p := range c.peers {
		if p.conn != nil {
			p.conn.gone[sideClient] = true
			half := [2]int64{0, c.w.between(0, 5*ms)}
			if !c.w.cfg.Calm && c.w.rng.IntN(3) == 0 {
				half[1] = silence
			}
			p.conn.kill(half)
		}
	}
	c.w.logf("client %s dies", c.name)
}

func (c *Client) String() string { return fmt.Sprintf("%s(gen %d)", c.name, c.gen) }

// flushEvery is how long a client keeps what it has not flushed.
func (w *World) flushEvery() time.Duration {
	if w.cfg.Calm {
		return time.Hour
	}
	return 800 * time.Millisecond
}
