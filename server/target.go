// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
	"unsafe"

	"braid/cluster"
	"braid/mdm/client"
	"braid/server/gate"
	"braid/server/resync"
	"braid/transport"
	"braid/transport/loop"
)

// target drives the resync core of a device on the device's loop: connections to
// sources, locks at clients, questions to the manager.
//
// Goroutines: one for each dial and each question under way, at most one a device
// and kind; end waits for them.
type target struct {
	d       *device
	core    *resync.Core
	timer   loop.Timer
	ticking bool
	over    bool                       // stopping or failed: nothing is started any more
	ended   []*resync.Op               // replies of the store, to be handed on
	locks   map[uint64]gate.ConnID     // asked of clients, not given back
	links   map[cluster.DeviceID]*link // to sources, open or closing
	asking  bool                       // the manager, which groups are ready
	ctx     context.Context
	cancel  context.CancelFunc
}

func newTarget(d *device, cfg resync.Config) *target {
	cfg.Aligned = alignedBytes
	t := &target{d: d, core: resync.New(cfg, d.gate, d.core), locks: map[uint64]gate.ConnID{},
		links: map[cluster.DeviceID]*link{}}
	t.timer.Fire = t.onTick
	t.ctx, t.cancel = context.WithCancel(context.Background())
	return t
}

// alignedBytes returns memory that a disk opened with O_DIRECT takes.
func alignedBytes(n int) []byte {
	b := make([]byte, n+cluster.BlockSize)
	o := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (cluster.BlockSize - 1)
	return b[o : o+n : o+n]
}

// learn follows a map that the gate has learned.
func (t *target) learn() {
	if t.over {
		return
	}
	t.core.Learn(t.d.loop.Now())
	if t.core.Busy() && !t.ticking {
		t.ticking = true
		t.d.loop.Arm(&t.timer, resyncTick)
	}
	t.d.schedule()
}

func (t *target) onTick(timer *loop.Timer) {
	if t.ticking = t.core.Busy() && !t.over; !t.ticking {
		return
	}
	t.core.Load(t.d.loop.Now(), t.d.frontLoad())
	t.core.Tick(t.d.loop.Now())
	t.d.loop.Arm(timer, resyncTick)
	t.d.schedule()
}

// run carries out what the core wants. It reports whether there was anything.
func (t *target) run() bool {
	if t.over {
		return false
	}
	moved := len(t.ended) > 0
	for len(t.ended) > 0 {
		op := t.ended[0]
		t.ended = t.ended[1:]
		t.core.LocalDone(t.d.loop.Now(), op)
	}
	effects := t.core.Effects()
	for i := range effects {
		t.do(&effects[i])
	}
	return moved || len(effects) > 0
}

func (t *target) do(e *resync.Effect) {
	now := t.d.loop.Now()
	switch e.Kind {
	case resync.EffectLocal:
		e.Op.Req.Ctx = e.Op
		t.d.core.Submit(&e.Op.Req)
	case resync.EffectPeer:
		if l := t.links[e.Device]; l != nil && l.tc != nil {
			l.send(e.Op)
		} else {
			t.core.PeerDown(now, e.Device)
		}
	case resync.EffectConnect:
		t.connect(e.Device)
	case resync.EffectDisconnect:
		if l := t.links[e.Device]; l != nil && l.tc != nil {
			l.tc.Close(errDone)
		}
	case resync.EffectLock:
		t.lock(&e.Lock)
	case resync.EffectUnlock:
		t.unlock(&e.Lock)
	case resync.EffectPoll:
		t.ask()
	case resync.EffectJoin:
		t.join(e.Joins, e.Version)
	}
}

// ask asks the manager which attempts may begin (rule 23).
func (t *target) ask() {
	if t.asking {
		return
	}
	t.asking = true
	d, id := t.d, t.d.gate.Device()
	d.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(t.ctx, askTimeout)
		defer cancel()
		groups, err := d.manager.ResyncReady(ctx, id)
		d.loop.Post(func() {
			t.asking = false
			if err != nil || t.over {
				return // asked again at the next poll
			}
			t.core.Ready(d.loop.Now(), toReady(groups))
			d.schedule()
		})
	})
}

func toReady(groups []client.ReadyGroup) []resync.Ready {
	out := make([]resync.Ready, 0, len(groups))
	for _, g := range groups {
		r := resync.Ready{PG: g.PG, Attempt: g.Epoch}
		for _, s := range g.Sources {
			r.Sources = append(r.Sources, resync.Source(s))
		}
		out = append(out, r)
	}
	return out
}

// join asks the manager to call the device in sync. An outcome that is not known
// is asked for again (rule 16).
func (t *target) join(groups []resync.Join, version uint64) {
	d := t.d
	r := client.JoinRequest{Device: d.gate.Device(), Incarnation: d.core.Incarnation(), Version: version}
	for _, g := range groups {
		r.Groups = append(r.Groups, client.JoinGroup{PG: g.PG, Epoch: g.Attempt})
	}
	d.tasks.Go(func() {
		ctx, cancel := context.WithTimeout(t.ctx, askTimeout)
		defer cancel()
		refused, later, err := d.manager.JoinInSync(ctx, r)
		if err != nil {
			pause := time.NewTimer(joinAgain)
			defer pause.Stop()
			select {
			case <-pause.C:
			case <-t.ctx.Done():
			}
		}
		d.loop.Post(func() {
			if t.over {
				return
			}
			d.log.Info("asked to be in sync", "groups", len(r.Groups), "refused", len(refused), "later", len(later),
				"error", err)
			t.core.Joined(d.loop.Now(), slices.Concat(refused, later), err == nil)
			d.schedule()
		})
	})
}

// lock asks a client to keep off a chunk (rule 12).
func (t *target) lock(l *resync.Lock) {
	c := t.conn(l.Writer.Conn)
	if c == nil {
		t.core.LockAnswer(t.d.loop.Now(), l.ID, transport.StatusNoSession)
		return
	}
	t.locks[l.ID] = c.id
	c.tc.Send(&transport.Msg{Header: transport.Header{Op: transport.OpLock, ID: l.ID, Session: l.Writer.Handle,
		PG: uint32(l.PG), Epoch: l.Epoch, Chunk: l.Chunk}})
}

func (t *target) unlock(l *resync.Lock) {
	delete(t.locks, l.ID)
	if c := t.conn(l.Writer.Conn); c != nil {
		c.tc.Send(&transport.Msg{Header: transport.Header{Op: transport.OpUnlock, ID: l.ID,
			Session: l.Writer.Handle, PG: uint32(l.PG), Epoch: l.Epoch, Chunk: l.Chunk}})
	}
}

// conn returns the open connection of that number, or nil.
func (t *target) conn(id gate.ConnID) *conn {
	for c := range t.d.conns {
		if c.id == id && !c.closed {
			return c
		}
	}
	return nil
}

// lockAnswered takes a client's answer to OpLock or OpUnlock.
func (t *target) lockAnswered(c *conn, h *transport.Header) {
	if h.Op != transport.OpLock || t.locks[h.ID] != c.id || t.over {
		return // late, or of OpUnlock
	}
	if h.Status != transport.StatusOK {
		delete(t.locks, h.ID)
	}
	t.core.LockAnswer(t.d.loop.Now(), h.ID, h.Status)
	t.d.schedule()
}

// connClosed voids the locks that a client held on a connection.
func (t *target) connClosed(id gate.ConnID) {
	for lock, c := range t.locks {
		if c == id {
			delete(t.locks, lock)
		}
	}
	if !t.over {
		t.core.ConnClosed(t.d.loop.Now(), id)
		t.d.schedule()
	}
}

// stop ends the resync: nothing is begun any more. What it has in the store and
// at sources runs out; connections close.
func (t *target) stop() {
	if t.over {
		return
	}
	t.over, t.ticking = true, false
	t.cancel()
	t.d.loop.Disarm(&t.timer)
	t.d.mend.stop()
	for _, l := range t.links {
		if l.tc != nil {
			l.tc.Close(errStopping)
		}
	}
}

// errDone closes a connection to a source that is not needed any more.
var errDone = errors.New("server: the resync does not need the connection any more")

// link is a connection to a source. It is a transport.Handler.
type link struct {
	t     *target
	id    cluster.DeviceID
	tc    *transport.Conn // nil while it is dialed
	ops   map[uint64]*resync.Op
	next  uint64
	views [1][]byte
	text  [256]byte // of an error
}

// peerOp is what a link adds to an operation.
type peerOp struct{ msg transport.Msg }

// connect dials a source, unless that is under way.
func (t *target) connect(id cluster.DeviceID) {
	d := t.d
	if t.links[id] != nil {
		return
	}
	m := d.gate.Map()
	dev := m.Devices[id]
	if dev == nil || dev.Addr == "" {
		t.core.PeerDown(d.loop.Now(), id)
		return
	}
	l := &link{t: t, id: id, ops: map[uint64]*resync.Op{}}
	t.links[id] = l
	hello := transport.Hello{Cluster: m.Cluster, Device: dev.UUID, Client: d.uuid, Role: transport.Peer}
	addr := dev.Addr
	d.tasks.Go(func() {
		_, _, err := transport.Dial(t.ctx, d.loop, addr, hello, func(r transport.HelloReply) transport.Handler {
			if t.over {
				return nil
			}
			return l
		})
		if err == nil {
			return
		}
		d.log.Debug("no connection to a source", "device", id, "addr", addr, "error", err)
		pause := time.NewTimer(dialAgain)
		defer pause.Stop()
		select {
		case <-pause.C:
		case <-t.ctx.Done():
		}
		d.loop.Post(func() { l.gone() })
	})
}

// Opened is the first call for a connection.
func (l *link) Opened(tc *transport.Conn) {
	l.tc = tc
	l.t.core.PeerUp(l.t.d.loop.Now(), l.id, cluster.Incarnation(tc.Reply.Incarnation))
	l.t.d.schedule()
}

func (l *link) send(op *resync.Op) {
	p, _ := op.Link.(*peerOp)
	if p == nil || p.msg.Queued() {
		p = &peerOp{}
		op.Link = p
	}
	l.next++
	op.Header.ID = l.next
	l.ops[l.next] = op
	p.msg = transport.Msg{Header: op.Header}
	l.tc.Send(&p.msg)
}

// Incoming finds the room for a reply.
func (l *link) Incoming(tc *transport.Conn, h *transport.Header) ([][]byte, bool) {
	op := l.ops[h.ID]
	switch {
	case op == nil || h.Flags&transport.FlagReply == 0 || h.Op != op.Header.Op:
		tc.Close(errProtocol)
		return nil, false
	case h.Payload == 0:
		return nil, true
	case h.Status != transport.StatusOK && int(h.Payload) <= len(l.text):
		l.views[0] = l.text[:h.Payload]
	case h.Status == transport.StatusOK && int(h.Payload) <= len(op.Dst):
		l.views[0] = op.Dst[:h.Payload]
	default:
		tc.Close(fmt.Errorf("%w: %d bytes in reply to op %d", errProtocol, h.Payload, h.Op))
		return nil, false
	}
	return l.views[:], true
}

// Frame hands a reply on.
func (l *link) Frame(_ *transport.Conn, h *transport.Header, sums []byte) {
	op := l.ops[h.ID]
	delete(l.ops, h.ID)
	if l.t.over {
		return
	}
	l.t.core.PeerDone(l.t.d.loop.Now(), op, h, sums)
	l.t.d.schedule()
}

// Closed is the last call for a connection.
func (l *link) Closed(*transport.Conn, error) { l.gone() }

// gone forgets a link that has ended or never came about.
func (l *link) gone() {
	t := l.t
	delete(t.links, l.id)
	if !t.over {
		t.core.PeerDown(t.d.loop.Now(), l.id)
		t.d.schedule()
	}
	t.d.emptied()
}
