// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"braid/cluster"
)

// Modes of the autopilot.
const (
	PilotOff = "off"
	PilotDry = "dry-run" // says what it would do
	PilotOn  = "on"
)

// Autopilot is what operators allow it, and what it has done. It lies in etcd as a
// whole, so that a leader keeps to what the one before it did.
type Autopilot struct {
	Mode      string        `json:"mode"`
	Threshold uint32        `json:"threshold"` // percent of the space in use
	Ceiling   uint32        `json:"ceiling"`   // devices in use at most
	Cooldown  time.Duration `json:"cooldown"`  // between two expansions
	History   []Expansion   `json:"history,omitempty"`
	Told      string        `json:"told,omitempty"` // what an event said of what keeps it, or of what it would do
}

// Expansion is one thing that it did.
type Expansion struct {
	At     time.Time        `json:"at"`
	Device cluster.DeviceID `json:"device,omitempty"` // put to use; 0: the hook was run
	What   string           `json:"what"`
	Fill   uint32           `json:"fill"`           // percent
	Next   cluster.DeviceID `json:"next,omitempty"` // of the hook: the number that the next device to join got
}

// Bounds and defaults of the autopilot.
const (
	defaultThreshold = 80
	defaultCooldown  = 10 * time.Minute
	minThreshold     = 1
	maxThreshold     = 99
	minCooldown      = time.Second
	maxCooldown      = 30 * 24 * time.Hour
	maxExpansions    = 100 // that are remembered
)

// Autopilot returns what is set, or the defaults: off.
func (s *State) Autopilot() Autopilot {
	if s.pilot == nil {
		return Autopilot{Mode: PilotOff, Threshold: defaultThreshold, Cooldown: defaultCooldown}
	}
	out := *s.pilot
	out.History = slices.Clone(out.History)
	return out
}

// SetAutopilot plans other terms; history stays.
func (s *State) SetAutopilot(next Autopilot, now time.Time) (*Tx, error) {
	switch {
	case next.Mode != PilotOff && next.Mode != PilotDry && next.Mode != PilotOn:
		return nil, refuse(ErrInvalid, "autopilot mode %q: want off, dry-run or on", next.Mode)
	case next.Threshold < minThreshold || next.Threshold > maxThreshold:
		return nil, refuse(ErrInvalid, "autopilot threshold %d %%: want %d to %d", next.Threshold, minThreshold,
			maxThreshold)
	case next.Cooldown < minCooldown || next.Cooldown > maxCooldown:
		return nil, refuse(ErrInvalid, "autopilot cooldown %v: want 1s to 720h", next.Cooldown)
	case next.Mode != PilotOff && next.Ceiling == 0:
		return nil, refuse(ErrInvalid, "the autopilot needs a ceiling: how many devices may be in use at most? "+
			"%d are now; set ceiling=N", len(s.Housing(now)))
	}
	tx, old := s.Begin(now), s.Autopilot()
	next.History, next.Told = old.History, ""
	if next.same(old) {
		return tx, nil
	}
	tx.put(autopilotKey, next)
	tx.event(Info, "autopilot", "", "autopilot %s: adds a device from %d %% fill on, up to %d devices, one each %v",
		next.Mode, next.Threshold, next.Ceiling, next.Cooldown)
	return tx, nil
}

func (p Autopilot) same(q Autopilot) bool {
	return p.Mode == q.Mode && p.Threshold == q.Threshold && p.Ceiling == q.Ceiling && p.Cooldown == q.Cooldown
}

// Decision is what the autopilot does now, and why.
type Decision struct {
	Device cluster.DeviceID // spare to be put to use
	Hook   bool             // the hook is to be run
	Why    string           // what it does, would do, or waits for; empty: nothing is to be done
	Stuck  bool             // it cannot help without an operator
	Fill   uint32           // of the devices in use, percent
	InUse  int              // devices
	Spares int              // that could be put to use
}

// Acts reports whether something is to be done.
func (d Decision) Acts() bool { return d.Device != 0 || d.Hook }

// Hook says whether there is a hook to run.
type Hook int

const (
	NoHook Hook = iota
	HookReady
	HookRunning
)

// Decide says what the autopilot is to do. used is what the devices reported last; of
// those that have not, nothing is known, and then nothing is decided.
func (s *State) Decide(used map[cluster.DeviceID]uint64, hook Hook, now time.Time) Decision {
	p := s.Autopilot()
	var d Decision
	housing := s.Housing(now)
	d.InUse = len(housing)
	spare := s.bestSpare(now, &d.Spares)
	var full, size uint64
	unknown := cluster.DeviceID(0)
	for _, h := range housing {
		bytes, known := used[h.ID]
		if x := s.devices[h.ID]; !known || !s.clusterDevice(x).Up {
			unknown = h.ID
		}
		full, size = full+bytes>>10, size+h.Weight>>10
	}
	d.Fill = uint32(min(full*100/max(size, 1), 100))
	waiting := len(s.waitingForRoom()) > 0
	switch {
	case p.Mode == PilotOff || d.InUse == 0:
	case unknown != 0:
		d.Why = fmt.Sprintf("waits: how full device %d (%s) is, is not known", unknown, s.deviceName(unknown))
	case d.Fill < p.Threshold && !waiting:
	case hook == HookRunning:
		d.Why = "waits for its hook"
	case len(p.History) > 0 && now.Before(p.History[len(p.History)-1].At.Add(p.Cooldown)):
		d.Why = fmt.Sprintf("cools down after its last expansion until %s",
			clock(p.History[len(p.History)-1].At.Add(p.Cooldown)))
	case s.owned()+p.expected(s.counters.Device) >= int(p.Ceiling):
		d.Why, d.Stuck = fmt.Sprintf("its ceiling of %d devices is reached: raise it (scli autopilot set ceiling=N) "+
			"or free space", p.Ceiling), true
	case s.MovesLeft(used).Groups > 0: // last, as it looks at all groups
		d.Why = "waits until the data that moves now has moved"
	case spare != nil:
		d.Device, d.Why = spare.ID, fmt.Sprintf("puts spare device %d (%s) to use", spare.ID, deviceName(spare))
	case hook == HookReady:
		d.Hook, d.Why = true, "runs its hook, as no spare device is left"
	default:
		d.Why, d.Stuck = "no spare device is left: add one (sds serve --spare) or free space", true
	}
	return d
}

// owned counts the devices that are no spares, those that are away among them: they
// may come back.
func (s *State) owned() (n int) {
	for _, d := range s.devices {
		if !d.Spare && !d.Removing && !d.RolledBack {
			n++
		}
	}
	return n
}

// expected counts the devices that hooks were run for and that have not joined. next
// is the number of the next one to join.
func (p Autopilot) expected(next cluster.DeviceID) int {
	runs, first := 0, next
	for i := len(p.History) - 1; i >= 0 && p.History[i].Device == 0; i-- {
		runs, first = runs+1, p.History[i].Next
	}
	return max(runs-int(next-min(first, next)), 0)
}

// waitingForRoom are the volumes whose writes wait for room.
func (s *State) waitingForRoom() (out []string) {
	for _, x := range s.Sessions() {
		if v := s.volumes[x.Volume]; v != nil && len(x.Roomless) > 0 {
			out = append(out, v.Name)
		}
	}
	return out
}

// bestSpare is the spare whose fault set has the least space in use, of these the
// largest, of these the first; nil: there is none that serves.
func (s *State) bestSpare(now time.Time, count *int) (best *Device) {
	has := map[string]uint64{}
	for _, h := range s.Housing(now) {
		has[h.FaultSet] += h.Weight
	}
	for _, d := range s.sortedDevices() {
		c := s.clusterDevice(d)
		if !d.Spare || !c.Up || d.Removing || d.RolledBack || s.isProtected(d) || s.isGone(d, now) {
			continue
		}
		*count++
		if best == nil {
			best = d
			continue
		}
		a, b := has[c.FaultSet], has[s.clusterDevice(best).FaultSet]
		if a < b || a == b && d.Size > best.Size {
			best = d
		}
	}
	return best
}

// Steer plans what follows from the decision: the expansion with its place in the
// history, or an event of what keeps it from it, once.
func (s *State) Steer(used map[cluster.DeviceID]uint64, hook Hook, now time.Time) (*Tx, Decision) {
	tx, d, next := s.Begin(now), s.Decide(used, hook, now), s.Autopilot()
	could := d.Acts()
	if next.Mode != PilotOn {
		d.Device, d.Hook = 0, false
	}
	switch {
	case d.Acts():
		x := Expansion{At: tx.now, Device: d.Device, What: d.Why, Fill: d.Fill}
		if d.Hook {
			x.Next = s.counters.Device
		}
		next.History = append(next.History, x)
		next.History = next.History[max(len(next.History)-maxExpansions, 0):]
		next.Told = ""
		tx.event(Warning, "autopilot", "", "the cluster is %d %% full: the autopilot %s", d.Fill, d.Why)
		if d.Device != 0 {
			s.putSpare(tx, s.devices[d.Device], false)
		}
	case could && next.Told != d.Why: // a dry run
		next.Told = d.Why
		tx.event(Info, "autopilot", "", "the cluster is %d %% full: if it were on, the autopilot would do this: it %s",
			d.Fill, d.Why)
	case d.Stuck && next.Told != d.Why:
		next.Told = d.Why
		tx.event(Warning, "autopilot", "", "the cluster is %d %% full, and the autopilot cannot help: %s", d.Fill,
			d.Why)
	case d.Why == "" && next.Told != "" && d.Fill+fillSlack < next.Threshold: // not to and fro around it
		next.Told = ""
	default:
		return tx, d
	}
	tx.put(autopilotKey, next)
	return tx, d
}

// HookEnded makes an event of how the hook ended. says is its last line.
func (s *State) HookEnded(err error, says string, now time.Time) *Tx {
	tx := s.Begin(now)
	if says = strings.TrimSpace(says); says != "" {
		says = "; it said: " + says
	}
	if err != nil {
		tx.event(Error, "autopilot", "", "the autopilot's hook failed: %v%s", err, says)
	} else {
		tx.event(Info, "autopilot", "", "the autopilot's hook has ended well%s", says)
	}
	return tx
}

func (s *State) applyAutopilot(c Change) error {
	if c.Value == nil {
		s.pilot = nil
		return nil
	}
	next := &Autopilot{}
	if err := json.Unmarshal(c.Value, next); err != nil {
		return err
	}
	s.pilot = next
	return nil
}
