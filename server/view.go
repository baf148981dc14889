// SPDX-License-Identifier: Apache-2.0

package server

import (
	"braid/cluster"
	"braid/transport"
)

// role is what the map lets this device do for a placement group.
type role uint8

const (
	roleNone    role = iota // neither in sync nor running target: serves nothing (rule 24)
	roleTarget              // being resynced: takes writes, serves no reads
	roleReplica             // in sync
)

// group is what the device knows of one placement group.
type group struct {
	epoch    uint32
	role     role
	admitted int32 // requests in the store that came under epoch
	draining int32 // those that came under older epochs and have not ended
}

// view is a device's knowledge of the map. Learning an epoch is a fence (rule
// 24): older ones are refused from then on, and requests under the new epoch
// wait until what was admitted under the old one has ended.
//
// It is owned by the device's loop.
type view struct {
	device  cluster.DeviceID
	current *cluster.Map // nil until the first map has come
	sets    map[uint32][]group
	tables  map[uint32][]*cluster.PG // from which sets was made: an unchanged table is skipped
}

func newView() *view {
	return &view{sets: map[uint32][]group{}, tables: map[uint32][]*cluster.PG{}}
}

// learn adopts a map for the device of that number, 0 while it has none.
func (v *view) learn(m *cluster.Map, device cluster.DeviceID) {
	roleChanges := v.device != device
	v.device, v.current = device, m
	for set, table := range m.PGs {
		if !roleChanges && sameTable(v.tables[set], table) {
			continue
		}
		v.learnSet(set, table)
	}
	for set := range v.sets {
		if _, ok := m.PGs[set]; !ok {
			delete(v.sets, set)
			delete(v.tables, set)
		}
	}
}

func (v *view) learnSet(set uint32, table []*cluster.PG) {
	groups := make([]group, len(table))
	copy(groups, v.sets[set])
	for i, pg := range table {
		g := &groups[i]
		if pg == nil || pg.Epoch < g.epoch {
			continue
		}
		g.role = v.roleIn(pg)
		if pg.Epoch > g.epoch {
			g.epoch = pg.Epoch
			g.draining += g.admitted
			g.admitted = 0
		}
	}
	v.sets[set], v.tables[set] = groups, table
}

func (v *view) roleIn(pg *cluster.PG) role {
	switch {
	case v.device == 0:
		return roleNone
	case pg.Has(v.device):
		return roleReplica
	case pg.Target == v.device:
		return roleTarget
	}
	return roleNone
}

// sameTable reports whether a published, hence immutable, table is the one seen
// before.
func sameTable(a, b []*cluster.PG) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// find returns the group of that id, or nil.
func (v *view) find(id cluster.PGID) *group {
	table := v.sets[id.Set()]
	if i := id.Index(); int(i) < len(table) && table[i].epoch != 0 {
		return &table[i]
	}
	return nil
}

// check says whether a request for a group may be admitted now. ahead is true
// when the sender knows a newer map than this device, which then has to fetch it
// before it serves.
func (v *view) check(id cluster.PGID, epoch uint32, read bool) (status transport.Status, ahead bool) {
	if v.current == nil {
		return transport.StatusRetry, true
	}
	g := v.find(id)
	switch {
	case g == nil, epoch > g.epoch:
		return transport.StatusRetry, true
	case epoch < g.epoch:
		return transport.StatusStaleEpoch, false
	case g.role == roleNone, g.role == roleTarget && read:
		return transport.StatusRefused, false
	case g.draining > 0:
		return transport.StatusRetry, false
	}
	return transport.StatusOK, false
}

// admit counts a request that check has let in.
func (v *view) admit(id cluster.PGID) {
	if g := v.find(id); g != nil {
		g.admitted++
	}
}

// done takes back what admit counted.
func (v *view) done(id cluster.PGID, epoch uint32) {
	g := v.find(id)
	switch {
	case g == nil:
	case g.epoch == epoch && g.admitted > 0:
		g.admitted--
	case g.draining > 0:
		g.draining--
	}
}
