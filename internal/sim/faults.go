// SPDX-License-Identifier: Apache-2.0

package sim

import "math/rand/v2"

// Faults says how often things go wrong: weights of what the next fault is. A
// fault comes about every Every of virtual time.
type Faults struct {
	Every      int64
	Kill       int // a server's process dies
	Power      int // a server loses power
	AllPower   int // all of them at once
	Stop       int // a clean stop
	Cut        int // a connection dies
	Clog       int // one direction of a connection hangs
	Partition  int // a client and a server cannot reach each other for a while
	Stall      int // a disk does nothing for 2 to 30 s
	WriteError int
	FlushError int
	MdmDown    int
	MdmCut     int // one client or server cannot reach the manager for a while
	Client     int // a client dies
	Zombie     int // another client takes the volume of one that lives
	Lie        int // 40 flushes that do nothing: to be caught
	Move       int // a group that holds data is to lie elsewhere
	Remove     int // a device is to be emptied and removed, or no longer so
	ReadError  int // a device reads nothing for a while
	Lose       int // a device never returns
	Fresh      int // another server joins
	Stray      int // a write lands at another place
	Fill       int // a device has no room for a while

	LostRPC    int  // percent of requests and of answers
	SoleErrors bool // requests may fail where there is one copy
	Full       bool // devices may be too small, and writes that find no room fail
}

// plan is what is going on.
type plan struct {
	conns int
	cuts  []cutPair
}

type cutPair struct {
	c     *Client
	n     *Node
	until int64
}

func (w *World) isCut(c *Client, n *Node) bool {
	for _, p := range w.plan.cuts {
		if p.c == c && p.n == n && p.until > w.now {
			return true
		}
	}
	return false
}

// Action is one fault at its time. The rest of what it does is drawn from Seed,
// so that a plan can lose some of its actions and the others stay what they are.
type Action struct {
	At   int64 // ns after the volumes were attached
	What string
	Node int
	Seed uint64
}

// actions names every fault. Their order is part of the plans that seeds make.
var actions = []struct {
	what   string
	weight func(*Faults) int
	do     func(*World, *Node)
}{
	{"kill", func(f *Faults) int { return f.Kill }, func(w *World, n *Node) { w.crash(n, false) }},
	{"power", func(f *Faults) int { return f.Power }, func(w *World, n *Node) { w.crash(n, true) }},
	{"all-power", func(f *Faults) int { return f.AllPower }, func(w *World, _ *Node) { w.allPower() }},
	{"stop", func(f *Faults) int { return f.Stop }, (*World).stopNode},
	{"cut", func(f *Faults) int { return f.Cut }, func(w *World, _ *Node) { w.cutOne() }},
	{"clog", func(f *Faults) int { return f.Clog }, func(w *World, _ *Node) { w.clogOne() }},
	{"part", func(f *Faults) int { return f.Partition }, (*World).partition},
	{"stall", func(f *Faults) int { return f.Stall }, (*World).stall},
	{"write-error", func(f *Faults) int { return f.WriteError },
		func(_ *World, n *Node) { n.disk.failNext.write = true }},
	{"flush-error", func(f *Faults) int { return f.FlushError },
		func(_ *World, n *Node) { n.disk.failNext.flush = true }},
	{"mdm-down", func(f *Faults) int { return f.MdmDown }, func(w *World, _ *Node) { w.mdmDown() }},
	{"mdm-cut", func(f *Faults) int { return f.MdmCut }, (*World).mdmCut},
	{"client", func(f *Faults) int { return f.Client }, func(w *World, _ *Node) { w.clientDies() }},
	{"zombie", func(f *Faults) int { return f.Zombie }, func(w *World, _ *Node) { w.zombie() }},
	{"lie", func(f *Faults) int { return f.Lie }, func(_ *World, n *Node) { n.disk.lies += 40 }},
	{"move", func(f *Faults) int { return f.Move }, func(w *World, _ *Node) { w.mdm.moveOne() }},
	{"remove", func(f *Faults) int { return f.Remove }, func(w *World, n *Node) { w.mdm.remove(n) }},
	{"read-error", func(f *Faults) int { return f.ReadError }, (*World).readErrors},
	{"lose", func(f *Faults) int { return f.Lose }, (*World).loseNode},
	{"fresh", func(f *Faults) int { return f.Fresh }, (*World).freshNode},
	{"stray", func(f *Faults) int { return f.Stray }, (*World).strayNode},
	{"fill", func(f *Faults) int { return f.Fill }, (*World).fillNode},
}

// Plan draws the faults of a run.
func (c *Config) plan() []Action {
	rng := rand.New(rand.NewPCG(c.Seed, 0xFA017))
	total := 0
	for _, a := range actions {
		total += a.weight(&c.Faults)
	}
	if total == 0 || c.Faults.Every == 0 {
		return nil
	}
	var plan []Action
	for at := int64(0); ; {
		x := rng.Float64()
		if at += int64(x * x * 3 * float64(c.Faults.Every)); at > int64(c.Duration) {
			return plan
		}
		k := rng.IntN(total)
		for i := range actions {
			if k -= actions[i].weight(&c.Faults); k < 0 {
				plan = append(plan, Action{At: at, What: actions[i].what, Node: rng.IntN(c.Servers),
					Seed: rng.Uint64() >> 40})
				break
			}
		}
	}
}

// disturb plans the faults.
func (w *World) disturb() {
	plan := w.cfg.Plan
	if plan == nil {
		plan = w.cfg.plan()
	}
	for _, a := range plan {
		w.after(a.At, evFault, uint32(a.Node), func() { w.act(a) })
	}
}

// act does one thing, drawing from the action's own source.
func (w *World) act(a Action) {
	if w.healing || w.isSpoilt() {
		return
	}
	rng := w.rng
	w.rng = rand.New(rand.NewPCG(a.Seed, 1))
	for i := range actions {
		if actions[i].what == a.What {
			actions[i].do(w, w.nodes[a.Node%len(w.nodes)])
		}
	}
	w.rng = rng
}

// crash ends a server's process and starts it again some time later.
func (w *World) crash(n *Node, power bool) {
	if n.state == nodeDown {
		return
	}
	n.kill(power)
	if power {
		w.mark("power loss")
	} else {
		w.mark("process death")
	}
	w.restart(n)
}

// restart starts a node after a while: soon, or after its lease.
func (w *World) restart(n *Node) {
	life := n.life
	delay := w.between(5*ms, s1)
	if w.rng.IntN(4) == 0 {
		delay = w.between(s1, 15*s1)
	}
	w.after(delay, evNode, n.id, func() {
		if n.life == life {
			n.start()
		}
	})
}

func (w *World) allPower() {
	w.mark("all lose power")
	for _, n := range w.nodes {
		w.crash(n, true)
	}
}

func (w *World) stopNode(n *Node) {
	if n.state != nodeUp || n.clean {
		return
	}
	n.stop()
	w.after(w.between(50*ms, 2*s1), evNode, n.id, func() { // the next start, once it has stopped
		if n.state == nodeDown {
			n.start()
		} else if n.clean {
			w.crash(n, false)
		}
	})
}

// someConn picks a live connection.
func (w *World) someConn() *Conn {
	var all []*Conn
	for _, n := range w.nodes {
		for _, s := range n.conns {
			if !s.c.dying {
				all = append(all, s.c)
			}
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

func (w *World) cutOne() {
	if c := w.someConn(); c != nil {
		w.mark("connection cut")
		w.logf("connection %d is cut", c.id)
		c.cut()
	}
}

// clogOne holds one direction up. A peer that is silent for too long is given
// up by the other side.
func (w *World) clogOne() {
	c := w.someConn()
	if c == nil {
		return
	}
	from := w.rng.IntN(2)
	long := w.between(100*ms, 2*silence)
	c.clog[from] = w.now + long
	w.logf("connection %d is clogged from side %d for %d ms", c.id, from, long/ms)
	w.mark("one direction clogged")
	if long > silence {
		w.after(silence, evNet, c.id, func() { c.close(1 - from) })
	}
}

func (w *World) partition(n *Node) {
	c := w.someClient()
	if c == nil {
		return
	}
	w.mark("client and server apart")
	long := w.between(100*ms, 10*s1)
	w.logf("%s and %s are apart for %d ms", c, n.name, long/ms)
	w.plan.cuts = append(w.plan.cuts, cutPair{c, n, w.now + long})
	for _, s := range n.conns {
		if s.c.client == c {
			s.c.cut()
		}
	}
}

func (w *World) someClient() *Client {
	var all []*Client
	for _, c := range w.clients {
		if !c.dead && c.core != nil {
			all = append(all, c)
		}
	}
	if len(all) == 0 {
		return nil
	}
	return all[w.rng.IntN(len(all))]
}

func (w *World) stall(n *Node) {
	w.mark("disk stalls")
	n.disk.stalled = w.now + w.between(2*s1, 30*s1)
	w.logf("disk %s stalls for %d ms", n.name, (n.disk.stalled-w.now)/ms)
}

func (w *World) mdmDown() {
	if !w.mdm.up {
		return
	}
	w.mark("manager away")
	w.mdm.up = false
	w.logf("the manager is away")
	w.after(w.between(100*ms, 12*s1), evFault, 0, func() {
		w.mdm.up = true
		w.mdm.elect()
	})
}

func (w *World) mdmCut(n *Node) {
	long := w.between(100*ms, 12*s1)
	if w.rng.IntN(2) == 0 {
		n.cutOff = true
		w.mark("server cut off from the manager")
		w.after(long, evFault, n.id, func() { n.cutOff = false })
		return
	}
	if c := w.someClient(); c != nil {
		c.cutOff = true
		w.mark("client cut off from the manager")
		w.after(long, evFault, c.who(), func() { c.cutOff = false })
	}
}

func (w *World) clientDies() {
	if c := w.someClient(); c != nil && c.vol.client == c {
		w.mark("client died")
		c.vol.dies(c)
	}
}

// zombie cuts a client off from the manager, while another takes its volume.
func (w *World) zombie() {
	c := w.someClient()
	if c == nil || c.vol.client != c {
		return
	}
	c.cutOff = true
	c.vol.takeOver(c)
	w.after(w.between(s1, 20*s1), evFault, c.who(), func() { c.cutOff = false })
}

// heal ends all faults.
func (w *World) heal() {
	w.healing = true
	w.logf("faults are over")
	w.plan.cuts = nil
	w.mdm.up = true
	for _, n := range w.nodes {
		n.cutOff = false
		n.disk.stalled, n.disk.failRead, n.disk.failNext = 0, nil, diskFault{}
		n.setFull(false)
		for _, s := range n.conns {
			s.c.clog = [2]int64{}
		}
		if n.state == nodeFailed {
			n.kill(false)
		}
		if n.state == nodeDown {
			n.start()
		}
	}
	for _, c := range w.clients {
		c.cutOff = false
	}
}
