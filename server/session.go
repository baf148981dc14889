// SPDX-License-Identifier: Apache-2.0

package server

import (
	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// session is one volume opened on one connection, under one generation. Its
// handle stands for all three in each frame.
type session struct {
	handle   uint32 // 0: the entry is free
	volume   cluster.VolumeID
	gen      cluster.Generation
	conn     *conn
	layout   *cluster.Volume // as of the open; what places a chunk never changes
	link     uint8           // which of the client's connections to this device
	readOnly bool
	fenced   bool // a newer generation, or the same client anew, has taken over
	reuse    uint32
}

// sessionTable holds every session of a device. The low bits of a handle are an
// index, the others count the uses of the entry, so that an old handle never
// reaches a new session.
type sessionTable struct {
	entries [maxSessions]session
	free    []uint32
	open    int
}

const sessionIndexBits = 10 // maxSessions = 1 << sessionIndexBits

func newSessionTable() *sessionTable {
	t := &sessionTable{}
	for i := maxSessions - 1; i >= 0; i-- {
		t.free = append(t.free, uint32(i))
	}
	return t
}

// find returns the session of a handle that came on a connection.
func (t *sessionTable) find(c *conn, handle uint32) (*session, transport.Status) {
	s := &t.entries[handle%maxSessions]
	switch {
	case handle == 0 || s.handle != handle || s.conn != c:
		return nil, transport.StatusNoSession
	case s.fenced:
		return nil, transport.StatusFenced
	}
	return s, transport.StatusOK
}

// add opens a session, or returns nil when there are too many.
func (t *sessionTable) add(c *conn, r transport.OpenRequest) *session {
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
	*s = session{handle: s.reuse<<sessionIndexBits | i, reuse: s.reuse, conn: c,
		link:   c.link(),
		volume: cluster.VolumeID(r.Volume), gen: cluster.Generation(r.Generation), readOnly: r.ReadOnly}
	t.open++
	return s
}

func (t *sessionTable) remove(s *session) {
	t.free = append(t.free, s.handle%maxSessions)
	s.handle, s.conn = 0, nil
	t.open--
}

// removeConn ends every session of a connection.
func (t *sessionTable) removeConn(c *conn) {
	for i := range t.entries {
		if s := &t.entries[i]; s.handle != 0 && s.conn == c {
			t.remove(s)
		}
	}
}

// fence stops the sessions of a volume that a new generation ends. opener, where
// not nil, is the connection that opens the volume; it also ends the session of
// the same generation and link: a client that opens anew has given up its old
// connection, whose late frames must not be served after the new one's (rule
// 14). Such a session is answered with StatusNoSession, as its client may well
// read that reply; only a newer generation tells it that the volume is lost.
func (t *sessionTable) fence(volume cluster.VolumeID, gen cluster.Generation, opener *conn) {
	for i := range t.entries {
		s := &t.entries[i]
		switch {
		case s.handle == 0 || s.volume != volume:
		case s.gen < gen:
			s.fenced = true
		case s.gen == gen && opener != nil && s.link == opener.link():
			t.remove(s)
		}
	}
}

// control starts an open, fence or close request. The order of a fence (rule
// 14): stop admitting, here and at once; drain what the store has and persist
// the generation, in the store; reply, when that is done.
func (d *device) control(s *slot) {
	if status := d.serving(); status != transport.StatusOK {
		d.reply(s, status)
		return
	}
	if s.head.Op == transport.OpClose {
		d.closeSession(s)
		return
	}
	var open transport.OpenRequest
	if s.head.Sums != 0 || open.Decode(s.payload) != nil || open.Volume == 0 || open.Generation == 0 {
		d.reply(s, transport.StatusInvalid)
		return
	}
	volume, gen := cluster.VolumeID(open.Volume), cluster.Generation(open.Generation)
	if status := d.mayOpen(volume, gen); status != transport.StatusOK {
		d.reply(s, status)
		return
	}
	var opener *conn
	if s.head.Op == transport.OpOpen {
		opener = s.conn
	}
	d.sessions.fence(volume, gen, opener)
	s.open = open
	clearRequest(&s.req)
	s.req.Op, s.req.Volume, s.req.Gen = store.OpFence, volume, gen
	d.submit(s)
}

// mayOpen says whether a generation may open a volume. A server that has no map
// yet does not know what is newest (rule 14).
func (d *device) mayOpen(volume cluster.VolumeID, gen cluster.Generation) transport.Status {
	m := d.view.current
	switch {
	case m == nil:
		return transport.StatusRetry
	case gen < d.core.Generation(volume):
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

// fenced ends an open or fence request when the store has drained and persisted.
func (d *device) fenced(s *slot) {
	if s.req.Status != transport.StatusOK || s.head.Op == transport.OpFence || s.conn.closed {
		d.reply(s, s.req.Status)
		return
	}
	// While the store drained, a newer generation may have come.
	if cluster.Generation(s.open.Generation) < d.core.Generation(cluster.VolumeID(s.open.Volume)) {
		d.reply(s, transport.StatusFenced)
		return
	}
	d.sessions.fence(cluster.VolumeID(s.open.Volume), cluster.Generation(s.open.Generation), s.conn)
	sess := d.sessions.add(s.conn, s.open)
	if sess == nil {
		d.reply(s, transport.StatusRetry)
		return
	}
	if sess.layout = d.view.current.Volumes[sess.volume]; sess.layout == nil {
		d.sessions.remove(sess) // deleted meanwhile
		d.reply(s, transport.StatusRefused)
		return
	}
	s.head.Session = sess.handle
	d.reply(s, transport.StatusOK)
}

// closeSession ends a session at once: what the store still has of it goes on,
// and the next open waits for it.
func (d *device) closeSession(s *slot) {
	t := d.sessions
	sess := &t.entries[s.head.Session%maxSessions]
	if s.head.Session == 0 || sess.handle != s.head.Session || sess.conn != s.conn {
		d.reply(s, transport.StatusNoSession)
		return
	}
	t.remove(sess)
	d.reply(s, transport.StatusOK)
}
