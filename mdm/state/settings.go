// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"fmt"
	"time"

	"braid/cluster"
)

// Settings are what operators set for the whole cluster.
type Settings struct {
	Grace  time.Duration `json:"grace"`            // see DefaultGrace
	Paused bool          `json:"paused,omitempty"` // no new moves

	ScrubEvery time.Duration `json:"scrub_every"`           // of each device, from start to start; 0: on order only
	ScrubRate  uint64        `json:"scrub_rate,omitempty"`  // bytes per second and device; 0: sds's own
	ResyncRate uint64        `json:"resync_rate,omitempty"` // the same of resyncs; 0: no bound but the pace

	ResyncP99 time.Duration `json:"resync_p99,omitempty"` // of clients, where copying slows down; 0: servers' own

	Reserve uint32 `json:"reserve"` // percent of each device's chunks that clients' writes leave to copies
}

// DefaultScrubEvery is how often devices are scrubbed: rot is found while there is
// another copy, and 64 MiB a second are done with 70 TiB meanwhile.
const DefaultScrubEvery = 14 * 24 * time.Hour

// DefaultReserve is what a device keeps free for copies that have to lie elsewhere:
// without any, one that users have filled could not take part in a rebuild.
const DefaultReserve = 5

// Bounds of settings.
const (
	maxReserve    = 50
	maxGrace      = 30 * 24 * time.Hour
	minScrubEvery = time.Hour
	maxScrubEvery = 365 * 24 * time.Hour
	minP99        = 100 * time.Microsecond
	maxP99        = 10 * time.Second
	minRate       = 1 << 20 // a resync that is slower than that never ends
)

func defaults() Settings {
	return Settings{Grace: DefaultGrace, ScrubEvery: DefaultScrubEvery, Reserve: DefaultReserve}
}

// Settings returns what is set, or the defaults.
func (s *State) Settings() Settings {
	if s.settings == nil {
		return defaults()
	}
	return *s.settings
}

func (x *Settings) check() error {
	switch {
	case x.Grace < 0 || x.Grace > maxGrace:
		return refuse(ErrInvalid, "a grace time of %v: want 0s to 720h", x.Grace)
	case x.ScrubEvery != 0 && (x.ScrubEvery < minScrubEvery || x.ScrubEvery > maxScrubEvery):
		return refuse(ErrInvalid, "a scrub every %v: want 1h to 365d, or never", x.ScrubEvery)
	case x.ScrubRate != 0 && x.ScrubRate < minRate || x.ResyncRate != 0 && x.ResyncRate < minRate:
		return refuse(ErrInvalid, "a rate of %s a second: want 1M or more", cluster.FormatSize(min(x.ScrubRate,
			x.ResyncRate)))
	case x.ResyncP99 != 0 && (x.ResyncP99 < minP99 || x.ResyncP99 > maxP99):
		return refuse(ErrInvalid, "a 99th percentile of %v: want 100us to 10s, or auto", x.ResyncP99)
	case x.Reserve > maxReserve:
		return refuse(ErrInvalid, "a reserve of %d %%: want 0 to %d", x.Reserve, maxReserve)
	}
	return nil
}

// Set plans other settings.
func (s *State) Set(next Settings, now time.Time) (*Tx, error) {
	if err := next.check(); err != nil {
		return nil, err
	}
	tx := s.Begin(now)
	old := s.Settings()
	if next == old {
		return tx, nil
	}
	tx.put(settingsKey, next)
	if next.Paused != old.Paused {
		tx.event(Info, "moves-paused", "", "moves of data are %s", map[bool]string{true: "paused; copies that " +
			"only catch up go on", false: "resumed"}[next.Paused])
	}
	if next.Grace != old.Grace {
		tx.event(Info, "grace", "", "copies on a device that is away are made anew after %v", next.Grace)
	}
	if next.ScrubEvery != old.ScrubEvery {
		tx.event(Info, "scrub-every", "", "devices are scrubbed %s", often(next.ScrubEvery))
	}
	if next.ScrubRate != old.ScrubRate {
		tx.event(Info, "scrub-rate", "", "scrubs read %s", atMost(next.ScrubRate, "as fast as sds does by itself"))
	}
	if next.ResyncRate != old.ResyncRate {
		tx.event(Info, "resync-rate", "", "resyncs compare and copy %s", atMost(next.ResyncRate,
			"as fast as clients' latency allows"))
	}
	if next.ResyncP99 != old.ResyncP99 {
		tx.event(Info, "resync-p99", "", "resyncs and moves slow down where the 99th percentile of clients' reads and "+
			"writes is above %s", patience(next.ResyncP99))
	}
	if next.Reserve != old.Reserve {
		tx.event(Info, "reserve", "", "clients' writes leave %d %% of each device to copies that are made anew or move",
			next.Reserve)
	}
	return tx, nil
}

func often(every time.Duration) string {
	if every == 0 {
		return "on order only"
	}
	return fmt.Sprintf("every %v", every)
}

func patience(p99 time.Duration) string {
	if p99 == 0 {
		return "5ms, or twice what it is without them"
	}
	return p99.String()
}

func atMost(rate uint64, unbounded string) string {
	if rate == 0 {
		return unbounded
	}
	return fmt.Sprintf("%s a second and device at most", cluster.FormatSize(rate))
}

func (s *State) applySettings(c Change) error {
	if c.Value == nil {
		s.settings = nil
		return nil
	}
	next := defaults() // an older mdm wrote fewer
	if err := json.Unmarshal(c.Value, &next); err != nil {
		return err
	}
	s.settings = &next
	return nil
}
