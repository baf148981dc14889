// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"braid/cluster"
)

// Levels of fill that an event has told of, in a device's record.
const (
	tellNearFull = "nearly full"
	tellFull     = "full"
)

// fillSlack is by how many percent of its space a device must fall below a level
// before that is told: one that lingers there is not told of again and again.
const fillSlack = 2

// fillEvents is how many devices one transaction tells of; the next look takes
// the others.
const fillEvents = 64

// fillLevel is what is to be told of a device that is so full.
func fillLevel(told string, percent, full uint64) string {
	switch {
	case percent >= full, told == tellFull && percent+fillSlack >= full:
		return tellFull
	case percent >= nearFullPercent, told != "" && percent+fillSlack >= nearFullPercent:
		return tellNearFull
	}
	return ""
}

// fullAt is the percentage at which a device is full: from there on, if not before,
// clients' writes find no room.
func (s *State) fullAt() uint64 { return min(fullPercent, 100-uint64(s.Settings().Reserve)) }

// TellFill makes an event of each device that has become nearly full, full, or
// has room again. used is what the devices reported last, in bytes; of those that
// have not reported yet nothing is said.
func (s *State) TellFill(used map[cluster.DeviceID]uint64, now time.Time) *Tx {
	tx := s.Begin(now)
	for _, d := range s.sortedDevices() {
		bytes, known := used[d.ID]
		if !known || d.Size == 0 {
			continue
		}
		percent := bytes / max(d.Size/100, 1)
		level := fillLevel(d.Told, percent, s.fullAt())
		if level == d.Told {
			continue
		}
		severity, text := Info, "has room again"
		switch {
		case level == tellFull:
			severity, text = Warning, "writes that need space on it are about to wait; add devices, or free space"
		case level == tellNearFull && d.Told == "":
			severity, text = Warning, "add devices soon, or free space"
		}
		next := *d
		next.Told = level
		tx.put(deviceKey(d.ID), next)
		tx.DeviceEvent(severity, "capacity", d.ID, fmt.Sprintf("%d%% full: %s", percent, text))
		if len(tx.events) == fillEvents {
			break
		}
	}
	return tx
}

// TellRoomless notes on which devices writes of a session wait for room, and makes an
// event of the first of them and of the end. Where the session is not that one, it is
// no news.
func (s *State) TellRoomless(id cluster.VolumeID, gen cluster.Generation, on []cluster.DeviceID, now time.Time) *Tx {
	tx := s.Begin(now)
	x, v := s.Session(id), s.volumes[id]
	on = slices.Sorted(slices.Values(on))
	if x == nil || v == nil || x.Generation != gen || slices.Equal(x.Roomless, on) {
		return tx
	}
	next := *x
	next.Roomless = on
	switch {
	case len(on) == 0:
		next.RoomlessSince = time.Time{}
		tx.event(Info, "capacity", v.Name, "volume %s: its writes go on; they had waited for space since %s", v.Name,
			clock(x.RoomlessSince))
	case len(x.Roomless) == 0:
		next.RoomlessSince = now
		tx.event(Warning, "capacity", v.Name, "volume %s: writes wait for space on %s; add devices, or free space: "+
			"they go on by themselves", v.Name, s.deviceNames(on))
	}
	tx.put(sessionKey(id), next)
	return tx
}

// noteRoomless says which volumes' writes wait for room.
func (s *State) noteRoomless(st *Status) {
	for _, x := range s.Sessions() {
		if v := s.volumes[x.Volume]; v != nil && len(x.Roomless) > 0 {
			st.Waiting++
			st.worse(Full, "full: writers wait: writes of volume %s need space on %s since %s; reads and all other "+
				"writes go on", v.Name, s.deviceNames(x.Roomless), clock(x.RoomlessSince))
		}
	}
}

func clock(t time.Time) string { return t.Format("2006-01-02 15:04:05 MST") }

// deviceNames is a list of devices for people.
func (s *State) deviceNames(ids []cluster.DeviceID) string {
	var out []string
	for _, id := range ids {
		out = append(out, fmt.Sprintf("device %d (%s)", id, s.deviceName(id)))
	}
	return strings.Join(out, ", ")
}

// noteReserve says when the copies of some fault set would not find room on the
// others if it were lost. Where there are too few others to hold them apart,
// nothing would be made anew anyway.
func (s *State) noteReserve(st *Status, used map[cluster.DeviceID]uint64) {
	replicas := 0
	for _, number := range s.used() {
		replicas = max(replicas, s.sets[number].Replicas)
	}
	held, room := map[string]uint64{}, map[string]uint64{}
	total := uint64(0)
	for _, d := range s.sortedDevices() {
		c := s.clusterDevice(d)
		if !c.Up || d.Removing || d.Spare || d.RolledBack {
			continue
		}
		held[c.FaultSet] += used[d.ID]
		if most := share(d.Size, fullPercent); most > used[d.ID] {
			room[c.FaultSet] += most - used[d.ID]
			total += most - used[d.ID]
		}
	}
	if replicas < 2 || len(held) <= replicas {
		return
	}
	worst, lacks := "", uint64(0)
	for set, bytes := range held {
		if free := total - room[set]; bytes > free &&
			(bytes-free > lacks || bytes-free == lacks && set < worst) {
			worst, lacks = set, bytes-free
		}
	}
	if lacks > 0 {
		st.Reasons = append(st.Reasons, fmt.Sprintf("if fault set %s were lost, %s of its copies would find no room "+
			"elsewhere: add devices", worst, cluster.FormatSize(lacks)))
	}
}
