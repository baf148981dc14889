// SPDX-License-Identifier: Apache-2.0

package state

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"braid/cluster"
)

// Exposure is how many groups have so few copies, and since when.
type Exposure struct {
	Copies int // that are in sync on a device that is up
	Wanted int
	Groups int
	Since  time.Time // when the group of them that has waited longest became short; zero: not known
}

// Exposures returns the groups that have fewer copies than they should, by the
// number of copies, the fewest first.
func (s *State) Exposures() []Exposure {
	found := map[[2]int]*Exposure{}
	for number, set := range s.sets {
		if s.volumesIn(number) == 0 {
			continue
		}
		for index := range pageCount(set.Count) {
			for _, p := range s.pages[number][index] {
				if p.value.ID.Index() < set.Count {
					s.exposed(p.record, set.Replicas, found)
				}
			}
		}
	}
	out := make([]Exposure, 0, len(found))
	for _, e := range found {
		out = append(out, *e)
	}
	slices.SortFunc(out, func(a, b Exposure) int {
		return cmp.Or(cmp.Compare(a.Copies, b.Copies), cmp.Compare(a.Wanted, b.Wanted))
	})
	return out
}

func (s *State) exposed(g *group, wanted int, found map[[2]int]*Exposure) {
	copies, since := 0, int64(0)
	if g.Short != 0 {
		since = g.Short
	}
	for _, id := range g.InSync {
		d := s.devices[id]
		switch {
		case d == nil:
		case s.clusterDevice(d).Up:
			copies++
		default: // it may come back with all that it had; mdm waits for it
			if server := s.servers[d.Server]; server != nil && !server.Up {
				down := server.Since.UnixMilli()
				if since == 0 || down < since {
					since = down
				}
			}
		}
	}
	if copies >= wanted {
		return
	}
	key := [2]int{copies, wanted}
	e := found[key]
	if e == nil {
		e = &Exposure{Copies: copies, Wanted: wanted}
		found[key] = e
	}
	e.Groups++
	if since != 0 && (e.Since.IsZero() || since < e.Since.UnixMilli()) {
		e.Since = time.UnixMilli(since).UTC()
	}
}

// noteShort keeps since when groups have fewer in-sync copies than they should.
func (r *regroup) noteShort(now time.Time) {
	for number, groups := range r.changed {
		set := r.s.sets[number]
		if set == nil {
			continue
		}
		for _, index := range slices.Sorted(maps.Keys(groups)) {
			switch g := groups[index]; {
			case len(g.InSync) >= set.Replicas:
				g.Short = 0
			case g.Short == 0:
				g.Short = max(now.UnixMilli(), 1)
			}
		}
	}
}

// DeviceEvent adds an event about a device, which the text goes on about.
func (t *Tx) DeviceEvent(severity, kind string, id cluster.DeviceID, text string) {
	t.event(severity, kind, t.s.deviceName(id), "device %d (%s): %s", id, t.s.deviceName(id), text)
}
