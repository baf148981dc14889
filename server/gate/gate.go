// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// Gate is what one device knows of sessions and of the map.
type Gate struct {
	off      rules.Off
	sessions sessionTable
	view
	gens   map[cluster.VolumeID]cluster.Generation // newest seen, of the map or of an open
	raised []cluster.VolumeID
}

// New returns a gate without a map: it admits nothing.
func New(off rules.Off) *Gate {
	g := &Gate{off: off, gens: map[cluster.VolumeID]cluster.Generation{}}
	g.sessions.init(MaxSessions)
	g.view.init()
	return g
}

// Ticket is an admitted request. It is embedded in the caller's.
type Ticket struct {
	Volume cluster.VolumeID
	Gen    cluster.Generation
	// Skip: the request is not for the store. It is answered StatusOK with
	// FlagSkipped, and its chunk is copied later.
	Skip bool
	// Target: the device is being brought in sync, so what it takes is part of a copy.
	Target bool

	pg      cluster.PGID
	epoch   uint32
	turn    uint64
	counted counted
}

// counted says what Done has to take back.
type counted uint8

const (
	notCounted  counted = iota
	countedTurn         // in the view's turn only
	countedBoth         // in its group, too
)

// Counted reports whether Done is still to be called.
func (t *Ticket) Counted() bool { return t.counted != notCounted }

// access is what an op does to the chunks of a group.
type access uint8

const (
	accessNone  access = iota // no group is concerned
	accessRead                // only what is in sync serves it
	accessWrite               // goes to a target too
	accessStamp               // a write that says: this chunk was resolved
)

func accessOf(op transport.Op) access {
	switch op {
	case transport.OpRead, transport.OpStatus, transport.OpCopy, transport.OpSums:
		return accessRead
	case transport.OpWrite, transport.OpTrim, transport.OpZero:
		return accessWrite
	case transport.OpStamp:
		return accessStamp
	}
	return accessNone
}

// Admit says whether a request of a client's session may go to the store now. On
// StatusOK it is counted, until Done.
func (g *Gate) Admit(t *Ticket, conn ConnID, h *transport.Header) transport.Status {
	s, status := g.find(conn, h.Session)
	if status != transport.StatusOK {
		return status
	}
	t.Volume, t.Gen, t.Skip, t.Target = s.volume, s.gen, false, false
	t.pg, t.epoch = cluster.PGID(h.PG), h.Epoch
	a := accessOf(h.Op)
	if a == accessNone {
		// A drained flush lets regions leave the activity log, of all groups. What it
		// promises holds for the copies that the client's map calls in sync, so this
		// device must know at least that map, and has marked by it what is not in sync.
		if h.Op == transport.OpFlush && (g.current == nil || h.Chunk > g.current.Version || g.demoting) {
			return transport.StatusRetry
		}
		g.count(t, countedTurn)
		return transport.StatusOK
	}
	if a >= accessWrite && s.readOnly {
		return transport.StatusRefused
	}
	p, status, _ := g.check(t.pg, h.Epoch, a)
	if status != transport.StatusOK {
		return status
	}
	// A chunk in a group that is not its own would be missed by every later
	// comparison of that group's copies.
	pg := g.current.VolumePG(s.layout, h.Chunk)
	if pg == nil || pg.ID != t.pg {
		return transport.StatusInvalid
	}
	t.Target = p.target != nil
	if t.Target && a != accessRead {
		if status := g.skip(t, p.target, Key{Volume: s.volume, Chunk: h.Chunk}, a); status != transport.StatusOK {
			return status
		}
	}
	p.admitted++
	g.count(t, countedBoth)
	return transport.StatusOK
}

// AdmitPeer is Admit for another server that resyncs from this device. Its
// requests have no session; Interval names the volume. Lists concern all groups:
// the target uses what it may.
func (g *Gate) AdmitPeer(t *Ticket, h *transport.Header) transport.Status {
	t.Volume, t.Gen, t.Skip, t.Target = cluster.VolumeID(h.Interval), 0, false, false
	t.pg, t.epoch = cluster.PGID(h.PG), h.Epoch
	if g.current == nil {
		return transport.StatusRetry
	}
	switch h.Op {
	case transport.OpTags, transport.OpALList:
		g.count(t, countedTurn)
		return transport.StatusOK
	case transport.OpSums, transport.OpCopy:
	default:
		return transport.StatusRefused
	}
	v := g.current.Volumes[t.Volume]
	if v == nil {
		return transport.StatusRefused
	}
	p, status, _ := g.check(t.pg, h.Epoch, accessRead)
	if status != transport.StatusOK {
		return status
	}
	if pg := g.current.VolumePG(v, h.Chunk); pg == nil || pg.ID != t.pg {
		return transport.StatusInvalid
	}
	p.admitted++
	g.count(t, countedBoth)
	return transport.StatusOK
}

// skip decides whether a target applies a live write (rules 11 and 25).
func (g *Gate) skip(t *Ticket, target *Target, k Key, a access) transport.Status {
	if a == accessStamp {
		// Resolving compared and repaired the in-sync copies only. What this device
		// copied before may be unlike them now (rule 27).
		if target.joining {
			return transport.StatusRetry // the answer depends on the outcome
		}
		if !g.off.Has(rules.AttachDirties) {
			target.Mark(k)
		}
		t.Skip = true
		return transport.StatusOK
	}
	if g.off.Has(rules.SkipDirty) || target.isClean(k) {
		return transport.StatusOK
	}
	if !g.off.Has(rules.SkippedDirty) {
		target.Mark(k)
	}
	t.Skip = true
	return transport.StatusOK
}

// Done takes back what Admit counted.
func (g *Gate) Done(t *Ticket) {
	if t.counted == notCounted {
		return
	}
	if t.counted == countedBoth {
		g.uncount(t.pg, t.epoch)
	}
	t.counted = notCounted
	if t.turn == g.turn {
		g.inTurn--
		return
	}
	if g.before--; g.before == 0 {
		g.adopt()
	}
}

func (g *Gate) count(t *Ticket, c counted) {
	t.counted, t.turn = c, g.turn
	g.inTurn++
}

// Confirm answers OpConfirm: whether the session is still the newest (rule 15).
func (g *Gate) Confirm(conn ConnID, handle uint32) transport.Status {
	_, status := g.find(conn, handle)
	return status
}

// Session returns the volume of a session that may make requests.
func (g *Gate) Session(conn ConnID, handle uint32) (cluster.VolumeID, transport.Status) {
	s, status := g.find(conn, handle)
	if status != transport.StatusOK {
		return 0, status
	}
	return s.volume, transport.StatusOK
}

// raise notes a generation that is durable and drained here.
func (g *Gate) raise(volume cluster.VolumeID, gen cluster.Generation) {
	g.gens[volume] = max(g.gens[volume], gen)
	if len(g.targets) > 0 {
		g.raised = append(g.raised, volume)
	}
}

// Raised returns the volumes that were attached since the last call. What their
// older sessions had in flight has ended. Their chunks in this device's own
// activity log are to be marked dirty on every target (rule 27): the old client
// may have reached nobody but this device.
func (g *Gate) Raised() []cluster.VolumeID {
	r := g.raised
	g.raised = nil
	if g.off.Has(rules.AttachDirties) {
		return nil
	}
	return r
}

// Newest is the newest generation of the volume that the map or an open named.
func (g *Gate) Newest(volume cluster.VolumeID) cluster.Generation { return g.gens[volume] }
