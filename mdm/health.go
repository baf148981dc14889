// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"time"

	"braid/mdm/state"
)

// How often the leader looks at the cluster's health where the map has not
// changed (a device fills up), and how long a health must last before it becomes
// an event: while copies are made one after the other, it goes to and fro. That
// data is unavailable is told at once.
const (
	healthEvery = 20 // ticks
	healthTicks = 4
	fillEvery   = 4 // ticks between two looks at how full devices are
)

// healthWatch is what the leader has seen last. It belongs to tick.
type healthWatch struct {
	filled  int    // ticks since devices that fill up were looked for
	version uint64 // of the map
	age     int    // ticks since it was looked at
	health  string
	lasted  int // ticks
}

// tellFill makes events of devices that fill up, or have room again.
func (l *leader) tellFill(ctx context.Context) error {
	if l.health.filled++; l.health.filled < fillEvery {
		return nil
	}
	l.health.filled = 0
	used, now, news := l.leases.usage(), l.now(), false
	l.store.read(func(st *state.State) { news = !st.TellFill(used, now).Empty() })
	if !news {
		return nil
	}
	return l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.TellFill(used, now), nil
	})
}

// tellHealth makes an event of a change of health.
func (l *leader) tellHealth(ctx context.Context) error {
	w := &l.health
	used := l.leases.usage()
	told := ""
	l.store.read(func(st *state.State) {
		told = st.ToldHealth()
		if w.age++; w.health != "" && st.MapVersion() == w.version && w.age < healthEvery {
			return
		}
		before := w.health
		w.version, w.age, w.health = st.MapVersion(), 0, st.Status(used).Health
		if w.health != before {
			w.lasted = 0
		}
	})
	w.lasted++
	if w.health == told || w.lasted < healthTicks && w.health != state.Unavailable {
		return nil
	}
	return l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.TellHealth(used, now), nil
	})
}
