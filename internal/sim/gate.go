// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"braid/cluster"
	"braid/transport"
)

// gate says what a node admits: its sessions and its view of the map.
type gate struct {
	n        *Node
	m        *cluster.Map
	groups   map[cluster.PGID]*groupView
	sessions []*session
	next     uint32
}

type session struct {
	handle uint32
	volume cluster.VolumeID
	gen    cluster.Generation
	conn   *serverConn
	fenced bool
}

type groupView struct {
	epoch    uint32
	inSync   bool
	target   bool
	admitted int
	draining int
}

func newGate(n *Node) *gate {
	return &gate{n: n, groups: map[cluster.PGID]*groupView{}, next: uint32(n.w.rng.IntN(1 << 20))}
}

func (g *gate) learn(m *cluster.Map) {
	g.m = m
	for _, table := range m.PGs {
		for _, pg := range table {
			v := g.groups[pg.ID]
			if v == nil {
				v = &groupView{}
				g.groups[pg.ID] = v
			}
			if pg.Epoch < v.epoch {
				continue
			}
			v.inSync, v.target = pg.Has(g.n.dev), pg.Target == g.n.dev
			if pg.Epoch > v.epoch {
				v.epoch = pg.Epoch
				v.draining += v.admitted
				v.admitted = 0
			}
		}
	}
}

func (g *gate) find(c *serverConn, handle uint32) (*session, transport.Status) {
	for _, s := range g.sessions {
		if s.handle == handle && s.conn == c {
			if s.fenced {
				return nil, transport.StatusFenced
			}
			return s, transport.StatusOK
		}
	}
	return nil, transport.StatusNoSession
}

func (g *gate) mayOpen(volume cluster.VolumeID, gen cluster.Generation) transport.Status {
	switch {
	case g.m == nil || g.m.Volumes[volume] == nil:
		return transport.StatusRetry
	case gen < g.n.core.Generation(volume), gen < g.m.Volumes[volume].Generation:
		return transport.StatusFenced
	}
	return transport.StatusOK
}

// fence stops the sessions that a new generation, or the same client anew, ends.
func (g *gate) fence(volume cluster.VolumeID, gen cluster.Generation, by *serverConn) {
	kept := g.sessions[:0]
	for _, s := range g.sessions {
		switch {
		case s.volume != volume:
		case s.gen < gen:
			s.fenced = true
		case s.gen == gen && s.conn.link == by.link:
			continue
		}
		kept = append(kept, s)
	}
	clear(g.sessions[len(kept):])
	g.sessions = kept
}

func (g *gate) open(c *serverConn, volume cluster.VolumeID, gen cluster.Generation) uint32 {
	g.next++
	g.sessions = append(g.sessions, &session{handle: g.next, volume: volume, gen: gen, conn: c})
	return g.next
}

func (g *gate) removeConn(c *serverConn) {
	kept := g.sessions[:0]
	for _, s := range g.sessions {
		if s.conn != c {
			kept = append(kept, s)
		}
	}
	clear(g.sessions[len(kept):])
	g.sessions = kept
}

func (g *gate) admit(j *job, s *session, reads bool) transport.Status {
	h := &j.head
	if g.m == nil {
		return transport.StatusRetry
	}
	v := g.groups[cluster.PGID(h.PG)]
	switch {
	case v == nil, h.Epoch > v.epoch:
		return transport.StatusRetry
	case h.Epoch < v.epoch:
		return transport.StatusStaleEpoch
	case !v.inSync && !v.target, v.target && reads:
		return transport.StatusRefused
	case v.draining > 0:
		return transport.StatusRetry
	}
	v.admitted++
	j.counted = true
	return transport.StatusOK
}

func (g *gate) done(j *job) {
	if !j.counted {
		return
	}
	j.counted = false
	v := g.groups[cluster.PGID(j.head.PG)]
	if v.epoch == j.head.Epoch && v.admitted > 0 {
		v.admitted--
	} else if v.draining > 0 {
		v.draining--
	}
}
