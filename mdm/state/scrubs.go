// SPDX-License-Identifier: Apache-2.0

package state

import (
	"maps"
	"slices"
	"time"

	"braid/cluster"
)

// Scrubbed plans to write down that devices have been read as a whole: began says
// when each run did. Those of which nobody knows it are given dates to count from,
// spread over the time between two scrubs: so after an upgrade they come in turn.
func (s *State) Scrubbed(began map[cluster.DeviceID]time.Time, now time.Time) *Tx {
	tx := s.Begin(now)
	every := s.Settings().ScrubEvery
	var unknown []*Device
	for _, d := range s.sortedDevices() {
		if _, ok := began[d.ID]; !ok && every > 0 && d.scrubFrom().IsZero() {
			unknown = append(unknown, d)
		}
	}
	for i, d := range unknown {
		next := *d
		ago := every * time.Duration(i) / time.Duration(len(unknown))
		next.ScrubFrom = now.Add(-ago).UTC().Truncate(time.Millisecond)
		tx.put(deviceKey(d.ID), next)
	}
	for _, id := range slices.Sorted(maps.Keys(began)) {
		at := began[id].UTC().Truncate(time.Millisecond)
		if d := s.devices[id]; d != nil && at.After(d.Scrubbed) {
			next := *d
			next.Scrubbed, next.ScrubFrom = at, time.Time{}
			tx.put(deviceKey(id), next)
		}
	}
	return tx
}

// scrubFrom is when the wait for the next scrub began; zero: not known yet.
func (d *Device) scrubFrom() time.Time {
	if d.Scrubbed.IsZero() {
		return d.ScrubFrom
	}
	return d.Scrubbed
}

// ScrubsDue returns the devices whose scrub is to begin now: of each fault set the
// one that was scrubbed the longest ago, if that is longer than it should be and
// none is being scrubbed there. So a machine, and each copy but one, stays as quick
// as it was. ready tells which devices take an order, busy which have one.
func (s *State) ScrubsDue(ready, busy func(cluster.DeviceID) bool, now time.Time) []cluster.DeviceID {
	every := s.Settings().ScrubEvery
	if every == 0 {
		return nil
	}
	taken, next := map[string]bool{}, map[string]*Device{}
	for _, d := range s.sortedDevices() {
		c := s.clusterDevice(d)
		switch {
		case !c.Up:
		case busy(d.ID):
			taken[c.FaultSet] = true
		case d.scrubFrom().IsZero(): // Scrubbed gives it a date first
		case now.Sub(d.scrubFrom()) >= every && ready(d.ID):
			if x := next[c.FaultSet]; x == nil || d.scrubFrom().Before(x.scrubFrom()) {
				next[c.FaultSet] = d
			}
		}
	}
	var out []cluster.DeviceID
	for set, d := range next {
		if !taken[set] {
			out = append(out, d.ID)
		}
	}
	slices.Sort(out)
	return out
}

// LongestUnscrubbed returns the device that was scrubbed the longest ago, or nil.
func (s *State) LongestUnscrubbed() (oldest *Device) {
	for _, d := range s.sortedDevices() {
		if oldest == nil || d.Scrubbed.Before(oldest.Scrubbed) {
			oldest = d
		}
	}
	return oldest
}
