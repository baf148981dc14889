// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"time"
)

// Settings are what operators set for the whole cluster.
type Settings struct {
	Grace  time.Duration `json:"grace"`            // see DefaultGrace
	Paused bool          `json:"paused,omitempty"` // no new moves
}

// Settings returns what is set, or the defaults.
func (s *State) Settings() Settings {
	if s.settings == nil {
		return Settings{Grace: DefaultGrace}
	}
	return *s.settings
}

// Set plans other settings.
func (s *State) Set(next Settings, now time.Time) (*Tx, error) {
	if next.Grace < 0 || next.Grace > 30*24*time.Hour {
		return nil, refuse(ErrInvalid, "a grace time of %v: want 0s to 720h", next.Grace)
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
	return tx, nil
}

func (s *State) applySettings(c Change) error {
	if c.Value == nil {
		s.settings = nil
		return nil
	}
	var next Settings
	if err := json.Unmarshal(c.Value, &next); err != nil {
		return err
	}
	s.settings = &next
	return nil
}
