// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"slices"
	"syscall"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

type nodeState uint8

const (
	nodeDown nodeState = iota
	nodeStarting
	nodeUp
	nodeFailed // the store retired; the process lives
)

// Node is a server with one device: what package server is in production, with
// the world's disk and network in place of the loop.
type Node struct {
	w     *World
	id    uint32
	name  string
	uuid  cluster.UUID
	dev   cluster.DeviceID // 0: not registered yet
	disk  *Disk
	state nodeState
	life  int // how often it has died
	cfg   store.Config
	core  *store.Core
	gate  *gate
	conns []*serverConn
	ios   []*flying
	batch bool // a turn of its loop is due

	lease     uint64
	sub       *watcher
	cutOff    bool // from the manager
	reporting bool
	clean     bool // it is stopping cleanly
	bornAt    int64
}

// flying is an operation of the disk that has not ended.
type flying struct {
	io   *store.IO
	mark int64
}

// job is a request of a client in the store.
type job struct {
	conn    *serverConn
	head    transport.Header
	req     store.Request
	open    transport.OpenRequest
	counted bool
	then    func(transport.Status) // of the node's own requests
}

func newNode(w *World, i int, size int64) *Node {
	n := &Node{w: w, id: uint32(i), name: string(rune('A' + i)), disk: newDisk(w, uint32(i), size)}
	n.uuid[0], n.uuid[15] = 0xD0, byte(i+1)
	if _, err := store.Format(n.disk, n.uuid, clusterID, nil); err != nil {
		w.failf("format disk %s: %v", n.name, err)
	}
	return n
}

// start begins the life of a process.
func (n *Node) start() {
	if n.state != nodeDown {
		return
	}
	n.state = nodeStarting
	life := n.life
	if n.w.chance(1, 12) {
		n.disk.failOpen = 1 + n.w.rng.IntN(3)
	}
	n.w.after(n.w.between(ms, 200*ms), evNode, n.id, func() {
		if n.life != life {
			return
		}
		core, err := store.Open(n.disk, n.cfg)
		if errors.Is(err, errKilled) {
			n.w.mark("crash while a store opens")
			n.kill(n.w.rng.IntN(2) == 0)
			n.w.after(n.w.between(ms, 100*ms), evNode, n.id, n.start)
			return
		}
		n.disk.failOpen = 0
		if errors.Is(err, syscall.EIO) {
			n.state = nodeDown
			n.w.after(s1, evNode, n.id, n.start)
			return
		}
		if err != nil {
			n.w.failf("device %s does not open: %v", n.name, err)
			return
		}
		n.core, n.state, n.ios, n.bornAt = core, nodeUp, nil, n.w.now
		n.gate = newGate(n)
		n.w.logf("%s is up, incarnation %x", n.name, core.Incarnation())
		n.register()
		n.idle(life)
	})
}

// kill ends the process; with power the disk loses its cache as well.
func (n *Node) kill(power bool) {
	w := n.w
	for _, f := range n.ios {
		if f.io.Kind != store.IOWrite {
			continue
		}
		if power {
			n.disk.write(f.io.Data, f.io.Off)
		} else {
			n.disk.partly(w.rng, f.io.Data, f.io.Off)
		}
	}
	if power {
		n.disk.powerLoss(w.rng)
	}
	n.disk.failOpen = 0
	n.die(power)
	w.logf("%s dies, power loss %v", n.name, power)
}

// die is what any end of the process has in common.
func (n *Node) die(silent bool) {
	n.life++
	n.state, n.ios, n.batch, n.clean = nodeDown, nil, false, false
	n.core, n.gate, n.sub, n.reporting = nil, nil, nil, false
	w := n.w
	for _, c := range n.conns {
		c.dead = true
		half := [2]int64{w.between(0, 2*ms), 0}
		if silent && w.rng.IntN(2) == 0 {
			half[0] = silence
		}
		c.c.gone[sideServer] = true
		c.c.kill(half)
	}
	n.conns = nil
}

// stop ends the process cleanly.
func (n *Node) stop() {
	if n.state != nodeUp {
		return
	}
	n.clean = true
	n.w.logf("%s stops cleanly", n.name)
	n.own(store.Request{Op: store.OpStop}, func(s transport.Status) {
		if s != transport.StatusOK {
			n.w.failf("clean stop of %s: status %d", n.name, s)
			return
		}
		n.w.mark("clean stop")
		n.w.mdm.farewell(n)
		n.disk.powerLoss(n.w.rng) // nothing may be lost by it any more
		n.die(false)
		if n.w.healing {
			n.start()
		}
	})
}

// schedule has the store's effects carried out at the end of this turn.
func (n *Node) schedule() {
	if n.batch {
		return
	}
	n.batch = true
	life := n.life
	n.w.after(n.w.between(us, 40*us), evNode, n.id, func() {
		if n.life == life {
			n.batch = false
			n.drain()
		}
	})
}

func (n *Node) drain() {
	for {
		effects := n.core.Effects()
		if len(effects) == 0 {
			return
		}
		var ended []*job
		failed := false
		for i := range effects {
			switch e := &effects[i]; e.Kind {
			case store.EffectIO:
				n.startIO(e.IO)
			case store.EffectReply:
				ended = append(ended, e.Req.Ctx.(*job))
			case store.EffectFailed:
				failed = true
			}
		}
		life := n.life
		for _, j := range ended {
			n.ended(j)
			if n.life != life {
				return
			}
		}
		if failed {
			n.fail()
		}
	}
}

// fail is the end of a device whose store retired (rule 19).
func (n *Node) fail() {
	n.w.mark("device retired")
	n.w.logf("%s retires: %v", n.name, n.core.Err())
	n.state = nodeFailed
	for _, c := range slices.Clone(n.conns) {
		c.c.close(sideServer)
	}
	n.report()
}

// idle gives the store time for background work.
func (n *Node) idle(life int) {
	after := 100 * ms
	if n.state == nodeUp && !n.clean && n.core.Idle() {
		after = 5 * ms
	}
	if n.state == nodeUp {
		n.schedule()
	}
	n.w.after(after, evNode, n.id, func() {
		if n.life == life {
			n.idle(life)
		}
	})
}

func (n *Node) startIO(x *store.IO) {
	w := n.w
	f := &flying{io: x, mark: n.disk.mark()}
	n.ios = append(n.ios, f)

	took := w.between(15*us, 1500*us)
	switch {
	case x.Kind == store.IOFlush:
		took = w.between(100*us, 6*ms)
	case w.chance(1, 100):
		took = w.between(ms, 50*ms)
	}
	took = max(took, n.disk.stalled-w.now)
	life := n.life
	w.after(took, evDisk, n.id, func() {
		if n.life == life {
			n.endIO(f)
		}
	})
}

func (n *Node) endIO(f *flying) {
	w, d := n.w, n.disk
	if d.stalled > w.now {
		life := n.life
		w.after(d.stalled-w.now, evDisk, n.id, func() {
			if n.life == life {
				n.endIO(f)
			}
		})
		return
	}
	i := slices.Index(n.ios, f)
	n.ios = slices.Delete(n.ios, i, i+1)
	var err error
	switch x := f.io; x.Kind {
	case store.IORead:
		_, err = d.ReadAt(x.Data, x.Off)
	case store.IOWrite:
		if d.failNext.write && !x.Meta {
			d.failNext.write = false
			d.partly(w.rng, x.Data, x.Off)
			w.mark("write error")
			err = syscall.EIO
		} else {
			_, err = d.WriteAt(x.Data, x.Off)
		}
	case store.IOFlush:
		if d.failNext.flush {
			w.mark("flush error")
		}
		err = d.flushTo(f.mark)
	}
	n.touched(f.io)
	n.core.IODone(f.io, err)
	n.schedule()
}

// own makes a request of the node's own store.
func (n *Node) own(r store.Request, then func(transport.Status)) {
	j := &job{req: r, then: then}
	j.req.Ctx = j
	n.core.Submit(&j.req)
	n.schedule()
}

// ended takes a request back from the store.
func (n *Node) ended(j *job) {
	if j.then != nil {
		j.then(j.req.Status)
		return
	}
	n.gate.done(j)
	if j.req.Op == store.OpFence {
		n.opened(j)
		return
	}
	n.reply(j, j.req.Status)
}

func (n *Node) reply(j *job, status transport.Status) {
	h := transport.Header{Op: j.head.Op, Flags: transport.FlagReply, Status: status, ID: j.head.ID,
		Session: j.head.Session, PG: j.head.PG, Epoch: j.head.Epoch, Chunk: j.head.Chunk,
		Length: j.head.Length, Interval: uint64(n.core.Incarnation()), Offset: uint32(n.core.Pressure())}
	m := message{}
	if status == transport.StatusOK && (j.head.Op == transport.OpRead || j.head.Op == transport.OpStatus) {
		if j.req.Hole {
			h.Flags |= transport.FlagHole
		} else {
			m.payload, h.Payload = j.req.Data, uint32(len(j.req.Data))
			if j.head.Op == transport.OpRead {
				m.sums, h.Sums = j.req.Sums, uint16(len(j.req.Sums)/8)
			}
		}
	}
	m.h = h
	j.conn.c.send(sideServer, m)
}

// serverConn is the server's side of a connection.
type serverConn struct {
	n    *Node
	c    *Conn
	link uint8
	dead bool
}

func (s *serverConn) closed(*Conn) {
	s.dead = true
	n := s.n
	if i := slices.Index(n.conns, s); i >= 0 {
		n.conns = slices.Delete(n.conns, i, i+1)
	}
	if n.gate != nil {
		n.gate.removeConn(s)
	}
}

// serving says whether data requests are admitted.
func (n *Node) serving() transport.Status {
	switch {
	case n.state == nodeFailed:
		return transport.StatusIO
	case n.clean:
		return transport.StatusRetry
	}
	return transport.StatusOK
}

// received starts the request that has arrived.
func (s *serverConn) received(_ *Conn, m message) {
	n := s.n
	if s.dead {
		return
	}
	j := &job{conn: s, head: m.h}
	j.req.Ctx = j
	switch m.h.Op {
	case transport.OpOpen, transport.OpFence, transport.OpClose:
		n.control(j, m)
	default:
		if status := n.prepare(j, m); status != transport.StatusOK {
			n.reply(j, status)
			return
		}
		n.core.Submit(&j.req)
		n.schedule()
	}
}

// prepare turns a data frame into a request of the store, or says why not.
func (n *Node) prepare(j *job, m message) transport.Status {
	if status := n.serving(); status != transport.StatusOK {
		return status
	}
	h, r := &j.head, &j.req
	sess, status := n.gate.find(j.conn, h.Session)
	if status != transport.StatusOK {
		return status
	}
	r.Volume, r.Gen, r.Interval = sess.volume, sess.gen, h.Interval
	r.Chunk, r.Offset, r.Length = h.Chunk, h.Offset, h.Length
	r.FUA = h.Flags&transport.FlagFUA != 0
	sums := int(h.Length) / cluster.BlockSize * 8
	switch h.Op {
	case transport.OpRead:
		r.Op, r.Data, r.Sums = store.OpRead, make([]byte, h.Length), make([]byte, sums)
	case transport.OpWrite:
		r.Op, r.Data, r.Sums = store.OpWrite, m.payload, m.sums
		if transport.VerifySums(m.payload, m.sums) >= 0 {
			n.w.failf("bytes changed between their checksums and the network (rule 22)")
			return transport.StatusBadSum
		}
	case transport.OpTrim:
		r.Op = store.OpTrim
	case transport.OpZero:
		r.Op, r.NoHole = store.OpZero, h.Flags&transport.FlagNoHole != 0
	case transport.OpStatus:
		r.Op, r.Data, r.Offset, r.Length = store.OpBitmap, make([]byte, 32), 0, cluster.ChunkSize
	case transport.OpFlush:
		r.Op, r.Drained, r.Chunk, r.Offset, r.Length = store.OpFlush, true, 0, 0, 0
		return transport.StatusOK
	default:
		return transport.StatusRefused
	}
	reads := r.Op == store.OpRead || r.Op == store.OpBitmap
	return n.gate.admit(j, sess, reads)
}

// control starts an open or fence request (rule 14).
func (n *Node) control(j *job, m message) {
	if status := n.serving(); status != transport.StatusOK {
		n.reply(j, status)
		return
	}
	if err := j.open.Decode(m.payload); err != nil {
		n.w.failf("a client's open request does not decode: %v", err)
		return
	}
	volume, gen := cluster.VolumeID(j.open.Volume), cluster.Generation(j.open.Generation)
	if status := n.gate.mayOpen(volume, gen); status != transport.StatusOK {
		n.reply(j, status)
		return
	}
	n.gate.fence(volume, gen, j.conn)
	j.req.Op, j.req.Volume, j.req.Gen = store.OpFence, volume, gen
	n.core.Submit(&j.req)
	n.schedule()
}

// opened ends an open request when the store has drained and persisted.
func (n *Node) opened(j *job) {
	volume, gen := cluster.VolumeID(j.open.Volume), cluster.Generation(j.open.Generation)
	switch {
	case j.req.Status != transport.StatusOK || j.conn.dead:
		n.reply(j, j.req.Status)
	case gen < n.core.Generation(volume):
		n.reply(j, transport.StatusFenced)
	default:
		n.gate.fence(volume, gen, j.conn)
		j.head.Session = n.gate.open(j.conn, volume, gen)
		n.reply(j, transport.StatusOK)
	}
}
