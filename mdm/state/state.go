// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"braid/cluster"
)

// Change is one key that etcd wrote or deleted.
type Change struct {
	Key      string
	Value    []byte // nil: deleted
	Revision int64  // in which it was written or deleted
}

// State is everything below Prefix, decoded.
type State struct {
	Revision int64 // of the newest change applied
	Policy   Policy
	floor    int64 // deltas can start here or later: what was deleted earlier is not known

	mod      map[string]int64 // revision in which each key was written
	identity identity
	counters counters
	members  map[string]*Member
	servers  map[string]*Server
	devices  map[cluster.DeviceID]*Device
	retired  map[cluster.UUID]bool
	volumes  map[cluster.VolumeID]*Volume
	sessions map[cluster.VolumeID]*Session
	removed  map[cluster.VolumeID]*Tombstone
	sets     map[uint32]*cluster.PGSet
	settings *Settings  // nil: the defaults
	pilot    *Autopilot // nil: the defaults
	restored *Restored  // nil: this history began with an empty store
	pages    map[uint32]map[int][]placed
	events   []Event // oldest first

	goneDevices []versioned[cluster.DeviceID] // deleted since floor, oldest first
	goneVolumes []versioned[cluster.VolumeID]
	mapVersion  int64 // revision of the newest change that the map shows
}

// versioned is a part of the map with the revision in which it changed.
type versioned[T any] struct {
	value   T
	version int64
}

// placed is a group with the revisions in which it changed.
type placed struct {
	value     *cluster.PG // as the map shows it
	version   int64       // in which that changed, or a later one
	announced int64       // in which the running target was announced, or a later one
	record    *group
}

// New returns an empty state.
func New() *State {
	return &State{
		mod:      map[string]int64{},
		members:  map[string]*Member{},
		servers:  map[string]*Server{},
		devices:  map[cluster.DeviceID]*Device{},
		retired:  map[cluster.UUID]bool{},
		volumes:  map[cluster.VolumeID]*Volume{},
		sessions: map[cluster.VolumeID]*Session{},
		removed:  map[cluster.VolumeID]*Tombstone{},
		sets:     map[uint32]*cluster.PGSet{},
		pages:    map[uint32]map[int][]placed{},
	}
}

// Load applies everything that etcd holds below Prefix to an empty state. Its
// revision is that of the newest key, which every member sees as well, and not
// that of the whole store, which others may share.
func (s *State) Load(all []Change) error {
	slices.SortStableFunc(all, func(a, b Change) int { return strings.Compare(a.Key, b.Key) })
	if err := s.Apply(all); err != nil {
		return err
	}
	s.floor = s.Revision
	s.mapVersion = s.Revision
	return nil
}

// Apply takes over changes; all of one revision in one call. An error means
// that a record cannot be read: the state is unusable then.
func (s *State) Apply(changes []Change) error {
	for _, c := range changes {
		s.Revision = max(s.Revision, c.Revision)
		if c.Value == nil {
			delete(s.mod, c.Key)
		} else {
			s.mod[c.Key] = c.Revision
		}
		if err := s.apply(c); err != nil {
			return fmt.Errorf("read %s from etcd: %w; was it written by a newer version of mdm?",
				c.Key, err)
		}
	}
	return nil
}

func (s *State) apply(c Change) error {
	kind, name := c.Key, ""
	if i := strings.IndexByte(c.Key[min(len(Prefix), len(c.Key)):], '/'); i >= 0 {
		kind, name = c.Key[:len(Prefix)+i+1], c.Key[len(Prefix)+i+1:]
	}
	switch kind {
	case identityKey:
		return s.applyIdentity(c)
	case countersKey:
		return json.Unmarshal(c.Value, &s.counters)
	case settingsKey:
		return s.applySettings(c)
	case autopilotKey:
		return s.applyAutopilot(c)
	case RestoredKey:
		return s.applyRestored(c)
	case memberPrefix:
		return applyRecord(s.members, name, c.Value)
	case eventPrefix:
		return s.applyEvent(name, c.Value)
	case sessionPrefix:
		id, err := hex[cluster.VolumeID](name)
		return orElse(err, func() error { return applyRecord(s.sessions, id, c.Value) })
	case retiredPrefix:
		uuid, err := cluster.ParseUUID(name)
		if err == nil {
			s.retired[uuid] = c.Value != nil
		}
		return err
	case serverPrefix, devicePrefix, volumePrefix, removedPrefix, setPrefix:
		s.mapVersion = max(s.mapVersion, c.Revision)
		return s.applyMap(kind, name, c)
	case pagePrefix:
		return s.applyPage(name, c)
	}
	return nil // the election's keys
}

// applyMap takes over what the map shows.
func (s *State) applyMap(kind, name string, c Change) error {
	switch kind {
	case serverPrefix:
		return applyRecord(s.servers, name, c.Value)
	case devicePrefix:
		id, err := hex[cluster.DeviceID](name)
		if err == nil && c.Value == nil {
			s.goneDevices = remember(s, s.goneDevices, id, c.Revision)
		}
		return orElse(err, func() error { return applyRecord(s.devices, id, c.Value) })
	case volumePrefix:
		id, err := hex[cluster.VolumeID](name)
		if err == nil && c.Value == nil {
			s.goneVolumes = remember(s, s.goneVolumes, id, c.Revision)
		}
		return orElse(err, func() error { return applyRecord(s.volumes, id, c.Value) })
	case removedPrefix:
		id, err := hex[cluster.VolumeID](name)
		return orElse(err, func() error { return applyRecord(s.removed, id, c.Value) })
	default:
		number, err := hex[uint32](name)
		return orElse(err, func() error { return applyRecord(s.sets, number, c.Value) })
	}
}

// maxGone is how many deletions are remembered for those who are behind.
const maxGone = 4096

// remember adds a deletion. What is forgotten for it raises the floor: who is
// behind that gets a whole map.
func remember[T any](s *State, gone []versioned[T], id T, revision int64) []versioned[T] {
	if len(gone) >= maxGone {
		s.floor = max(s.floor, gone[0].version)
		gone = slices.Clone(gone[1:])
	}
	return append(gone, versioned[T]{id, revision})
}

func (s *State) applyIdentity(c Change) error {
	if err := json.Unmarshal(c.Value, &s.identity); err != nil {
		return err
	}
	if s.identity.Layout > layout {
		return fmt.Errorf("its layout is %d, this mdm knows %d", s.identity.Layout, layout)
	}
	return nil
}

// applyPage keeps the version of groups that stay as they are, so that a change
// of one does not send its page to everybody. Nor does the map get a version that
// shows nothing: what mdm notes about groups for itself concerns nobody else.
func (s *State) applyPage(name string, c Change) error {
	setText, pageText, _ := strings.Cut(name, "/")
	set, err := hex[uint32](setText)
	if err != nil {
		return err
	}
	index, err := hex[int](pageText)
	if err != nil {
		return err
	}
	if c.Value == nil {
		delete(s.pages[set], index)
		s.mapVersion = max(s.mapVersion, c.Revision)
		return nil
	}
	var p page
	if err := json.Unmarshal(c.Value, &p); err != nil {
		return err
	}
	if s.pages[set] == nil {
		s.pages[set] = map[int][]placed{}
	}
	old := s.pages[set][index]
	groups := make([]placed, len(p.Groups))
	for i := range p.Groups {
		g := &p.Groups[i]
		next := placed{value: g.pg(cluster.MakePGID(set, uint32(index*PageSize+i))),
			version: c.Revision, announced: c.Revision, record: g}
		if i < len(old) {
			if samePG(old[i].value, next.value) {
				next.value, next.version = old[i].value, old[i].version
			}
			if was := old[i].record; was.Target == g.Target && was.TargetEpoch == g.TargetEpoch {
				next.announced = old[i].announced
			}
		}
		groups[i] = next
		if next.version == c.Revision {
			s.mapVersion = max(s.mapVersion, c.Revision)
		}
	}
	s.pages[set][index] = groups
	return nil
}

func samePG(a, b *cluster.PG) bool {
	return a.Epoch == b.Epoch && a.Target == b.Target && a.TargetEpoch == b.TargetEpoch &&
		slices.Equal(a.InSync, b.InSync) && slices.Equal(a.Replicas, b.Replicas)
}

func (s *State) applyEvent(name string, value []byte) error {
	seq, err := hex[uint64](name)
	if err != nil {
		return err
	}
	at, found := slices.BinarySearchFunc(s.events, seq, func(e Event, seq uint64) int {
		return int(min(max(int64(e.Seq-seq), -1), 1))
	})
	if value == nil {
		if found {
			s.events = slices.Delete(s.events, at, at+1)
		}
		return nil
	}
	var e Event
	if err := json.Unmarshal(value, &e); err != nil {
		return err
	}
	e.Seq = seq
	if found {
		s.events[at] = e
	} else {
		s.events = slices.Insert(s.events, at, e)
	}
	return nil
}

// applyRecord decodes into a new record: those handed out are never changed.
func applyRecord[K comparable, V any](m map[K]*V, key K, value []byte) error {
	if value == nil {
		delete(m, key)
		return nil
	}
	record := new(V)
	if err := json.Unmarshal(value, record); err != nil {
		return err
	}
	m[key] = record
	return nil
}

func orElse(err error, do func() error) error {
	if err != nil {
		return err
	}
	return do()
}

func hex[T ~uint32 | ~uint64 | ~int](text string) (T, error) {
	n, err := strconv.ParseUint(text, 16, 64)
	if err != nil || uint64(T(n)) != n {
		return 0, fmt.Errorf("%q is not a hexadecimal number of that size", text)
	}
	return T(n), nil
}
