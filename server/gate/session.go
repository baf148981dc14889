// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// MaxSessions bounds the volume sessions of all connections of a device.
const (
	MaxSessions      = 1 << sessionIndexBits
	sessionIndexBits = 10
)

// ConnID names a connection. The caller never uses one again; 0 is none.
type ConnID uint64

// session is one volume opened on one connection, under one generation. Its
// handle stands for all three in each frame.
type session struct {
	handle   uint32 // 0: the entry is free
	volume   cluster.VolumeID
	gen      cluster.Generation
	conn     ConnID
	layout   *cluster.Volume // as of the open; what places a chunk never changes
	link     uint8           // which of the client's connections to this device
	readOnly bool
	fenced   bool // a newer generation has taken over
	reuse    uint32
}

// sessionTable holds every session of a device. The low bits of a handle are an
// index, the others count the uses of the entry, so that an old handle never
// reaches a new session.
type sessionTable struct {
	entries []session
	free    []uint32
}

func (t *sessionTable) init(n int) {
	t.entries = make([]session, n)
	t.free = make([]uint32, 0, n)
	for i := n - 1; i >= 0; i-- {
		t.free = append(t.free, uint32(i))
	}
}

// entry returns the session of a handle that came on a connection, or nil.
func (t *sessionTable) entry(conn ConnID, handle uint32) *session {
	i := handle & (1<<sessionIndexBits - 1)
	if handle == 0 || int(i) >= len(t.entries) {
		return nil
	}
	if s := &t.entries[i]; s.handle == handle && s.conn == conn {
		return s
	}
	return nil
}

func (t *sessionTable) remove(s *session) {
	t.free = append(t.free, s.handle&(1<<sessionIndexBits-1))
	s.handle, s.conn, s.layout = 0, 0, nil
}

// find returns a session that may make requests.
func (g *Gate) find(conn ConnID, handle uint32) (*session, transport.Status) {
	s := g.sessions.entry(conn, handle)
	switch {
	case s == nil:
		return nil, transport.StatusNoSession
	case s.fenced:
		return nil, transport.StatusFenced
	}
	return s, transport.StatusOK
}

// Opener is who opens or fences a volume.
type Opener struct {
	Conn  ConnID
	Link  uint8 // numbers a client's parallel connections, so that a new one replaces its predecessor and no other
	Fence bool  // OpFence: no session is opened
}

// OpenBegin is the first step of an open or a fence (rule 14): sessions that it
// ends are not served from now on. With StatusOK, OpFence follows at the store,
// which drains what was admitted and persists the generation, and then OpenEnd.
// persisted is the generation that the store has.
func (g *Gate) OpenBegin(o Opener, r *transport.OpenRequest, persisted cluster.Generation) transport.Status {
	if r.Volume == 0 || r.Generation == 0 {
		return transport.StatusInvalid
	}
	volume, gen := cluster.VolumeID(r.Volume), cluster.Generation(r.Generation)
	if status := g.mayOpen(volume, gen, persisted); status != transport.StatusOK {
		return status
	}
	g.fence(volume, gen, &o)
	return transport.StatusOK
}

// mayOpen says whether a generation may open a volume. A server that has no map
// yet does not know what is newest: after a restart it relearns the generations
// before it serves (rule 14).
func (g *Gate) mayOpen(volume cluster.VolumeID, gen, persisted cluster.Generation) transport.Status {
	m := g.current
	switch {
	case m == nil:
		return transport.StatusRetry
	case gen < persisted:
		return transport.StatusFenced
	case m.Removed[volume]:
		return transport.StatusRefused
	}
	v := m.Volumes[volume]
	if v == nil {
		return transport.StatusRetry // created a moment ago, or never
	}
	if gen < v.Generation {
		return transport.StatusFenced
	}
	return transport.StatusOK
}

// fence stops the sessions of a volume that a new generation ends. An opener
// also ends the session of the same generation and link: a client that opens
// anew has given up its old connection, whose late frames must not be served
// after the new one's (rule 14, also on reconnect). Such a session is answered
// with StatusNoSession, as its client may well read that reply; only a newer
// generation tells it that the volume is lost.
func (g *Gate) fence(volume cluster.VolumeID, gen cluster.Generation, o *Opener) {
	if g.off.Has(rules.Fence) {
		return
	}
	for i := range g.sessions.entries {
		s := &g.sessions.entries[i]
		switch {
		case s.handle == 0 || s.volume != volume:
		case s.gen < gen:
			s.fenced = true
		case s.gen == gen && o != nil && !o.Fence && s.link == o.Link:
			g.sessions.remove(s)
		}
	}
}

// OpenEnd is the last step of an open or a fence, when the store has drained and
// persisted with that outcome. It returns the handle of the new session, 0 for a
// fence, and what to reply.
func (g *Gate) OpenEnd(o Opener, r *transport.OpenRequest, persisted cluster.Generation,
	outcome transport.Status) (handle uint32, status transport.Status) {
	volume, gen := cluster.VolumeID(r.Volume), cluster.Generation(r.Generation)
	if outcome != transport.StatusOK {
		return 0, outcome
	}
	g.raise(volume, gen)
	if o.Fence {
		return 0, transport.StatusOK
	}
	// While the store drained, a newer generation may have come.
	if status := g.mayOpen(volume, gen, persisted); status != transport.StatusOK {
		return 0, status
	}
	g.fence(volume, gen, &o)
	s := g.addSession(o, r)
	if s == nil {
		return 0, transport.StatusRetry
	}
	return s.handle, transport.StatusOK
}

// addSession returns nil when there are too many.
func (g *Gate) addSession(o Opener, r *transport.OpenRequest) *session {
	t := &g.sessions
	if len(t.free) == 0 {
		return nil
	}
	i := t.free[len(t.free)-1]
	t.free = t.free[:len(t.free)-1]
	s := &t.entries[i]
	s.reuse = (s.reuse + 1) & (1<<(32-sessionIndexBits) - 1)
	if s.reuse == 0 {
		s.reuse = 1 // a handle is never 0
	}
	*s = session{handle: s.reuse<<sessionIndexBits | i, reuse: s.reuse, conn: o.Conn, link: o.Link,
		volume: cluster.VolumeID(r.Volume), gen: cluster.Generation(r.Generation),
		readOnly: r.ReadOnly, layout: g.current.Volumes[cluster.VolumeID(r.Volume)]}
	return s
}

// CloseSession ends a session at once: what the store still has of it goes on,
// and the next open waits for it.
func (g *Gate) CloseSession(conn ConnID, handle uint32) transport.Status {
	s := g.sessions.entry(conn, handle)
	if s == nil {
		return transport.StatusNoSession
	}
	g.sessions.remove(s)
	return transport.StatusOK
}

// ConnClosed ends every session of a connection.
func (g *Gate) ConnClosed(conn ConnID) {
	for i := range g.sessions.entries {
		if s := &g.sessions.entries[i]; s.handle != 0 && s.conn == conn {
			g.sessions.remove(s)
		}
	}
}

// FenceVolume ends every session of a volume that is being deleted.
func (g *Gate) FenceVolume(volume cluster.VolumeID) {
	for i := range g.sessions.entries {
		if s := &g.sessions.entries[i]; s.handle != 0 && s.volume == volume {
			s.fenced = true
		}
	}
}

// Sessions is how many sessions are open.
func (g *Gate) Sessions() int { return len(g.sessions.entries) - len(g.sessions.free) }

// Writer says who has to keep its hands off a chunk of the volume while it is
// copied (rule 12).
type Writer struct {
	Conn   ConnID // 0: it has no connection to this device now
	Handle uint32
	Gen    cluster.Generation
}

// Writer returns the volume's client. needed is false when there is none, and
// then none can come without a fence at this device first: mdm's map says that
// the volume is detached at a generation that is at least the one that this
// device has seen.
//
// A client that has lost its connection to this device is still one: it may
// have heard that this device skips a write that its source has yet to apply.
// A copy that did not wait for its lock would miss that write.
func (g *Gate) Writer(volume cluster.VolumeID, persisted cluster.Generation) (w Writer, needed bool) {
	for i := range g.sessions.entries {
		s := &g.sessions.entries[i]
		if s.handle != 0 && s.volume == volume && !s.fenced && !s.readOnly && s.gen > w.Gen {
			w = Writer{Conn: s.conn, Handle: s.handle, Gen: s.gen}
		}
	}
	if w.Conn != 0 {
		return w, true
	}
	v := g.current.Volumes[volume]
	if v == nil {
		return w, false
	}
	return w, v.Attached || v.Generation < max(persisted, g.gens[volume])
}
