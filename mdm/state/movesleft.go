// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"hash/fnv"
	"slices"
	"time"

	"braid/cluster"
)

// MovesLeft says what is still to move.
type MovesLeft struct {
	Groups      int    // that head for other devices
	Running     int    // of these: a copy is being made now
	Bytes       uint64 // to be copied, estimated
	Leaving     []cluster.DeviceID
	Maintenance []string // servers
}

// MovesLeft sums up what is still to move. used is what the devices reported, in
// bytes.
func (s *State) MovesLeft(used map[cluster.DeviceID]uint64) MovesLeft {
	var left MovesLeft
	per := s.bytesPerCopy(used)
	for _, number := range s.used() {
		s.each(number, func(_ cluster.PGID, p *placed) {
			g := p.record
			if g.Want == nil {
				return
			}
			left.Groups++
			if g.Target != 0 {
				left.Running++
			}
			for _, d := range g.Want {
				if !slices.Contains(g.InSync, d) {
					left.Bytes += copyBytes(g, per)
				}
			}
		})
	}
	for _, d := range s.sortedDevices() {
		if d.Removing {
			left.Leaving = append(left.Leaving, d.ID)
		}
	}
	for _, server := range s.Servers() {
		if server.Maintenance != "" {
			left.Maintenance = append(left.Maintenance, server.Name)
		}
	}
	return left
}

// DevicesOn returns the devices of a server, by number.
func (s *State) DevicesOn(server string) []cluster.DeviceID {
	var out []cluster.DeviceID
	for _, d := range s.sortedDevices() {
		if d.Server == server {
			out = append(out, d.ID)
		}
	}
	return out
}

// Layout is a fingerprint of what decides where data is to lie: a plan for an
// equal one would change nothing.
func (s *State) Layout(now time.Time) uint64 {
	h := fnv.New64a()
	for _, d := range s.Housing(now) {
		fmt.Fprintln(h, d.ID, d.Server, d.FaultSet, d.Weight)
	}
	for _, number := range s.used() {
		fmt.Fprintln(h, number, s.sets[number].Count)
	}
	return h.Sum64()
}
