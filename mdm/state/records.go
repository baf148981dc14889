// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"fmt"
	"time"

	"braid/cluster"
)

// Where things lie in etcd. Numbers in keys are hexadecimal with leading
// zeroes, so that keys sort as numbers do.
const (
	Prefix         = "/braid/"
	ElectionPrefix = Prefix + "election"
	identityKey    = Prefix + "cluster"
	countersKey    = Prefix + "next"
	memberPrefix   = Prefix + "members/"
	serverPrefix   = Prefix + "servers/"
	devicePrefix   = Prefix + "devices/"
	retiredPrefix  = Prefix + "retired/"
	volumePrefix   = Prefix + "volumes/"
	sessionPrefix  = Prefix + "sessions/"
	removedPrefix  = Prefix + "removed/"
	setPrefix      = Prefix + "sets/"
	pagePrefix     = Prefix + "pgs/"
	eventPrefix    = Prefix + "events/"
	settingsKey    = Prefix + "settings"
	autopilotKey   = Prefix + "autopilot"
)

func serverKey(name string) string          { return serverPrefix + name }
func deviceKey(id cluster.DeviceID) string  { return fmt.Sprintf("%s%08x", devicePrefix, id) }
func retiredKey(uuid cluster.UUID) string   { return retiredPrefix + uuid.String() }
func volumeKey(id cluster.VolumeID) string  { return fmt.Sprintf("%s%016x", volumePrefix, id) }
func sessionKey(id cluster.VolumeID) string { return fmt.Sprintf("%s%016x", sessionPrefix, id) }
func removedKey(id cluster.VolumeID) string { return fmt.Sprintf("%s%016x", removedPrefix, id) }
func setKey(number uint32) string           { return fmt.Sprintf("%s%03x", setPrefix, number) }
func pageKey(set uint32, page int) string   { return fmt.Sprintf("%s%03x/%05x", pagePrefix, set, page) }
func eventKey(seq uint64) string            { return fmt.Sprintf("%s%016x", eventPrefix, seq) }
func memberKey(name string) string          { return memberPrefix + name }

// PageSize is how many placement groups one key holds. The loss of a device
// touches nearly every group: one key each would make transactions of thousands
// of operations, one key for all would rewrite a large value for every change.
const PageSize = 64

// identity is the cluster as a whole.
type identity struct {
	UUID    cluster.UUID `json:"uuid"`
	Layout  int          `json:"layout"` // of the keys below Prefix
	Created time.Time    `json:"created"`
}

// layout is the version of the records below Prefix.
const layout = 1

// counters hold the numbers to give next. They never go back, so that a number
// is never used twice.
type counters struct {
	Device cluster.DeviceID `json:"device"`
	Volume cluster.VolumeID `json:"volume"`
	Set    uint32           `json:"set"`
}

// Member is one metadata manager.
type Member struct {
	Name    string `json:"name"`
	Addr    string `json:"addr"` // HOST:PORT of its API
	Version string `json:"version"`
}

// Server is a data server.
type Server struct {
	Name     string    `json:"name"`
	Addr     string    `json:"addr"`
	FaultSet string    `json:"fault_set"`
	Version  string    `json:"version"`
	LeaseID  uint64    `json:"lease_id"`
	Up       bool      `json:"up"` // its lease is alive; all of its devices go with it
	Since    time.Time `json:"since"`
	// Maintenance: it is away, or will be, as planned: its copies stay where they
	// are and catch up ("short"), or move elsewhere until it ends ("protected").
	// Empty: no.
	Maintenance string `json:"maintenance,omitempty"`
	Drills      bool   `json:"drills,omitempty"` // it takes part in drills
}

// Device is a disk. Address, fault set and whether it is up follow from its
// server.
type Device struct {
	ID           cluster.DeviceID    `json:"id"`
	UUID         cluster.UUID        `json:"uuid"`
	Server       string              `json:"server"`
	Path         string              `json:"path"`
	Size         uint64              `json:"size"`
	Incarnation  cluster.Incarnation `json:"incarnation"`
	StartCounter uint64              `json:"start_counter"`
	StartID      uint64              `json:"start_id,omitempty"`
	Failed       string              `json:"failed,omitempty"`
	FailedAt     time.Time           `json:"failed_at,omitzero"`
	Removing     bool                `json:"removing,omitempty"`    // is emptied, then removed
	RolledBack   bool                `json:"rolled_back,omitempty"` // an older image came back
	Spare        bool                `json:"spare,omitempty"`       // takes no copies yet
	// Scrubbed is when the newest scrub of everything on it that ended began, or when
	// it joined: until then there was nothing on it.
	Scrubbed time.Time `json:"scrubbed,omitzero"`
	// ScrubFrom counts in its place for a device that joined before scrubs were written
	// down: nobody knows when it was read as a whole.
	ScrubFrom time.Time `json:"scrub_from,omitzero"`
	Told      string    `json:"told,omitempty"` // which level of fill an event has told of
}

// Volume is the record of a volume.
type Volume struct {
	ID          cluster.VolumeID   `json:"id"`
	Name        string             `json:"name"`
	Size        uint64             `json:"size"`
	Replicas    int                `json:"replicas"`
	StripeUnit  uint32             `json:"stripe_unit"`
	StripeWidth uint32             `json:"stripe_width"`
	BlockSize   uint32             `json:"block_size"`
	PGSet       uint32             `json:"pg_set"`
	Generation  cluster.Generation `json:"generation"`
	Created     time.Time          `json:"created"`
	Request     string             `json:"request,omitempty"` // makes a repeated create the same volume
	// Attached is in this record, and not only the session's, so that the map's
	// version tells when it changed.
	Attached bool `json:"attached,omitempty"`
}

func (v *Volume) cluster() *cluster.Volume {
	return &cluster.Volume{ID: v.ID, Name: v.Name, Size: v.Size, Replicas: v.Replicas,
		StripeUnit: v.StripeUnit, StripeWidth: v.StripeWidth, BlockSize: v.BlockSize,
		PGSet: v.PGSet, Generation: v.Generation, Attached: v.Attached}
}

// Session is the one attachment of a volume, or what is left of one that was
// not detached cleanly.
type Session struct {
	Volume     cluster.VolumeID   `json:"volume"`
	Client     string             `json:"client"`
	Host       string             `json:"host"`
	Generation cluster.Generation `json:"generation"`
	ReadOnly   bool               `json:"read_only,omitempty"`
	Request    string             `json:"request"` // makes a repeated attach the same attach
	Since      time.Time          `json:"since"`

	// Dead: its lease ran out, or it gave up with acked writes unflushed. The
	// volume's generation exceeds the session's, which fences it. The record stays
	// until the next attach, which has to know what it left.
	Dead bool `json:"dead,omitempty"`
	// Resumed: under a guest that lived on, so that no acked write may be given up.
	Resumed bool `json:"resumed,omitempty"`
	// Continues is the generation that the guest's client named then.
	Continues cluster.Generation `json:"continues,omitempty"`
	// Seen is a map version that this session, and every one before it that may
	// still be around, has adopted for certain.
	Seen uint64 `json:"seen,omitempty"`
	// Sound is the revision after which copies that lose their caches may lose
	// acked writes of this session's guest.
	Sound int64 `json:"sound,omitempty"`
	// Roomless are devices on which its writes found no room, since then: they wait.
	Roomless      []cluster.DeviceID `json:"roomless,omitempty"`
	RoomlessSince time.Time          `json:"roomless_since,omitzero"`
}

// Tombstone remembers a deleted volume until no server holds any of it.
type Tombstone struct {
	Volume  cluster.VolumeID `json:"volume"`
	Name    string           `json:"name"`
	Deleted time.Time        `json:"deleted"`
}

// page is one key's worth of placement groups.
type page struct {
	Groups []group `json:"groups"`
}

// group is a placement group: what the map shows of it, and what only mdm needs.
type group struct {
	Epoch    uint32             `json:"e"`
	Replicas []cluster.DeviceID `json:"r"`
	InSync   []cluster.DeviceID `json:"s"`
	// Want is where the group is to lie, where that is not Replicas.
	Want        []cluster.DeviceID `json:"w,omitempty"`
	Target      cluster.DeviceID   `json:"t,omitempty"`
	TargetEpoch uint32             `json:"te,omitempty"`

	// Joined is the incarnation of each in-sync copy, in the order of InSync, when
	// it came in. A copy whose device has another one by now lost its cache: it is
	// broken. 0: not known yet.
	Joined    []cluster.Incarnation `json:"j,omitempty"`
	TargetInc cluster.Incarnation   `json:"ti,omitempty"`
	// Out are the devices that were in sync in an earlier epoch. A session that
	// has not adopted the group's newest epoch may still read from them.
	Out []cluster.DeviceID `json:"o,omitempty"`
	// Lost is the revision at which every copy was broken, and the state of all
	// was accepted as the new truth: acked writes of sessions of that time that
	// were not flushed are gone. 0: never.
	Lost      int64  `json:"l,omitempty"`
	LostEpoch uint32 `json:"le,omitempty"` // the same for clients
	// Short is since when, in Unix milliseconds, the group has had fewer in-sync
	// copies than it should; 0: it has enough.
	Short int64 `json:"sh,omitempty"`
}

// pg is what the map shows.
func (g *group) pg(id cluster.PGID) *cluster.PG {
	return &cluster.PG{ID: id, Epoch: g.Epoch, Replicas: g.Replicas, InSync: g.InSync,
		Target: g.Target, TargetEpoch: g.TargetEpoch, LostEpoch: g.LostEpoch}
}

// Severities of events.
const (
	Info    = "info"
	Warning = "warning"
	Error   = "error"
)

// Event is something that people may want to know.
type Event struct {
	Seq      uint64    `json:"seq"`
	Time     time.Time `json:"time"`
	Severity string    `json:"severity"`
	Kind     string    `json:"kind"`
	Subject  string    `json:"subject"`
	Text     string    `json:"text"`
}

// encode panics on failure: records are plain structs.
func encode(record any) []byte {
	b, err := json.Marshal(record)
	if err != nil {
		panic(fmt.Sprintf("state: encode %T: %v", record, err))
	}
	return b
}
