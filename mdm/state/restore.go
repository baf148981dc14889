// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"time"

	"braid/cluster"
)

// RestoredKey holds the Restored record, where there is one.
const RestoredKey = Prefix + "restored"

// Restored says that this history began with a backup.
//
// Base is added to each of etcd's revisions, so that versions of the map exceed
// every one that was handed out before: a receiver of an older history takes the
// next map for newer than its own, as it is. While Held, nobody gets a map and
// nothing changes, because what the backup says of copies may be old: parts that
// run go on with the map that they have, as they do while mdm is away.
type Restored struct {
	Base    int64     `json:"base"`
	Taken   time.Time `json:"taken"`   // when the backup was
	Version uint64    `json:"version"` // of the map in it
	Loading bool      `json:"loading,omitempty"`
	Held    bool      `json:"held,omitempty"`
}

// By how much a restore passes over numbers that may have been given since the
// backup and that nobody who is there has seen.
const (
	epochGap      = 1 << 16
	generationGap = 1 << 20
	volumeGap     = 1 << 20
	deviceGap     = 100
)

// BackedUp reports whether a key belongs into a backup: what speaks of the running
// members does not.
func BackedUp(key string) bool {
	return key != RestoredKey && !strings.HasPrefix(key, ElectionPrefix) && !strings.HasPrefix(key, memberPrefix)
}

// IdentityKey exists where there is a cluster.
const IdentityKey = identityKey

// Held returns the restore that waits for its confirmation, or nil.
func (s *State) Held() *Restored {
	if s.restored == nil || !s.restored.Held {
		return nil
	}
	return s.restored
}

// Restored returns the restore that this history began with, or nil.
func (s *State) Restored() *Restored { return s.restored }

func (s *State) applyRestored(c Change) error {
	s.restored = nil
	if c.Value == nil {
		return nil
	}
	s.restored = new(Restored)
	return json.Unmarshal(c.Value, s.restored)
}

// Map returns the map as the state shows it.
func (s *State) Map() (*cluster.Map, error) { return cluster.NewMap().Apply(s.Delta(0, nil)) }

// Unheard returns the servers that are up in the map and have not told which map
// they know. One that is down there cannot know more: to come back in sync it needs
// one that is up, which learns of it first (rules 23 and 24).
func (s *State) Unheard(m *cluster.Map, heard map[string]uint64) []string {
	missing := map[string]bool{}
	for _, d := range m.Devices {
		if _, told := heard[d.Server]; d.Up && !told {
			missing[d.Server] = true
		}
	}
	return slices.Sorted(maps.Keys(missing))
}

// Confirm plans the end of a held restore. m is the newest map that any server
// had, or the backup's own where none had a newer one: what changed between backup
// and loss is in it. without are servers whose word is missing: they may have seen
// what nobody else did, or may have missed what others did, so their copies leave
// where another one is in sync, come back by resync, and no session goes on.
func (s *State) Confirm(m *cluster.Map, without []string, now time.Time) (*Tx, error) {
	held := s.Held()
	if held == nil {
		return nil, refuse(ErrRefused, "confirm the restore: none is waiting for it")
	}
	if m.Version >= uint64(held.Base) && m.Version != s.MapVersion() {
		return nil, refuse(ErrRefused, "confirm the restore: a server has version %d of the map, beyond %d, from "+
			"which this restore counts; is the clock of the restoring machine right? Restore again", m.Version,
			held.Base)
	}
	tx := s.Begin(now)
	r := restoring{s: s, m: m, tx: tx, without: map[string]bool{}, forced: len(without) > 0}
	for _, name := range without {
		r.without[name] = true
	}
	r.devices()
	r.volumes()
	for _, number := range slices.Sorted(maps.Keys(m.Sets)) {
		r.set(m.Sets[number])
	}
	r.counters()
	done := *held
	done.Held = false
	tx.put(RestoredKey, done)
	text := "the servers had no newer map"
	if m.Version > held.Version && m.Version < uint64(held.Base) {
		text = "what changed since came from the servers' map"
	}
	if r.forced {
		text += "; not heard: " + strings.Join(without, ", ")
	}
	tx.event(Warning, "restored", "", "the metadata was restored from a backup of %s; %s",
		held.Taken.UTC().Format(time.RFC3339), text)
	return tx, nil
}

// restoring brings the state to what a map says.
type restoring struct {
	s       *State
	m       *cluster.Map
	tx      *Tx
	without map[string]bool
	forced  bool
}

func (r *restoring) devices() {
	servers := map[string]Server{}
	for _, d := range r.m.Devices {
		next := Device{ID: d.ID, UUID: d.UUID}
		if old := r.s.devices[d.ID]; old != nil && old.UUID == d.UUID {
			next = *old
		}
		next.Server, next.Path, next.Size, next.Incarnation = d.Server, d.Path, d.Size, d.Incarnation
		next.Removing = d.Removing
		if d.Up {
			next.Failed, next.FailedAt = "", time.Time{}
		}
		if old := r.s.devices[d.ID]; old == nil || *old != next {
			r.tx.put(deviceKey(d.ID), next)
		}
		server, seen := servers[d.Server]
		if old := r.s.servers[d.Server]; !seen && old != nil {
			server = *old
		}
		server.Name, server.Addr, server.FaultSet = d.Server, d.Addr, d.FaultSet
		server.Up = server.Up || d.Up
		servers[d.Server] = server
	}
	for name, next := range servers {
		old := r.s.servers[name]
		if old == nil || old.Up != next.Up {
			next.Since = r.tx.now
		}
		if old == nil || *old != next {
			r.tx.put(serverKey(name), next)
		}
	}
	for id, d := range r.s.devices {
		if r.m.Devices[id] == nil {
			r.tx.remove(deviceKey(id))
			r.tx.put(retiredKey(d.UUID), map[string]any{"device": id, "path": d.Path, "removed": r.tx.now})
		}
	}
}

func (r *restoring) volumes() {
	for id, v := range r.m.Volumes {
		old := r.s.volumes[id]
		next := Volume{ID: id, Created: r.tx.now}
		if old != nil {
			next = *old
		}
		next.Name, next.Size, next.Replicas, next.PGSet = v.Name, v.Size, v.Replicas, v.PGSet
		next.StripeUnit, next.StripeWidth, next.BlockSize = v.StripeUnit, v.StripeWidth, v.BlockSize
		next.Generation, next.Attached = v.Generation, v.Attached
		r.session(&next, old)
		if old == nil || *old != next {
			r.tx.put(volumeKey(id), next)
		}
	}
	for id, v := range r.s.volumes {
		if r.m.Volumes[id] == nil {
			r.tx.remove(volumeKey(id))
			r.tx.remove(sessionKey(id))
			r.tx.put(removedKey(id), Tombstone{Volume: id, Name: v.Name, Deleted: r.tx.now})
		}
	}
}

// session decides about the client of a volume. It goes on if the map knows it: a
// session that the backup does not have belongs to whoever renews it, since nobody
// else was given its generation. Else what it may have left is for the next attach.
func (r *restoring) session(v, old *Volume) {
	x := r.s.sessions[v.ID]
	same := old != nil && old.Generation == v.Generation && old.Attached == v.Attached
	next := Session{Volume: v.ID, Host: "unknown", Generation: v.Generation, Since: r.tx.now}
	switch {
	case same && !r.forced:
		return
	case v.Attached && !r.forced:
		if x != nil && !x.Dead && x.Generation == v.Generation {
			return
		}
	default:
		next.Dead = true
		v.Generation, v.Attached = v.Generation+generationGap, false
	}
	r.tx.put(sessionKey(v.ID), next)
}

func (r *restoring) set(set *cluster.PGSet) {
	if old := r.s.sets[set.Number]; old == nil || *old != *set {
		r.tx.put(setKey(set.Number), set)
	}
	table := r.m.PGs[set.Number]
	pages := pageCount(set.Count)
	for index := range pages {
		var p page
		for i := index * PageSize; i < min((index+1)*PageSize, len(table)); i++ {
			p.Groups = append(p.Groups, r.group(table[i]))
		}
		r.tx.pages[pageKey(set.Number, index)] = encode(p)
	}
	for index := range r.s.pages[set.Number] {
		if index >= pages {
			r.tx.remove(pageKey(set.Number, index))
		}
	}
}

// group is the record of a group as the map has it, under an epoch that nobody
// has seen. A target starts over.
func (r *restoring) group(pg *cluster.PG) group {
	var g group
	old := r.s.record(pg.ID)
	if old != nil {
		g = *old
	}
	out := append(slices.Clone(g.Out), g.InSync...)
	out = append(out, g.Target, pg.Target)
	if old == nil || old.Epoch != pg.Epoch {
		g.Joined, g.Want = nil, nil
		for _, id := range pg.InSync {
			var joined cluster.Incarnation
			if d := r.m.Devices[id]; d != nil {
				joined = d.Incarnation
			}
			g.Joined = append(g.Joined, joined)
		}
		if pg.LostEpoch != g.LostEpoch {
			g.Lost, g.LostEpoch = r.s.Revision, pg.LostEpoch
		}
	}
	g.Replicas, g.InSync = slices.Clone(pg.Replicas), slices.Clone(pg.InSync)
	g.Joined = slices.Clone(g.Joined)
	for len(g.Joined) < len(g.InSync) {
		g.Joined = append(g.Joined, 0)
	}
	r.leave(&g)
	g.Target, g.TargetEpoch, g.TargetInc = 0, 0, 0
	g.Epoch = max(g.Epoch, pg.Epoch) + epochGap
	g.Out = nil
	for _, id := range append(out, pg.InSync...) {
		if id != 0 && !slices.Contains(g.InSync, id) && !slices.Contains(g.Out, id) {
			g.Out = append(g.Out, id)
		}
	}
	return g
}

// leave takes the copies of servers that were not heard out of the group, where
// one that was heard stays.
func (r *restoring) leave(g *group) {
	gone := func(id cluster.DeviceID) bool {
		d := r.m.Devices[id]
		return d == nil || r.without[d.Server]
	}
	if !slices.ContainsFunc(g.InSync, func(id cluster.DeviceID) bool { return !gone(id) }) {
		return
	}
	for i := len(g.InSync) - 1; i >= 0; i-- {
		if gone(g.InSync[i]) {
			g.InSync = slices.Delete(g.InSync, i, i+1)
			g.Joined = slices.Delete(g.Joined, i, i+1)
		}
	}
}

// counters never give a number twice, not even one that was given and taken back
// since the backup.
func (r *restoring) counters() {
	next := r.s.counters
	for id := range r.m.Devices {
		next.Device = max(next.Device, id+1)
	}
	for id := range r.m.Volumes {
		next.Volume = max(next.Volume, id+1)
	}
	for number := range r.m.Sets {
		next.Set = max(next.Set, number+1)
	}
	next.Device += deviceGap
	next.Volume += volumeGap
	r.tx.put(countersKey, next)
}

// Adopt plans that a session whose client is not known since a restore belongs to
// the one that renews it.
func (s *State) Adopt(id cluster.VolumeID, client string, gen cluster.Generation, now time.Time) *Tx {
	tx := s.Begin(now)
	if x := s.Session(id); x != nil && x.Client == "" && x.Generation == gen && client != "" {
		next := *x
		next.Client = client
		tx.put(sessionKey(id), next)
	}
	return tx
}
