// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"testing"

	"braid/cluster/rules"
	"braid/transport"
	"braid/transport/bio"
)

// stage directs a calm world: requests and faults at chosen moments, so that what
// luck finds once in a hundred thousand runs happens every time, whatever the
// draws of a seed are. Once something is wrong all of its steps do nothing.
type stage struct {
	w     *World
	stuck string // what was waited for in vain
}

// shape is the cluster of a schedule.
func shape(servers, replicas, volumes, chunks int) Config {
	return Config{Seed: 1, Servers: servers, Replicas: replicas, Volumes: volumes, Chunks: chunks,
		Evict: true, Resync: true, Reattach: true, Calm: true, Verbose: *loud}
}

func newStage(cfg Config) *stage {
	s := &stage{w: New(cfg)}
	s.w.begin()
	for i := range s.w.volumes {
		s.attached(i)
	}
	return s
}

// over reports whether the schedule has come to its end.
func (s *stage) over() bool { return s.w.err != nil || s.stuck != "" }

// run lets time pass.
func (s *stage) run(d int64) {
	end := s.w.now + d
	for !s.over() && s.w.now < end && s.w.step() {
	}
}

// until runs as long as it takes, within reason.
func (s *stage) until(what string, done func() bool) {
	for end := s.w.now + 120*s1; !s.over() && !done(); {
		if s.w.now > end {
			s.stuck = what
			for _, v := range s.w.volumes {
				if v.serving() {
					s.stuck += fmt.Sprintf("; %s waits for %v", v.name, v.client.core.Waiting(v.client.clock(), 0))
				}
			}
		}
		s.w.step()
	}
}

// say puts a heading into the story.
func (s *stage) say(text string) {
	if !s.over() {
		s.w.logf("--- %s", text)
	}
}

func (s *stage) volume(i int) *Volume { return s.w.volumes[i] }
func (s *stage) client(i int) *Client { return s.w.volumes[i].client }

func (s *stage) attached(i int) {
	s.until("attach", func() bool {
		v := s.volume(i)
		if !v.serving() {
			return false
		}
		all, left := v.client.core.Collected()
		return all && left == 0
	})
}

// ask submits a request and does not wait for it.
func (s *stage) ask(i int, op bio.Op, first, count uint64) *request {
	q := &request{first: first, count: count}
	q.r.Op = op
	if !s.over() {
		s.volume(i).guest.submit(q)
	}
	return q
}

func (s *stage) ends(q *request) { s.until("a request", func() bool { return q.over || q.orphan }) }

func (s *stage) write(i int, first uint64) { s.ends(s.ask(i, bio.Write, first, 1)) }
func (s *stage) read(i int, first uint64)  { s.ends(s.ask(i, bio.Read, first, 1)) }
func (s *stage) flush(i int)               { s.ends(s.ask(i, bio.Flush, 0, 0)) }

// copies are the nodes in sync of a volume's chunk, by preference.
func (s *stage) copies(i int, chunk uint64) []*Node {
	var out []*Node
	for _, id := range s.w.pgOf(s.volume(i), chunk).InSync {
		out = append(out, s.w.nodeOf(id))
	}
	return out
}

func (s *stage) inSync(i int, chunk uint64, n *Node) bool {
	return slices.Contains(s.w.pgOf(s.volume(i), chunk).InSync, n.dev)
}

func (s *stage) isTarget(i int, chunk uint64, n *Node) bool {
	return n.dev != 0 && s.w.pgOf(s.volume(i), chunk).Target == n.dev
}

// target is the node's own idea of its attempt, or nil.
func (s *stage) ready(i int, chunk uint64, n *Node) (compared bool, left int) {
	if n.state != nodeUp {
		return false, 0
	}
	for _, t := range n.gate.Targets() {
		if t.PG == s.w.pgOf(s.volume(i), chunk).ID {
			return t.Compared(), t.Left()
		}
	}
	return false, 0
}

// joins waits until a node is in sync, leaves until it is not.
func (s *stage) joins(i int, chunk uint64, n *Node) {
	s.until(n.name+" in sync", func() bool { return s.inSync(i, chunk, n) })
}

func (s *stage) leaves(i int, chunk uint64, n *Node) {
	s.until(n.name+" out of the set", func() bool { return !s.inSync(i, chunk, n) })
}

// knows waits until a client has adopted the map of this instant.
func (s *stage) knows(i int) {
	version := s.w.mdm.m.Version
	s.until("the client's map", func() bool { return s.client(i).core != nil && s.client(i).m.Version >= version })
}

// quiet waits until no log of the nodes names a chunk of the volume.
func (s *stage) quiet(i int, chunk uint64, nodes ...*Node) {
	s.until("empty activity logs", func() bool {
		return !slices.ContainsFunc(nodes, func(n *Node) bool {
			return n.state == nodeUp && n.core.Peek(s.volume(i).id, 0, chunk).Logged
		})
	})
}

// power ends a server and its disk's cache, kill its process only. It stays down.
func (s *stage) power(nodes ...*Node) {
	for _, n := range nodes {
		if !s.over() {
			n.kill(true)
		}
	}
}

func (s *stage) kill(n *Node) {
	if !s.over() {
		n.kill(false)
	}
}

// up starts nodes and waits until they serve.
func (s *stage) up(nodes ...*Node) {
	if s.over() {
		return
	}
	for _, n := range nodes {
		n.start()
	}
	s.until("started servers", func() bool {
		return !slices.ContainsFunc(nodes, func(n *Node) bool { return n.state != nodeUp })
	})
}

// apart cuts a client off from a server, together ends that.
func (s *stage) apart(c *Client, n *Node) {
	if s.over() {
		return
	}
	s.w.logf("%s and %s are apart", c, n.name)
	s.w.plan.cuts = append(s.w.plan.cuts, cutPair{c, n, 1 << 62})
	for _, x := range slices.Clone(n.conns) {
		if x.c.client == c {
			x.c.cut()
		}
	}
}

func (s *stage) together(c *Client, n *Node) {
	s.w.plan.cuts = slices.DeleteFunc(s.w.plan.cuts, func(p cutPair) bool { return p.c == c && p.n == n })
}

// hold keeps messages from being delivered, until release.
func (s *stage) hold(which ...filter) {
	s.w.keep(func(c *Conn, from int, m *message) bool {
		return slices.ContainsFunc(which, func(f filter) bool { return f(c, from, m) })
	})
}

func (s *stage) release() { s.w.keep(nil) }

// caught waits until something is held.
func (s *stage) caught(what string) { s.until(what, func() bool { return len(s.w.held) > 0 }) }

// to are the requests of a client to a node.
func to(c *Client, n *Node, ops ...transport.Op) filter {
	return func(x *Conn, from int, m *message) bool {
		return x.client == c && x.node == n && from == sideClient &&
			(len(ops) == 0 || slices.Contains(ops, m.h.Op))
	}
}

// resyncs are what two servers say to each other because of a resync.
func resyncs(ops ...transport.Op) filter {
	return func(x *Conn, _ int, m *message) bool { return x.client == nil && slices.Contains(ops, m.h.Op) }
}

// mdmDown and mdmUp are the manager's. A new leader gives every lease a full term.
func (s *stage) mdmDown() { s.w.mdm.up = false }
func (s *stage) mdmUp()   { s.w.mdm.up = true; s.w.mdm.elect() }

// dies ends a volume's client; the next one takes its place, for the same guest
// where that is alive.
func (s *stage) dies(i int) {
	if !s.over() {
		s.client(i).die()
	}
}

func (s *stage) next(i int, alive bool) {
	if s.over() {
		return
	}
	if !alive {
		s.volume(i).guestRestarts()
	}
	s.volume(i).resume(alive)
}

// finish is what has to be true in the end: the world heals, and every block that
// was ever written is read from each copy.
func (s *stage) finish() {
	if s.over() {
		return
	}
	s.release()
	for _, c := range s.w.clients {
		c.mapHeld = false
	}
	for _, n := range s.w.nodes {
		n.mapHeld = false
	}
	s.w.settle()
	for i, v := range s.w.volumes {
		for b := range v.oracle.blocks {
			for range 2 * len(s.w.nodes) {
				if v.oracle.blocks[b].end() > 1 && v.serving() && !s.over() {
					s.read(i, uint64(b))
				}
			}
		}
	}
}

// schedule is a story that needs one rule, or none: then it is about a fault.
type schedule struct {
	rule rules.Rule
	name string
	cfg  Config
	play func(s *stage)
}

func (x *schedule) run(off rules.Off) *stage {
	cfg := x.cfg
	cfg.Off = off
	s := newStage(cfg)
	x.play(s)
	s.finish()
	return s
}

// Goal: each rule is needed, and its absence is noticed. Method: a directed
// schedule that ends well with the rule, and in a violation without it.
func TestDirectedMutations(t *testing.T) {
	events := uint64(0)
	for i, x := range schedules {
		if slow > 1 && i%5 != 0 {
			continue
		}
		t.Run(fmt.Sprintf("%d-%v/%s", x.rule, x.rule, x.name), func(t *testing.T) {
			events += x.well(t).w.events
			without := x.run(rules.Set(x.rule))
			events += without.w.events
			if without.w.err == nil {
				story := ""
				if *loud {
					story = without.w.Trace() + "\n"
				}
				t.Fatalf("%swithout %v nothing is noticed%s", story, x.rule, stuckText(without))
			}
			t.Logf("noticed: %v", without.w.err)
		})
	}
	t.Logf("%d events", events)
}

// well runs a schedule with all rules on, which has to end well.
func (x *schedule) well(t *testing.T) *stage {
	t.Helper()
	s := x.run(0)
	if s.over() {
		t.Fatalf("%s\n\n%s, with all rules on: %v%s", s.w.Trace(), x.name, s.w.err, stuckText(s))
	}
	return s
}

// Goal: each kind of fault is survived. Method: a directed schedule with it.
func TestFaults(t *testing.T) {
	for _, x := range faults[:max(len(faults)/slow, 2)] {
		t.Run(x.name, func(t *testing.T) { x.well(t) })
	}
}

// Goal: every rule that can be switched off has its counterexample.
func TestEveryRuleHasACounterexample(t *testing.T) {
	for _, r := range rules.All() {
		if !slices.ContainsFunc(schedules, func(x schedule) bool { return x.rule == r }) &&
			!slices.ContainsFunc(mutants, func(x mutant) bool { return x.rule == r }) {
			t.Errorf("nothing shows that %v is needed", r)
		}
	}
}

func stuckText(s *stage) string {
	if s.stuck == "" {
		return ""
	}
	return "; waited in vain for " + s.stuck
}

// directed are the marks of the directed schedules, once they have run.
var directed map[string]int

// cover adds what the directed schedules have been in, and fails for each
// situation that nothing has been in.
func cover(t *testing.T, marks map[string]int) {
	t.Helper()
	if slow > 1 {
		return // the whole form, without the race detector, does
	}
	if directed == nil {
		directed = map[string]int{}
		for _, x := range slices.Concat(schedules, faults, losses, spaces) {
			for k, n := range x.well(t).w.marks {
				directed[k] += n
			}
		}
	}
	for k, n := range directed {
		marks[k] += n
	}
	for _, k := range wanted {
		if marks[k] == 0 {
			t.Errorf("no run was ever in this: %s", k)
		}
	}
}

// Goal: the situations that matter come about whatever the seeds draw.
func TestDirectedCoverage(t *testing.T) { cover(t, map[string]int{}) }
