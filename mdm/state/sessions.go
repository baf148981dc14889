// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"time"

	"braid/cluster"
)

// AttachRequest asks for a volume's one session.
type AttachRequest struct {
	Volume     string // empty: the only one
	Client     string
	Host       string
	Request    string // unique per attempt; a repeated call gets the same session
	Force      bool
	GuestAlive bool
	ReadOnly   bool
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
		op = "attach"
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
	held := s.sessions[v.ID]
	switch {
	case held == nil:
	case r.Request != "" && held.Request == r.Request && held.Client == r.Client:
		return tx, v, held, nil // the answer got lost, the session is there
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
	next := *v
	next.Generation = max(v.Generation, persisted(v.ID)) + 1
	session := &Session{Volume: v.ID, Client: r.Client, Host: r.Host, Generation: next.Generation,
		ReadOnly: r.ReadOnly, Request: r.Request, Since: tx.now}
	tx.put(volumeKey(v.ID), next)
	tx.put(sessionKey(v.ID), session)
	tx.event(Info, "attached", v.Name, "volume %s was attached by host %s (client %s), generation %d",
		v.Name, r.Host, r.Client, next.Generation)
	return tx, &next, session, nil
}

// Detach plans the end of a session; one that is gone already, or that somebody
// else has by now, needs nothing.
func (s *State) Detach(name, client string, gen cluster.Generation, now time.Time) (*Tx, error) {
	v, err := s.named("detach volume "+name, name)
	if err != nil {
		return nil, err
	}
	tx := s.Begin(now)
	held := s.sessions[v.ID]
	if held != nil && held.Client == client && (gen == 0 || held.Generation == gen) {
		tx.remove(sessionKey(v.ID))
		tx.event(Info, "detached", v.Name, "volume %s was detached by host %s", v.Name, held.Host)
	}
	return tx, nil
}

// Holds reports whether the client has the volume's session under that
// generation.
func (s *State) Holds(id cluster.VolumeID, client string, gen cluster.Generation) bool {
	held := s.sessions[id]
	return held != nil && held.Client == client && held.Generation == gen
}

// ExpireSessions plans the end of sessions whose lease ran out.
func (s *State) ExpireSessions(ids []cluster.VolumeID, now time.Time) *Tx {
	tx := s.Begin(now)
	for _, id := range ids {
		held, v := s.sessions[id], s.volumes[id]
		if held == nil {
			continue
		}
		tx.remove(sessionKey(id))
		if v != nil {
			tx.event(Warning, "session-expired", v.Name, "host %s (client %s) does not renew its lease "+
				"of volume %s any more: the volume can be attached again", held.Host, held.Client, v.Name)
		}
	}
	return tx
}

// DropReplica plans taking a device out of the in-sync sets of a volume's
// groups, on the word of the client that writes to it (rule 16: stale before
// the ack). A group's last in-sync copy stays: there mdm cannot help.
func (s *State) DropReplica(id cluster.VolumeID, gen cluster.Generation, device cluster.DeviceID,
	reason string, now time.Time) (tx *Tx, dropped, last []cluster.PGID, err error) {
	v := s.volumes[id]
	if v == nil {
		return nil, nil, nil, refuse(ErrNotFound, "drop device %d: there is no volume %d", device, id)
	}
	held := s.sessions[id]
	if held == nil || held.Generation != gen {
		return nil, nil, nil, refuse(ErrRefused, "drop device %d from the groups of volume %s: "+
			"generation %d is not the one that has it attached; attach it again", device, v.Name, gen)
	}
	tx = s.Begin(now)
	d := s.groupsToDrop(device, &v.PGSet)
	d.put(tx)
	for _, pg := range d.dropped {
		dropped = append(dropped, pg.ID)
	}
	for _, pg := range d.last {
		last = append(last, pg.ID)
	}
	if len(dropped) > 0 {
		tx.event(Warning, "replica-dropped", v.Name, "device %d is no longer in sync in %d groups, and "+
			"the last copy of %d: %s", device, len(dropped), len(last), reason)
	}
	return tx, dropped, last, nil
}
