// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"slices"
	"syscall"

	"braid/cluster"
	"braid/server/gate"
	"braid/server/resync"
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
	gate  *gate.Gate
	rs    *resync.Core
	links []*link // to other nodes
	conns []*serverConn
	ios   []*flying
	batch bool // a turn of its loop is due

	lease     uint64
	told      uint64 // map version that it reported as adopted
	sub       *watcher
	cutOff    bool // from the manager
	reporting bool
	clean     bool // it is stopping cleanly
	silent    bool // while it is down: not even the host answers
	bornAt    int64
	mapHeld   bool   // as a client's
	vacated   uint64 // map version up to which it has freed what lies elsewhere
	vacating  bool
	leaving   bool   // it is to be removed
	flight    []*job // changes that are in the store
	flushed   map[cluster.VolumeID]flushedTo
	seen      [][]seen         // by volume and chunk
	written   map[place]uint64 // by guests, in this life: the newest
	mending   *store.Request   // what is being put back
	gone      bool             // for good
	fresh     bool             // it came later than the volumes
	isFull    bool             // clients' writes find no room
}

// flying is an operation of the disk that has not ended.
type flying struct {
	io   *store.IO
	mark int64
}

// job is a request in the store.
type job struct {
	conn   *serverConn
	head   transport.Header
	req    store.Request
	open   transport.OpenRequest
	ticket gate.Ticket
	done   bool                   // answered without the store
	then   func(transport.Status) // of the node's own requests
	resync *resync.Op
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
	if n.state != nodeDown || n.gone {
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
		n.cfg.StartID = uint64(n.life+1)<<8 | uint64(n.id)
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
		core.SetReserve(n.reserve())
		n.gate = gate.New(n.w.cfg.Off)
		n.rs = n.newResync()
		n.w.logf("%s is up, incarnation %x", n.name, core.Incarnation())
		n.register()
		n.idle(life)
	})
}

// kill ends the process; with power the disk loses its cache as well.
func (n *Node) kill(power bool) {
	w := n.w
	n.crashes(power)
	for _, f := range n.ios {
		if f.io.Kind != store.IOWrite {
			continue
		}
		if power || w.cfg.Calm {
			n.disk.write(f.io.Data, f.io.Off)
		} else {
			n.disk.partly(w.rng, f.io.Data, f.io.Off)
		}
	}
	if power {
		n.disk.powerLoss(w.rng)
	}
	n.disk.failOpen = 0
	n.silent = power && w.chance(1, 2)
	n.die(n.silent)
	w.logf("%s dies, power loss %v", n.name, power)
}

// die is what any end of the process has in common.
func (n *Node) die(silent bool) {
	n.life++
	n.state, n.ios, n.batch, n.clean = nodeDown, nil, false, false
	n.vacated, n.vacating, n.flight, n.flushed = 0, false, nil, nil
	n.written, n.mending = nil, nil
	n.core, n.gate, n.rs, n.sub, n.reporting = nil, nil, nil, nil, false
	w := n.w
	n.dropLinks()
	for _, c := range n.conns {
		c.dead = true
		half := [2]int64{w.between(0, 2*ms), 0}
		if silent {
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
		switch {
		case s != transport.StatusOK && n.core.Err() != nil: // it retired on the way
			n.w.crash(n, false)
			return
		case s != transport.StatusOK:
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
		n.looks()
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
	if n.rs.Busy() {
		n.rs.Tick(n.w.now)
		n.pumpResync()
		after = min(after, 10*ms)
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
		} else if d.astray != 0 && !x.Meta && (len(x.Data) == block || !d.oneBlock) {
			d.strays(x.Data, x.Off)
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

// isOpen reports whether a connection is.
func (n *Node) isOpen(id gate.ConnID) bool {
	return slices.ContainsFunc(n.conns, func(s *serverConn) bool { return s.id == id })
}

// own makes a request of the node's own store.
func (n *Node) own(r store.Request, then func(transport.Status)) {
	n.submit(&job{req: r, then: then})
}

func (n *Node) submit(j *job) {
	j.req.Ctx = j
	n.core.Submit(&j.req)
	n.schedule()
}

// ended takes a request back from the store.
func (n *Node) ended(j *job) {
	switch {
	case j.then != nil:
		j.then(j.req.Status)
		return
	case j.resync != nil:
		n.copied(&j.resync.Req)
		n.rs.LocalDone(n.w.now, j.resync)
		n.pumpResync()
		return
	}
	n.applied(j)
	if !j.ticket.Counted() || !n.w.planted(plantTicket) {
		n.gate.Done(&j.ticket)
	}
	n.gateMoved()
	if j.req.Op == store.OpFence {
		n.opened(j)
		return
	}
	n.reply(j, j.req.Status)
}
