// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"fmt"
	"time"

	"braid/cluster"
	"braid/stripe/core"
	"braid/transport/bio"
)

// Wait is a group of requests that wait for the same thing.
type Wait struct {
	Device   cluster.DeviceID // 0: not one device
	Server   string
	Addr     string
	Reason   core.WaitReason
	Why      string
	Next     string    // what happens next, by itself
	NextAt   time.Time // when; zero: that is not known
	Requests int
	Since    time.Time // of the oldest
	Op       bio.Op    // and what it is
	Off, Len uint64
}

// waitPatience is how long a request may take before it counts as waiting.
const waitPatience = time.Second

// Waiting tells what requests wait for, for `sdc why`. Requests that have been
// under way for less than a second are not listed. It is for any goroutine but
// the loop's.
func (v *Volume) Waiting() (list []Wait) {
	v.loop.Call(func() {
		now, clock := v.loop.Now(), time.Now()
		at := func(loopTime int64) time.Time { return clock.Add(time.Duration(loopTime - now)) }
		for _, w := range v.core.Waiting(now, int64(waitPatience)) {
			out := Wait{Device: w.Device, Server: w.Server, Addr: w.Addr, Reason: w.Reason, Why: w.Why,
				Next: w.Next, Requests: w.Requests, Since: at(w.Since), Op: w.Op, Off: w.Off, Len: w.Len}
			if w.NextAt != 0 {
				out.NextAt = at(w.NextAt)
			}
			if p := v.peers[peerKey{w.Device, 0}]; p != nil && p.state != peerUp {
				out.Why = p.why(w.Why)
				out.NextAt = p.nextDial
			}
			list = append(list, out)
		}
	})
	return list
}

func (p *peer) why(plain string) string {
	switch {
	case p.state == peerOpening:
		return "connected; the server has not opened the session yet"
	case p.lastErr != nil:
		return fmt.Sprintf("%s: %v", plain, p.lastErr)
	}
	return plain
}

// DeviceStats are what a volume knows of one device.
type DeviceStats struct {
	core.DeviceStats
	Away     time.Duration // since when it cannot be reached; 0: it can
	State    string        // connected, opening, dialling, waiting
	Trouble  string        // why it is not connected
	NextDial time.Time
}

// Snapshot is a volume at one moment, for those who watch.
type Snapshot struct {
	Volume        string
	ID            cluster.VolumeID
	Generation    cluster.Generation
	MapVersion    uint64
	Adopted       uint64 // map version
	Refused       string // why a newer map is not taken, if so
	Pressure      uint32 // of the activity logs, thousandths
	ResolveGroups int    // whose activity logs the attach has not read yet
	ResolveChunks int    // that may differ and are not resolved yet
	Stats         core.Stats
	Devices       []DeviceStats
}

// Snapshot is for any goroutine but the loop's.
func (v *Volume) Snapshot() (s Snapshot) {
	v.loop.Call(func() {
		now := v.loop.Now()
		s = Snapshot{Volume: v.volume.Name, ID: v.volume.ID, Generation: v.gen, MapVersion: v.core.Version(),
			Adopted: v.core.Adopted(), Pressure: v.core.Pressure(), Stats: v.core.Stats()}
		s.ResolveGroups, s.ResolveChunks = v.core.Resolving()
		if v.refused != nil {
			s.Refused = v.refused.Error()
		}
		for _, d := range v.core.Devices() {
			x := DeviceStats{DeviceStats: d, State: "connected"}
			if d.AwaySince != 0 {
				x.Away = time.Duration(now - d.AwaySince)
			}
			if p := v.peers[peerKey{d.ID, 0}]; p != nil && p.state != peerUp {
				x.State, x.NextDial = p.state.String(), p.nextDial
				if p.lastErr != nil {
					x.Trouble = p.lastErr.Error()
				}
			}
			s.Devices = append(s.Devices, x)
		}
	})
	return s
}

func (s peerState) String() string {
	return [...]string{"waiting", "dialling", "opening", "connected"}[s]
}
