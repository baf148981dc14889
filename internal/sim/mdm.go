// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"
	"time"

	"braid/cluster"
	"braid/mdm/state"
)

var clusterID = cluster.UUID{0xC1, 15: 1}

// Leases that the manager grants.
const (
	serverLease  = 6 * s1
	sessionLease = 12 * s1
)

var (
	errTimeout = errors.New("no answer from the manager")
	errGone    = errors.New("the manager does not know the session")
)

// Mdm is the manager: mdm/state over a linearizable store in memory.
type Mdm struct {
	w        *World
	st       *state.State
	rev      int64
	m        *cluster.Map // the truth of this instant
	up       bool
	watchers []*watcher

	// What the leader remembers and the store does not.
	serverUntil map[string]int64
	sessions    map[cluster.VolumeID]sessionTerm
	persisted   map[cluster.VolumeID]cluster.Generation
	learned     map[cluster.DeviceID]uint64
	care        care
	mute        int  // so many answers get lost
	idle        bool // a directed schedule's leader has not come to care for copies yet
}

type sessionTerm struct {
	gen     cluster.Generation
	until   int64
	adopted uint64
}

// watcher follows the map.
type watcher struct {
	volumes []cluster.VolumeID
	m       *cluster.Map
	alive   func() bool // false: it is gone for good
	reach   func() bool // false: it cannot be reached now
	held    *bool       // true: a directed schedule keeps the map from it
	adopt   func(*cluster.Map)
	pending bool
	last    int64
}

func newMdm(w *World) *Mdm {
	m := &Mdm{w: w, st: state.New(), m: cluster.NewMap(), up: true}
	m.st.Policy = state.Policy{Evict: w.cfg.Evict, Resync: w.cfg.Resync, Off: w.cfg.Off}
	m.elect()
	return m
}

// elect is a new leader: what the one before remembered is gone, and every lease
// gets a full term.
func (m *Mdm) elect() {
	m.serverUntil, m.learned = map[string]int64{}, map[cluster.DeviceID]uint64{}
	m.sessions = map[cluster.VolumeID]sessionTerm{}
	m.persisted = map[cluster.VolumeID]cluster.Generation{}
	m.care = care{flaps: map[cluster.DeviceID]*flap{}, complaints: map[complaint]*complained{}}
	for _, s := range m.st.Servers() {
		if s.Up {
			m.serverUntil[s.Name] = m.w.now + serverLease
		}
	}
	for _, s := range m.st.Sessions() {
		m.sessions[s.Volume] = sessionTerm{gen: s.Generation, until: m.w.now + sessionLease}
	}
}

func (m *Mdm) time() time.Time { return time.Unix(1_000_000, m.w.now) }

// commit writes a plan. The store is linearizable and has one writer, so that
// what a plan expects always holds.
func (m *Mdm) commit(tx *state.Tx) {
	for _, step := range tx.Steps() {
		m.rev++
		var changes []state.Change
		for _, p := range step.Puts {
			changes = append(changes, state.Change{Key: p.Key, Value: p.Value, Revision: m.rev})
		}
		for _, k := range step.Deletes {
			changes = append(changes, state.Change{Key: k, Revision: m.rev})
		}
		if err := m.st.Apply(changes); err != nil {
			m.w.failf("mdm cannot read what it wrote: %v", err)
			return
		}
	}
	if m.st.MapVersion() == m.m.Version {
		return
	}
	next, err := m.m.Apply(m.st.Delta(m.m.Version, nil))
	if err != nil {
		m.w.failf("mdm's own map: %v", err)
		return
	}
	old := m.m
	m.m = next
	m.w.mapChanged(old, next)
	for _, s := range m.watchers {
		m.push(s)
	}
}

// watch begins to deliver the map, the first one soon.
func (m *Mdm) watch(s *watcher) {
	s.m = cluster.NewMap()
	kept := m.watchers[:0]
	for _, o := range m.watchers {
		if o.alive() {
			kept = append(kept, o)
		}
	}
	m.watchers = append(kept, s)
	m.push(s)
}

// push sends what is new to a watcher; changes that come meanwhile are merged.
func (m *Mdm) push(s *watcher) {
	if s.pending {
		return
	}
	s.pending = true
	w := m.w
	delay := w.between(100*us, 3*ms)
	if w.chance(1, 10) {
		delay = w.between(ms, 300*ms)
	}
	w.after(delay, evMap, 0, func() { m.deliver(s) })
}

func (m *Mdm) deliver(s *watcher) {
	w := m.w
	if !s.alive() {
		return
	}
	if !m.up || !s.reach() || *s.held {
		w.after(200*ms, evMap, 0, func() { m.deliver(s) })
		return
	}
	s.pending = false
	next, err := s.m.Apply(m.st.Delta(s.m.Version, s.volumes))
	if err != nil {
		w.failf("a map delta does not apply: %v", err)
		return
	}
	if next.Version == s.m.Version {
		return
	}
	s.m = next
	s.last = max(s.last, w.now+w.between(50*us, 2*ms))
	w.after(s.last-w.now, evMap, 0, func() {
		if s.alive() {
			s.adopt(next)
		}
	})
}

// call is one RPC: do runs at the manager, then at the caller. Either the
// request or the answer may get lost, and the caller cannot tell which.
func (m *Mdm) call(who uint32, reach func() bool, do func() error, then func(error)) {
	w := m.w
	lost := func() { w.after(s1, evRPC, who, func() { then(errTimeout) }) }
	w.after(w.between(80*us, 2*ms), evRPC, who, func() {
		if !m.up || !reach() || w.chance(w.cfg.Faults.LostRPC, 100) {
			lost()
			return
		}
		err := do()
		if w.chance(w.cfg.Faults.LostRPC, 100) || m.mute > 0 {
			m.mute = max(m.mute-1, 0)
			w.mark("unknown CAS outcome")
			lost()
			return
		}
		w.after(w.between(80*us, 2*ms), evRPC, who, func() { then(err) })
	})
}

// tick looks for leases that ran out.
func (m *Mdm) tick() {
	w := m.w
	w.after(500*ms, evRPC, 0, m.tick)
	if m.up {
		m.expire()
		m.tend()
	}
}

func (m *Mdm) expire() {
	w := m.w
	var names []string
	for _, n := range w.nodes {
		if until, ok := m.serverUntil[n.name]; ok && until < w.now {
			delete(m.serverUntil, n.name)
			names = append(names, n.name)
			w.mark("server lease ran out")
			w.logf("mdm: the lease of server %s ran out", n.name)
		}
	}
	if len(names) > 0 {
		m.commit(m.st.Expire(names, m.time()))
	}
	for _, v := range w.volumes {
		if x, ok := m.sessions[v.id]; ok && x.until < w.now {
			delete(m.sessions, v.id)
			w.mark("session lease ran out")
			w.logf("mdm: the lease of the session of %s ran out", v.name)
			m.commit(m.st.ExpireSessions([]cluster.VolumeID{v.id}, m.time()))
		}
	}
}

func (n *Node) reach() bool { return !n.cutOff }

func (n *Node) deviceReport() state.DeviceReport {
	r := state.DeviceReport{UUID: n.uuid, Path: "/dev/" + n.name, Size: uint64(n.disk.Size()),
		Incarnation: n.core.Incarnation(), StartCounter: n.core.Identity().Starts,
		StartID: n.core.Identity().StartID}
	if n.state == nodeFailed {
		r.Failed = n.core.Err().Error()
	}
	return r
}

func (n *Node) serverReport() state.ServerReport {
	return state.ServerReport{Name: n.name, Addr: n.name + ":7420", Cluster: clusterID,
		Devices: []state.DeviceReport{n.deviceReport()}}
}

// register makes the node known, begins to follow the map and keeps the lease.
func (n *Node) register() {
	m, life := n.w.mdm, n.life
	report := n.serverReport()
	gens := map[cluster.VolumeID]cluster.Generation{}
	n.core.Generations(func(id cluster.VolumeID, gen cluster.Generation) { gens[id] = gen })
	adopted := n.gate.Adopted()
	var answer state.Registered
	var lease uint64
	m.call(n.id, n.reach, func() error {
		lease = uint64(m.rev)
		tx, a, err := m.st.Register(report, lease, m.time())
		if err != nil {
			return err
		}
		answer = a
		m.serverUntil[n.name] = n.w.now + serverLease
		m.notePersisted(gens)
		m.commit(tx)
		if id := a.Devices[0]; id != 0 {
			m.learned[id] = adopted
		}
		m.tend()
		return nil
	}, func(err error) {
		if n.life != life {
			return
		}
		if err != nil || answer.Devices[0] == 0 {
			n.w.after(n.w.between(100*ms, s1), evRPC, n.id, func() {
				if n.life == life {
					n.register()
				}
			})
			return
		}
		n.lease, n.dev = lease, answer.Devices[0]
		if n.sub == nil {
			n.sub = &watcher{alive: func() bool { return n.life == life }, reach: n.reach, held: &n.mapHeld,
				adopt: n.learn}
			m.watch(n.sub)
		}
		n.renewLater(life, serverLease/3)
	})
}

func (m *Mdm) notePersisted(gens map[cluster.VolumeID]cluster.Generation) {
	for id, gen := range gens {
		m.persisted[id] = max(m.persisted[id], gen)
	}
}

func (n *Node) renewLater(life int, d int64) {
	n.w.after(d, evRPC, n.id, func() {
		if n.life == life {
			n.renew(life)
		}
	})
}

func (n *Node) renew(life int) {
	m := n.w.mdm
	report, lease, adopted := n.deviceReport(), n.lease, n.gate.Adopted()
	n.told = adopted
	known := true
	m.call(n.id, n.reach, func() error {
		known = m.renewed(n, report, lease, adopted)
		return nil
	}, func(err error) {
		switch {
		case n.life != life:
		case err != nil:
			n.renewLater(life, s1/2)
		case !known:
			n.register()
		default:
			n.renewLater(life, serverLease/3)
		}
	})
}

// renewed takes a renewal; false: the lease is not known.
func (m *Mdm) renewed(n *Node, report state.DeviceReport, lease, adopted uint64) bool {
	tx, known := m.st.Renew(n.name, lease, []state.DeviceReport{report}, m.time())
	if known {
		m.serverUntil[n.name] = n.w.now + serverLease
		m.learned[n.dev] = adopted
		m.commit(tx)
		m.tend()
	}
	return known
}

// report tells the manager at once what has happened to the device.
func (n *Node) report() {
	life := n.life
	report, lease, adopted := n.deviceReport(), n.lease, n.gate.Adopted()
	n.told = adopted
	m := n.w.mdm
	m.call(n.id, n.reach, func() error {
		m.renewed(n, report, lease, adopted)
		return nil
	}, func(err error) {
		if err != nil && n.life == life {
			n.w.after(s1/2, evRPC, n.id, func() {
				if n.life == life {
					n.report()
				}
			})
		}
	})
}

// farewell is what a node says that stopped cleanly.
func (m *Mdm) farewell(n *Node) {
	lease := n.lease
	m.call(n.id, n.reach, func() error {
		if _, known := m.st.Renew(n.name, lease, nil, m.time()); known {
			delete(m.serverUntil, n.name)
			m.commit(m.st.Expire([]string{n.name}, m.time()))
			m.tend()
		}
		return nil
	}, func(error) {})
}

// makeVolumes creates the volumes when all devices are there.
func (m *Mdm) makeVolumes() {
	for _, v := range m.w.volumes {
		tx, vol, _, err := m.st.CreateVolume(state.VolumeSpec{Name: v.name, Size: v.size,
			Replicas: m.w.cfg.Replicas, StripeUnit: v.unit, StripeWidth: v.width, BlockSize: 4096}, m.time())
		if err != nil {
			m.w.failf("create volume %s: %v", v.name, err)
			return
		}
		v.id = vol.ID
		m.commit(tx)
	}
}

// attach is the client's call.
func (m *Mdm) attach(c *Client, then func(*attached, error)) {
	v := c.vol
	request := fmt.Sprintf("%s-%d-%d", c.name, c.number, c.attempt)
	var out *attached
	m.call(c.who(), c.reach, func() error {
		m.expire()
		m.tend()
		progress := m.progress()
		tx, vol, session, err := m.st.Attach(state.AttachRequest{Volume: v.name, Client: c.name,
			Host: c.host, Request: request, Force: c.force, GuestAlive: c.alive, Progress: progress},
			func(id cluster.VolumeID) cluster.Generation { return m.persisted[id] }, m.time())
		if err != nil {
			return err
		}
		before := m.st.Before(vol, progress)
		m.commit(tx)
		m.sessions[v.id] = sessionTerm{gen: session.Generation, until: m.w.now + sessionLease}
		mp, err := cluster.NewMap().Apply(m.st.Delta(0, []cluster.VolumeID{v.id}))
		if err != nil {
			m.w.failf("map at attach: %v", err)
			return err
		}
		out = &attached{gen: session.Generation, m: mp, volume: mp.Volumes[vol.ID], before: before}
		return nil
	}, func(err error) { then(out, err) })
}

// attached is what a client learns at its attach.
type attached struct {
	gen    cluster.Generation
	volume *cluster.Volume
	m      *cluster.Map
	before state.Before
}

// renewSession keeps the lease of a client.
func (m *Mdm) renewSession(c *Client, then func(error)) {
	v, gen, adopted, sound := c.vol, c.gen, c.adopted(), c.core.Sound()
	m.call(c.who(), c.reach, func() error {
		if !m.st.Holds(v.id, c.name, gen) {
			return errGone
		}
		m.sessions[v.id] = sessionTerm{gen: gen, until: m.w.now + sessionLease, adopted: adopted}
		if sound > 0 {
			m.commit(m.st.Sound(v.id, gen, sound, m.time()))
		}
		return nil
	}, then)
}

func (m *Mdm) dropReplica(c *Client, dev cluster.DeviceID, why string, then func([]cluster.PGID, error)) {
	v, gen := c.vol, c.gen
	var last []cluster.PGID
	m.call(c.who(), c.reach, func() error {
		tx, _, l, err := m.st.DropReplica(v.id, gen, dev, why, m.time())
		if err != nil {
			return err
		}
		last = l
		m.commit(tx)
		return nil
	}, func(err error) { then(last, err) })
}

func (m *Mdm) detach(c *Client, then func(error)) {
	v, gen := c.vol, c.gen
	m.call(c.who(), c.reach, func() error {
		tx, err := m.st.Detach(v.name, c.name, gen, m.time())
		if err != nil {
			return err
		}
		delete(m.sessions, v.id)
		m.commit(tx)
		return nil
	}, then)
}
