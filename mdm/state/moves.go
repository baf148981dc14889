// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"errors"
	"math/bits"
	"slices"
	"time"

	"braid/cluster"
	"braid/cluster/placement"
)

// DefaultGrace is how long a device may be away before its copies are made anew
// elsewhere. A restart of a machine takes longer than that; an operator who plans
// one says so (maintenance), and a copy that comes back meanwhile catches up.
const DefaultGrace = time.Minute

// maxMoves is how many groups a device takes in at a time by moves. Copies that
// only catch up do not count: they lack redundancy, moves do not.
const maxMoves = 16

// Move is a group that gets other devices. Come first take copies; Go leave as
// enough of them are in sync, so redundancy is never less than before (see shed).
type Move struct {
	PG    cluster.PGID
	Want  []cluster.DeviceID
	Come  []cluster.DeviceID
	Go    []cluster.DeviceID
	Bytes uint64 // to be copied, from what the devices reported
}

// Fill is how full a device is, in bytes, and would be.
type Fill struct {
	Device      cluster.DeviceID
	Name        string
	Size        uint64
	Used, After uint64
	Comes, Goes uint64 // is copied to it, leaves it
}

// Flow is how many bytes are to be read on one device and written to another. A copy is
// read from all copies in sync, in turn, so that many give to many.
type Flow struct {
	From, To cluster.DeviceID
	Bytes    uint64
}

// MovePlan says what would move, before anything does.
type MovePlan struct {
	Moves    []Move
	Copies   int    // that move
	Least    int    // copies that any plan with this outcome would have to move
	Bytes    uint64 // to be copied
	Rebuilt  int    // of Copies: whose old place is lost
	Fill     []Fill // of every device that has or gets copies
	Flows    []Flow // by From and To; together Bytes
	Warnings []string
}

// Membership is what a plan presumes beside the state.
type Membership struct {
	Used    map[cluster.DeviceID]uint64 // bytes, as the devices reported
	Without map[cluster.DeviceID]bool   // as if these were to be removed
	With    map[cluster.DeviceID]bool   // as if these were no spares
}

// isGone reports whether a device is away for longer than the grace time, so that
// its copies are to be made elsewhere.
func (s *State) isGone(d *Device, now time.Time) bool {
	server := s.servers[d.Server]
	switch {
	case server == nil:
		return true
	case server.Maintenance != "":
		return false
	case !server.Up:
		return now.Sub(server.Since) > s.Settings().Grace
	case d.Failed != "":
		return now.Sub(d.FailedAt) > s.Settings().Grace
	}
	return false
}

// isProtected reports whether a device is emptied for its server's maintenance.
func (s *State) isProtected(d *Device) bool {
	server := s.servers[d.Server]
	return server != nil && server.Maintenance == protectedMode
}

// Housing returns the devices that copies are to lie on. It changes with time,
// too: a device drops out when its grace is over.
func (s *State) Housing(now time.Time) []placement.Device { return s.housing(nil, now) }

// housing is Housing as if some spares were none.
func (s *State) housing(with map[cluster.DeviceID]bool, now time.Time) []placement.Device {
	var out []placement.Device
	for _, d := range s.sortedDevices() {
		if d.Removing || d.Spare && !with[d.ID] || d.RolledBack || s.isGone(d, now) || s.isProtected(d) {
			continue
		}
		c := s.clusterDevice(d)
		out = append(out, placement.Device{ID: c.ID, Server: c.Server, FaultSet: c.FaultSet, Weight: c.Size})
	}
	return out
}

// PlanMoves computes the moves that spread every set in use over the housing.
// It is a pure function of state, membership and time: what is shown to people
// and what is done come from here.
func (s *State) PlanMoves(m Membership, now time.Time) (MovePlan, error) {
	devices := slices.DeleteFunc(s.housing(m.With, now), func(d placement.Device) bool { return m.Without[d.ID] })
	var plan MovePlan
	per := s.bytesPerCopy(m.Used)
	for _, number := range s.used() {
		if err := s.strong(devices, number); err != nil {
			return MovePlan{}, err
		}
		if err := s.planSet(&plan, number, devices, per, now); err != nil {
			return MovePlan{}, err
		}
	}
	s.fill(&plan, m.Used)
	return plan, nil
}

func (s *State) planSet(plan *MovePlan, number uint32, devices []placement.Device,
	per map[cluster.DeviceID]uint64, now time.Time) error {
	set := s.sets[number]
	old := make(placement.Table, 0, set.Count)
	s.each(number, func(_ cluster.PGID, p *placed) { old = append(old, p.record.settled()) })
	table, err := placement.Compute(devices, set.Replicas, int(set.Count), old)
	if errors.Is(err, placement.ErrTooFew) {
		return refuse(ErrRefused, "%d replicas need %d devices, %s left; add servers first",
			set.Replicas, set.Replicas, thereAre(len(devices), "%d is", "%d are"))
	} else if err != nil {
		return err
	}
	for _, w := range table.Warnings {
		if !slices.Contains(plan.Warnings, w) {
			plan.Warnings = append(plan.Warnings, w)
		}
	}
	i := 0
	s.each(number, func(id cluster.PGID, p *placed) {
		want := table.Table[i]
		i++
		if sameDevices(want, p.record.heading()) {
			return
		}
		move := Move{PG: id, Want: want}
		for _, d := range want {
			if !slices.Contains(p.record.InSync, d) && !slices.Contains(p.record.Replicas, d) {
				move.Come = append(move.Come, d)
			}
		}
		for _, d := range p.record.Replicas {
			if !slices.Contains(want, d) {
				move.Go = append(move.Go, d)
				if known := s.devices[d]; known == nil || s.isGone(known, now) {
					plan.Rebuilt++
				}
			}
		}
		move.Bytes = copyBytes(p.record, per) * uint64(len(move.Come))
		plan.Copies += len(move.Come)
		plan.Bytes += move.Bytes
		plan.Moves = append(plan.Moves, move)
	})
	plan.Least += leastMoves(old, table.Table)
	return nil
}

// settled is where a group's data lies, as a plan has to see it: where it is to
// go once copying has begun, where it was before that.
func (g *group) settled() []cluster.DeviceID {
	if g.Want == nil || g.Target != 0 && slices.Contains(g.Want, g.Target) {
		return g.heading()
	}
	for _, d := range g.Want {
		if !slices.Contains(g.Replicas, d) && slices.Contains(g.InSync, d) {
			return g.Want
		}
	}
	return g.Replicas
}

// heading is where the group is to lie in the end.
func (g *group) heading() []cluster.DeviceID {
	if g.Want != nil {
		return g.Want
	}
	return g.Replicas
}

func sameDevices(a, b []cluster.DeviceID) bool {
	return len(a) == len(b) && !slices.ContainsFunc(a, func(d cluster.DeviceID) bool { return !slices.Contains(b, d) })
}

// leastMoves counts the copies that some device has to take in, whichever groups
// they are of: the sum of what each device gains.
func leastMoves(old, table placement.Table) int {
	gain := map[cluster.DeviceID]int{}
	for i := range table {
		for _, d := range table[i] {
			gain[d]++
		}
		for _, d := range old[i] {
			gain[d]--
		}
	}
	least := 0
	for _, n := range gain {
		least += max(n, 0)
	}
	return least
}

// strong refuses to spread copies over fewer fault sets, or servers, than they
// could be spread over if everything were there: two copies on one server are
// no better than one, and the lost one may come back.
func (s *State) strong(devices []placement.Device, number uint32) error {
	replicas := s.sets[number].Replicas
	count := func(devices []placement.Device, key func(placement.Device) string) int {
		seen := map[string]bool{}
		for _, d := range devices {
			seen[key(d)] = true
		}
		return min(len(seen), replicas)
	}
	var all []placement.Device
	for _, d := range s.sortedDevices() {
		if c := s.clusterDevice(d); !d.Spare {
			all = append(all, placement.Device{ID: c.ID, Server: c.Server, FaultSet: c.FaultSet})
		}
	}
	set := func(d placement.Device) string { return d.FaultSet }
	server := func(d placement.Device) string { return d.Server }
	if have, had := count(devices, set), count(all, set); have < had {
		return refuse(ErrRefused, "%d copies would lie in %s instead of %d; add servers of another "+
			"fault set first", replicas, thereAre(have, "%d fault set", "%d fault sets"), had)
	}
	if have, had := count(devices, server), count(all, server); have < had {
		return refuse(ErrRefused, "%d copies would lie on %s instead of %d; add servers first",
			replicas, thereAre(have, "%d server", "%d servers"), had)
	}
	return nil
}

// bytesPerCopy estimates what one copy of a group takes on each device. Chunks
// fall on groups at random, so all of a device's copies count as equal.
func (s *State) bytesPerCopy(used map[cluster.DeviceID]uint64) map[cluster.DeviceID]uint64 {
	copies := s.copies()
	per := map[cluster.DeviceID]uint64{}
	for id, n := range copies {
		per[id] = used[id] / uint64(n)
	}
	return per
}

// copies counts the copies on each device.
func (s *State) copies() map[cluster.DeviceID]int {
	n := map[cluster.DeviceID]int{}
	for _, number := range s.used() {
		s.each(number, func(_ cluster.PGID, p *placed) {
			for _, d := range p.record.Replicas {
				n[d]++
			}
		})
	}
	return n
}

func copyBytes(g *group, per map[cluster.DeviceID]uint64) uint64 {
	most := uint64(0)
	for _, d := range g.InSync {
		most = max(most, per[d])
	}
	return most
}

// fill sums up what each device holds before and after, and what flows between them.
func (s *State) fill(plan *MovePlan, used map[cluster.DeviceID]uint64) {
	per, comes, goes := s.bytesPerCopy(used), map[cluster.DeviceID]uint64{}, map[cluster.DeviceID]uint64{}
	flows := map[[2]cluster.DeviceID]uint64{}
	for _, m := range plan.Moves {
		g := s.record(m.PG)
		bytes, n := copyBytes(g, per), uint64(len(g.InSync))
		for _, d := range m.Come {
			comes[d] += bytes
			for i, from := range g.InSync {
				flows[[2]cluster.DeviceID{from, d}] += bytes*uint64(i+1)/n - bytes*uint64(i)/n
			}
		}
		for _, d := range m.Go {
			goes[d] += per[d]
		}
	}
	copies := s.copies()
	for _, d := range s.sortedDevices() {
		if used[d.ID] == 0 && comes[d.ID]+goes[d.ID] == 0 && copies[d.ID] == 0 {
			continue
		}
		plan.Fill = append(plan.Fill, Fill{Device: d.ID, Name: deviceName(d), Size: d.Size, Used: used[d.ID],
			After: max(used[d.ID]+comes[d.ID], goes[d.ID]) - goes[d.ID], Comes: comes[d.ID], Goes: goes[d.ID]})
	}
	slices.SortFunc(plan.Fill, func(a, b Fill) int { return cmp.Compare(a.Device, b.Device) })
	for pair, bytes := range flows {
		plan.Flows = append(plan.Flows, Flow{From: pair[0], To: pair[1], Bytes: bytes})
	}
	slices.SortFunc(plan.Flows, func(a, b Flow) int {
		return cmp.Or(cmp.Compare(a.From, b.From), cmp.Compare(a.To, b.To))
	})
}

// Room says why a plan must not be carried out for want of space, if so.
func (p MovePlan) Room() error {
	for _, f := range p.Fill {
		if f.After > f.Used && f.After > share(f.Size, fullPercent) {
			return refuse(ErrRefused, "device %d (%s) would be %d%% full; add devices first", f.Device, f.Name,
				f.After/max(f.Size/100, 1))
		}
	}
	return nil
}

// share returns percent of size without overflow.
func share(size uint64, percent uint64) uint64 {
	hi, lo := bits.Mul64(size, percent)
	out, _ := bits.Div64(hi, lo, 100)
	return out
}
