// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"maps"
	"slices"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// Role is what the map lets this device do for a placement group.
type Role uint8

// The roles.
const (
	RoleNone    Role = iota // neither in sync nor running target: serves nothing (rule 24)
	RoleTarget              // being resynced: takes writes, serves no reads
	RoleReplica             // in sync
)

func (r Role) String() string { return [...]string{"none", "target", "replica"}[r] }

// group is what the device knows of one placement group.
type group struct {
	epoch    uint32
	role     Role
	admitted int32   // requests in the store that came under epoch
	draining int32   // those that came under older epochs and have not ended
	target   *Target // where role is RoleTarget
}

// view is a device's knowledge of the map. Learning an epoch is a fence (rule
// 24): older ones are refused from then on, and requests under the new epoch
// wait until what was admitted under the old one has ended.
type view struct {
	device  cluster.DeviceID
	current *cluster.Map // nil until the first map has come
	sets    map[uint32][]group
	tables  map[uint32][]*cluster.PG // from which sets was made: an unchanged table is skipped
	targets []*Target                // in the order of their announcement
	// demoted: see Demoted; demoting: the map that demoted is not adopted yet.
	demoted, demoting bool

	// Every request is counted in the turn in which it was admitted, and each Learn
	// starts a turn; before counts those of all older turns. When it is 0 the
	// current map is adopted: nothing runs that an older one admitted.
	turn           uint64
	inTurn, before int
	adopted        uint64
	rising         []cluster.VolumeID // attached by a map that is not adopted yet
}

func (v *view) init() {
	v.sets, v.tables = map[uint32][]group{}, map[uint32][]*cluster.PG{}
	v.demoted = true // what the log holds from before the start
}

// Learn takes a map for the device of that number, 0 while it has none. Sessions
// that the map's generations end are not served any more.
func (g *Gate) Learn(m *cluster.Map, device cluster.DeviceID) {
	moved := g.device != device
	g.device, g.current = device, m
	for _, set := range slices.Sorted(maps.Keys(m.PGs)) {
		if table := m.PGs[set]; moved || !sameTable(g.tables[set], table) {
			g.learnSet(set, table)
		}
	}
	for set := range g.sets {
		if _, ok := m.PGs[set]; !ok {
			delete(g.sets, set)
			delete(g.tables, set)
			g.demoted = true
		}
	}
	g.pruneTargets()
	g.learnGenerations(m)
	g.demoting = g.demoting || g.demoted
	g.turn++
	g.before += g.inTurn
	g.inTurn = 0
	if g.before == 0 {
		g.adopt()
	}
}

// learnGenerations fences what mdm has fenced: a session that the map's
// generation has overtaken, whether or not its successor has come here yet. What
// it has in flight ends before the map counts as adopted.
func (g *Gate) learnGenerations(m *cluster.Map) {
	var risen map[cluster.VolumeID]bool
	for i := range g.sessions.entries {
		s := &g.sessions.entries[i]
		if s.handle == 0 {
			continue
		}
		if v := m.Volumes[s.volume]; v != nil && s.gen < v.Generation && !g.off.Has(rules.Fence) {
			s.fenced = true
		}
	}
	for id, v := range m.Volumes {
		if v.Generation > g.gens[id] {
			g.gens[id] = v.Generation
			if len(g.targets) > 0 {
				if risen == nil {
					risen = map[cluster.VolumeID]bool{}
				}
				risen[id] = true
			}
		}
	}
	for id := range g.gens {
		if m.Removed[id] {
			delete(g.gens, id)
		}
	}
	g.rising = appendSorted(g.rising, risen)
}

func (g *Gate) learnSet(set uint32, table []*cluster.PG) {
	groups := make([]group, len(table))
	copy(groups, g.sets[set])
	for i, pg := range table {
		p := &groups[i]
		if pg == nil || pg.Epoch < p.epoch {
			continue
		}
		was := p.role
		p.role = g.roleIn(pg)
		if pg.Epoch > p.epoch {
			p.epoch = pg.Epoch
			p.draining += p.admitted
			p.admitted = 0
		}
		if p.role != RoleReplica && (was != p.role || p.target != nil && p.target.Attempt != pg.TargetEpoch) {
			g.demoted = true
		}
		g.learnTarget(p, pg)
	}
	g.sets[set], g.tables[set] = groups, table
}

// learnTarget begins an attempt, goes on with it, or ends it.
func (g *Gate) learnTarget(p *group, pg *cluster.PG) {
	if p.role != RoleTarget {
		p.target = nil
		return
	}
	if p.target != nil && p.target.Attempt == pg.TargetEpoch {
		return
	}
	p.target = newTarget(pg)
	g.targets = append(g.targets, p.target)
}

// pruneTargets drops the targets that no group has any more.
func (g *Gate) pruneTargets() {
	kept := g.targets[:0]
	for _, t := range g.targets {
		if p := g.group(t.PG); p != nil && p.target == t {
			kept = append(kept, t)
		}
	}
	clear(g.targets[len(kept):])
	g.targets = kept
}

func (v *view) roleIn(pg *cluster.PG) Role {
	switch {
	case v.device == 0:
		return RoleNone
	case pg.Has(v.device):
		return RoleReplica
	case pg.Target == v.device:
		return RoleTarget
	}
	return RoleNone
}

// sameTable reports whether a published, hence immutable, table is the one seen
// before.
func sameTable(a, b []*cluster.PG) bool {
	return len(a) == len(b) && (len(a) == 0 || &a[0] == &b[0])
}

// adopt: nothing that an older map admitted runs any more.
func (g *Gate) adopt() {
	if g.current == nil {
		return
	}
	g.adopted = g.current.Version
	// What was under way has made its entries by now.
	g.demoted, g.demoting = g.demoted || g.demoting, false
	g.raised = append(g.raised, g.rising...)
	g.rising = g.rising[:0]
}

// Adopted is the newest map version of which nothing older is in flight: what
// the server reports as learned (rules 23 and 24).
func (v *view) Adopted() uint64 { return v.adopted }

// Map is the newest map, nil before the first. It must not be changed.
func (v *view) Map() *cluster.Map { return v.current }

// Device is this device's number, 0 while it has none.
func (v *view) Device() cluster.DeviceID { return v.device }

// Targets lists the attempts in which this device is the target. It is valid
// until the next Learn.
func (v *view) Targets() []*Target { return v.targets }

// Draining reports whether requests of an older epoch of the group still run.
func (v *view) Draining(id cluster.PGID) bool {
	p := v.group(id)
	return p != nil && p.draining > 0
}

// Demoted reports, once, that the device has left the in-sync set of some group,
// or begins an attempt there. Its activity-log entries of groups in which it is
// no replica are then to be kept from retirement, before the next flush: a
// drained flush speaks of in-sync copies only, and the entries say what is to be
// compared.
func (v *view) Demoted() bool {
	d := v.demoted
	v.demoted = false
	return d
}

// group returns the group of that id, or nil.
func (v *view) group(id cluster.PGID) *group {
	table := v.sets[id.Set()]
	if i := id.Index(); int(i) < len(table) && table[i].epoch != 0 {
		return &table[i]
	}
	return nil
}

// Role of the device in the group, and the group's epoch as known; 0: unknown.
func (v *view) Role(id cluster.PGID) (Role, uint32) {
	if p := v.group(id); p != nil {
		return p.role, p.epoch
	}
	return RoleNone, 0
}

// check says whether a request for a group may be admitted now. ahead is true
// when the sender knows a newer map than this device, which then has to fetch it
// before it serves (rule 24).
func (g *Gate) check(id cluster.PGID, epoch uint32, a access) (p *group, status transport.Status, ahead bool) {
	if g.current == nil {
		return nil, transport.StatusRetry, true
	}
	p = g.group(id)
	switch {
	case p == nil, epoch > p.epoch:
		return nil, transport.StatusRetry, true
	case epoch < p.epoch && !g.off.Has(rules.EpochFence):
		return nil, transport.StatusStaleEpoch, false
	case p.role == RoleReplica:
	case g.off.Has(rules.EpochFence) && p.role == RoleNone:
		// The mutant serves whoever comes.
	case p.role == RoleNone, a == accessRead:
		return nil, transport.StatusRefused, false
	}
	if p.draining > 0 && !g.off.Has(rules.EpochFence) {
		return nil, transport.StatusRetry, false
	}
	return p, transport.StatusOK, false
}

// uncount takes a request of a group back that was admitted under an epoch.
func (v *view) uncount(id cluster.PGID, epoch uint32) {
	p := v.group(id)
	switch {
	case p == nil:
	case p.epoch == epoch && p.admitted > 0:
		p.admitted--
	case p.draining > 0:
		p.draining--
	case p.admitted > 0:
		p.admitted--
	}
}
