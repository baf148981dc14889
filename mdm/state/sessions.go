// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"braid/cluster"
	"braid/cluster/rules"
)

// AttachRequest asks for a volume's one session.
type AttachRequest struct {
	Volume     string // empty: the only one
	Client     string
	Host       string
	Request    string // unique per attempt; a repeated call gets the same session
	Force      bool
	GuestAlive bool
	// Continues is the generation of the session whose guest goes on, which has to be
	// the newest that the volume had. 0: the client does not know.
	Continues cluster.Generation
	ReadOnly  bool
	Progress  Progress // as reported up to now
}

func (x *Session) holder() string {
	return fmt.Sprintf("attached on host %s (client %s) since %s", x.Host, x.Client,
		x.Since.Format(time.RFC3339))
}

// Attach plans a new session under a generation that exceeds every one used so
// far: those mdm gave, and persisted, the newest that a device reported (etcd
// may have been restored from a backup; rule 21). A session that exists is
// taken to be alive: expired ones are removed before.
func (s *State) Attach(r AttachRequest, persisted func(cluster.VolumeID) cluster.Generation,
	now time.Time) (*Tx, *Volume, *Session, error) {
	op := "attach volume " + r.Volume
	if r.Volume == "" {
		op = "attach the only volume"
	}
	v, err := s.named(op, r.Volume)
	if err != nil {
		return nil, nil, nil, err
	}
	op = "attach volume " + v.Name
	if r.Client == "" || r.Host == "" {
		return nil, nil, nil, refuse(ErrInvalid, "%s: the request names no client or no host", op)
	}
	tx := s.Begin(now)
	before := s.sessions[v.ID]
	held := s.Session(v.ID)
	switch {
	case held == nil:
	case r.Request != "" && held.Request == r.Request && held.Client == r.Client:
		// The answer got lost, the session is there; caches may be gone since.
		if r.GuestAlive && s.lost(v, held) && !s.Policy.Off.Has(rules.Verifier) {
			return nil, nil, nil, s.unsound(op)
		}
		return tx, v, held, nil
	case r.GuestAlive && held.Client == r.Client && held.Host == r.Host:
		// sdc came back under a kernel device that never went away.
	case r.Force:
		tx.event(Warning, "fenced", v.Name, "volume %s was taken from host %s (client %s) by force, "+
			"for host %s (client %s)", v.Name, held.Host, held.Client, r.Host, r.Client)
	case held.Client == r.Client:
		return nil, nil, nil, refuse(ErrRefused, "%s: this client has it %s; detach it first", op,
			held.holder())
	default:
		return nil, nil, nil, refuse(ErrRefused, "%s: it is %s; detach it there (sdc detach), or take "+
			"it away with --force, which fences that client: its unflushed writes are lost", op,
			held.holder())
	}
	if r.GuestAlive {
		if err := s.mayResume(op, v, before, &r); err != nil {
			return nil, nil, nil, err
		}
	}
	next := *v
	next.Generation, next.Attached = max(v.Generation, persisted(v.ID))+1, true
	session := &Session{Volume: v.ID, Client: r.Client, Host: r.Host, Generation: next.Generation,
		ReadOnly: r.ReadOnly, Request: r.Request, Since: tx.now, Seen: s.MapVersion(), Sound: s.Revision,
		Resumed: r.GuestAlive, Continues: r.Continues}
	if before != nil {
		// What the client before had under way ends when this one has fenced every
		// copy, which its first report of an adopted version says.
		session.Seen = r.Progress.adopted(before)
		if r.GuestAlive {
			session.Sound = before.Sound
		}
	}
	tx.put(volumeKey(v.ID), next)
	tx.put(sessionKey(v.ID), session)
	tx.event(Info, "attached", v.Name, "volume %s was attached by host %s (client %s), generation %d",
		v.Name, r.Host, r.Client, next.Generation)
	return tx, &next, session, nil
}

// mayResume refuses a guest-alive attach when the guest would not find what it left:
// somebody else had the volume since, or acked writes may be lost (rules 5, 6, 28).
// A session that expired meanwhile is no reason: its record stays until the next one.
func (s *State) mayResume(op string, v *Volume, before *Session, r *AttachRequest) error {
	if r.Continues != 0 && (before == nil || !before.is(r)) {
		return refuse(ErrRefused, "%s: it was attached elsewhere since, or anew (generation %d, not %d): what uses "+
			"the device cannot go on; umount and detach it", op, v.Generation, r.Continues)
	}
	if before != nil && s.lost(v, before) && !s.Policy.Off.Has(rules.Verifier) {
		return s.unsound(op)
	}
	return nil
}

// is reports whether the session is the one that a guest goes on from: the very one,
// or one that was to go on from it and whose client died before it could note that.
func (x *Session) is(r *AttachRequest) bool {
	return x.Generation == r.Continues ||
		x.Resumed && x.Continues == r.Continues && x.Client == r.Client && x.Host == r.Host
}

func (s *State) unsound(op string) error {
	return refuse(ErrRefused, "%s: all copies of some of its data restarted without "+
		"their caches, so acknowledged writes that were not flushed may be lost, and the guest "+
		"that wrote them cannot go on as if they were there; give the kernel device up (sdc "+
		"detach), attach anew and mount again: every flushed write is there", op)
}

// Before is what the session before an attach left, where it was not detached
// cleanly.
type Before struct {
	Resume  bool               // no acked write is known to be lost
	Sources []Source           // devices, with the incarnation in which copies there may be sources
	Broken  []BrokenCopy       // in-sync copies there that are no sources all the same
	Fence   []cluster.DeviceID // to fence besides those in sync and the targets
	Wait    time.Duration      // when one of all these cannot be fenced
}

// BrokenCopy is an in-sync copy that lost its cache.
type BrokenCopy struct {
	PG     cluster.PGID
	Device cluster.DeviceID
}

// Before tells what an attach that is planned now has to know.
//
// Fence is rule 26: what was in sync in an epoch since the old session's adopted
// one. As a target comes in sync only after every session has adopted the epoch
// that announced it, each map that the old client may hold names every copy that
// is in sync now, as one or as the target: with these fenced it reads nothing
// after ReadLease, and before that nothing when all of Fence are fenced as well.
func (s *State) Before(v *Volume, p Progress) Before {
	x := s.sessions[v.ID]
	if x == nil {
		return Before{Resume: true}
	}
	b := Before{Resume: !s.lost(v, x), Wait: cluster.ReadLease}
	sound := map[cluster.DeviceID]bool{}
	fence := map[cluster.DeviceID]bool{}
	adopted := p.adopted(x)
	s.each(v.PGSet, func(id cluster.PGID, at *placed) {
		any := false
		for i, h := range s.judge(at.record) {
			device := at.record.InSync[i]
			if h.sound {
				sound[device], any = true, true
			} else {
				b.Broken = append(b.Broken, BrokenCopy{id, device})
			}
		}
		b.Resume = b.Resume && any
		if adopted < uint64(at.version) {
			for _, device := range at.record.Out {
				fence[device] = true
			}
		}
	})
	for _, d := range s.sortedDevices() {
		if sound[d.ID] {
			b.Sources = append(b.Sources, Source{d.ID, d.Incarnation})
		}
	}
	// Also devices that are no longer in the cluster: such a one cannot be fenced, so
	// the attach waits.
	if !s.Policy.Off.Has(rules.AttachFencesAll) {
		b.Fence = slices.Sorted(maps.Keys(fence))
	}
	b.Broken = slices.DeleteFunc(b.Broken, func(x BrokenCopy) bool { return !sound[x.Device] })
	if s.Policy.Off.Has(rules.ZombieReads) {
		b.Wait = 0
	}
	return b
}

// lost reports whether acked writes of the session may be gone: all copies of a
// group were broken at once since its guest began.
func (s *State) lost(v *Volume, x *Session) bool {
	lost := false
	s.each(v.PGSet, func(_ cluster.PGID, at *placed) { lost = lost || at.record.Lost > x.Sound })
	return lost
}

// Sound plans that a session is, on its client's word, not touched by copies
// that lost their caches up to a version of the map: it held all of that version
// and lost no acked write.
func (s *State) Sound(id cluster.VolumeID, gen cluster.Generation, version uint64, now time.Time) *Tx {
	tx := s.Begin(now)
	x, v := s.sessions[id], s.volumes[id]
	if x == nil || v == nil || x.Dead || x.Generation != gen || !s.lost(v, x) {
		return tx
	}
	known := true
	s.each(v.PGSet, func(_ cluster.PGID, at *placed) {
		known = known && (at.record.Lost <= x.Sound || version >= uint64(at.version))
	})
	if known {
		next := *x
		next.Sound = s.Revision
		tx.put(sessionKey(id), next)
	}
	return tx
}

// Detach plans the end of a session that flushed everything; one that is gone
// already, or that somebody else has by now, needs nothing.
func (s *State) Detach(name, client string, gen cluster.Generation, now time.Time) (*Tx, error) {
	return s.end(name, client, gen, false, now)
}

// Abandon plans the end of a session whose acked writes may not be flushed: it
// ends as a dead client's does.
func (s *State) Abandon(name, client string, gen cluster.Generation, now time.Time) (*Tx, error) {
	return s.end(name, client, gen, true, now)
}

func (s *State) end(name, client string, gen cluster.Generation, unflushed bool, now time.Time) (*Tx, error) {
	v, err := s.named("detach volume "+name, name)
	if err != nil {
		return nil, err
	}
	tx := s.Begin(now)
	held := s.Session(v.ID)
	switch {
	case held == nil || held.Client != client || gen != 0 && held.Generation != gen:
	case unflushed:
		s.bury(tx, v, held)
		tx.event(Warning, "detached", v.Name, "volume %s was given up by host %s with writes that may not "+
			"be flushed", v.Name, held.Host)
	default:
		next := *v
		next.Attached = false
		tx.put(volumeKey(v.ID), next)
		tx.remove(sessionKey(v.ID))
		tx.event(Info, "detached", v.Name, "volume %s was detached by host %s", v.Name, held.Host)
	}
	return tx, nil
}

// bury marks a session as dead and fences it: from the generation on that the
// same transaction gives the volume, no server takes anything of it (rule 14).
func (s *State) bury(tx *Tx, v *Volume, x *Session) {
	dead, next := *x, *v
	dead.Dead = true
	next.Generation, next.Attached = v.Generation+1, false
	tx.put(sessionKey(v.ID), dead)
	tx.put(volumeKey(v.ID), next)
}

// Holds reports whether the client has the volume's session under that
// generation.
func (s *State) Holds(id cluster.VolumeID, client string, gen cluster.Generation) bool {
	held := s.Session(id)
	return held != nil && held.Client == client && held.Generation == gen
}

// ExpireSessions plans the end of sessions whose lease ran out.
func (s *State) ExpireSessions(ids []cluster.VolumeID, now time.Time) *Tx {
	tx := s.Begin(now)
	for _, id := range ids {
		held, v := s.Session(id), s.volumes[id]
		if held == nil {
			continue
		}
		if v == nil {
			tx.remove(sessionKey(id))
			continue
		}
		s.bury(tx, v, held)
		tx.event(Warning, "session-expired", v.Name, "host %s (client %s) does not renew its lease "+
			"of volume %s any more: the volume can be attached again", held.Host, held.Client, v.Name)
	}
	return tx
}

// DropReplica plans taking a device out of the in-sync sets of a volume's
// groups, on the word of the client that writes to it (rule 16: stale before
// the ack). A group's last in-sync copy stays, and its last sound one, and all
// where every copy lost its cache: there mdm cannot help.
func (s *State) DropReplica(id cluster.VolumeID, gen cluster.Generation, device cluster.DeviceID,
	reason string, now time.Time) (tx *Tx, dropped, last []cluster.PGID, err error) {
	v := s.volumes[id]
	if v == nil {
		return nil, nil, nil, refuse(ErrNotFound, "drop device %d: there is no volume %d", device, id)
	}
	held := s.Session(id)
	if held == nil || held.Generation != gen {
		return nil, nil, nil, refuse(ErrRefused, "drop device %d from the groups of volume %s: "+
			"generation %d is not the one that has it attached; attach it again", device, v.Name, gen)
	}
	tx = s.Begin(now)
	r := s.regroup()
	s.each(v.PGSet, func(pg cluster.PGID, at *placed) {
		g := at.record
		holds := slices.Contains(g.InSync, device)
		switch {
		case s.Policy.Evict && g.Lost > held.Sound && (holds || slices.Contains(g.Replicas, device)):
			// The copies lost their caches all at once since this session began, and
			// its client says that it had unflushed writes on one: no copy that came
			// in since has them (rules 5, 28).
			last = append(last, pg)
		case !holds:
		case s.mayDrop(g, device):
			r.leave(pg, device)
			dropped = append(dropped, pg)
		default:
			last = append(last, pg)
		}
	})
	r.put(tx)
	if len(dropped) > 0 {
		tx.event(Warning, "replica-dropped", v.Name, "device %d is no longer in sync in %d groups, and "+
			"the last copy of %d: %s", device, len(dropped), len(last), reason)
	}
	return tx, dropped, last, nil
}

// mayDrop reports whether a copy that its client calls broken can leave. Where
// mdm does not evict by itself, copies that restarted stay in the set, and their
// client alone knows which of them lost nothing.
func (s *State) mayDrop(g *group, device cluster.DeviceID) bool {
	if len(g.InSync) < 2 {
		return false
	}
	if !s.Policy.Evict || s.Policy.Off.Has(rules.UnbrokenSource) {
		return true
	}
	for i, h := range s.judge(g) {
		if g.InSync[i] != device && h.sound {
			return true
		}
	}
	return false
}
