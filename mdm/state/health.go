// SPDX-License-Identifier: Apache-2.0

package state

import (
	"strings"
	"time"

	"braid/cluster"
)

// healthKind is the kind of the events that tell a change of health; the health is
// their subject.
const healthKind = "health"

// ToldHealth is the health that the newest event about it tells; ok without one.
func (s *State) ToldHealth() string {
	for i := len(s.events) - 1; i >= 0; i-- {
		if s.events[i].Kind == healthKind {
			return s.events[i].Subject
		}
	}
	return OK
}

// TellHealth makes an event of the health, if it is not the one told last.
func (s *State) TellHealth(used map[cluster.DeviceID]uint64, now time.Time) *Tx {
	tx := s.Begin(now)
	st, before := s.Status(used), s.ToldHealth()
	if st.Health == before {
		return tx
	}
	severity := Info
	switch st.Health {
	case Degraded, Full:
		severity = Warning
	case Unavailable:
		severity = Error
	}
	why := ""
	if len(st.Reasons) > 0 && st.Health != OK {
		why = ": " + strings.Join(st.Reasons, "; ")
	}
	tx.event(severity, healthKind, st.Health, "health is %s, was %s%s", st.Health, before, why)
	return tx
}
