// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"

	"braid/cluster"
	"braid/mdm/state"
	"braid/server/resync"
)

// care is what the leader remembers for the care for copies: package mdm has the
// same around the same plans.
type care struct {
	flaps      map[cluster.DeviceID]*flap
	complaints map[complaint]*complained
}

// flap counts how often a device became a target lately.
type flap struct {
	count int
	until int64
}

type complaint struct {
	device cluster.DeviceID
	volume cluster.VolumeID
}

type complained struct{ first, last int64 }

const (
	reportTerm  = 2 * s1
	reportGap   = 3 * s1
	firstHold   = 300 * ms
	longestHold = 3 * s1
)

// tend plans what follows for the groups from what is known by now.
func (m *Mdm) tend() {
	if m.idle {
		return
	}
	m.commit(m.st.Settle(m.time()))
	tx, targets := m.st.Announce(func(id cluster.DeviceID) bool {
		f := m.care.flaps[id]
		return f != nil && m.w.now < f.until
	}, m.time())
	m.hold(targets)
	m.commit(tx)
}

func (m *Mdm) hold(ids []cluster.DeviceID) {
	for _, id := range ids {
		f := m.care.flaps[id]
		if f == nil {
			f = &flap{}
			m.care.flaps[id] = f
		}
		f.until = m.w.now + min(firstHold<<min(f.count, 8), longestHold)
		f.count++
	}
}

func (m *Mdm) progress() state.Progress {
	p := state.Progress{Devices: map[cluster.DeviceID]uint64{}, Sessions: map[cluster.VolumeID]state.SessionProgress{}}
	for id, v := range m.learned {
		p.Devices[id] = v
	}
	for id, x := range m.sessions {
		p.Sessions[id] = state.SessionProgress{Generation: x.gen, Adopted: x.adopted}
	}
	return p
}

// judge decides about a client's report of a device that it cannot reach.
func (m *Mdm) judge(c *Client, dev cluster.DeviceID, faultSets int, attaching bool) error {
	w := m.w
	if err := m.st.MayReport(c.vol.id, c.gen, dev); err != nil {
		return err
	}
	key := complaint{dev, c.vol.id}
	x := m.care.complaints[key]
	if x == nil || w.now-x.last > reportGap {
		x = &complained{first: w.now}
		m.care.complaints[key] = x
	}
	x.last = w.now
	_, server, up := m.st.Reach(dev)
	n := w.nodeOf(dev)
	if up && n != nil && n.state == nodeDown && !n.silent { // the connection is refused
		w.mark("mdm finds that a process has ended")
		delete(m.serverUntil, server)
		m.commit(m.st.Expire([]string{server}, m.time()))
		m.tend()
		up = false
	}
	switch {
	case attaching:
	case up && faultSets > 1, up && w.now-x.first < reportTerm:
		return nil
	}
	abandoned := cluster.VolumeID(0)
	if held := m.st.Session(c.vol.id); attaching && held != nil && !held.Resumed {
		abandoned = c.vol.id
	}
	tx, evicted, _ := m.st.Evict(dev, "reported", abandoned, m.time())
	if evicted > 0 {
		w.mark("mdm sides with a writer")
	}
	m.commit(tx)
	m.hold([]cluster.DeviceID{dev})
	m.tend()
	return nil
}

// resyncReady answers a node that has running targets.
func (m *Mdm) resyncReady(n *Node, then func([]resync.Ready, error)) {
	dev := n.dev
	var list []resync.Ready
	m.call(n.id, n.reach, func() error {
		for _, x := range m.st.ResyncReady(dev, m.progress()) {
			r := resync.Ready{PG: x.PG, Attempt: x.Epoch}
			for _, s := range x.Sources {
				r.Sources = append(r.Sources, resync.Source{Device: s.Device, Incarnation: s.Incarnation})
			}
			list = append(list, r)
		}
		return nil
	}, func(err error) { then(list, err) })
}

// join is a node's request to be in sync.
func (m *Mdm) join(n *Node, joins []resync.Join, version uint64, then func([]cluster.PGID, error)) {
	dev, inc := n.dev, n.core.Incarnation()
	var groups []state.JoinGroup
	for _, j := range joins {
		groups = append(groups, state.JoinGroup{PG: j.PG, Epoch: j.Attempt})
	}
	var refused []cluster.PGID
	m.call(n.id, n.reach, func() error {
		tx, no, later := m.st.JoinInSync(dev, inc, groups, version, m.time())
		refused = slices.Concat(no, later)
		if !tx.Empty() {
			m.w.mark("copies joined")
		}
		m.commit(tx)
		m.tend()
		return nil
	}, func(err error) { then(refused, err) })
}
