// SPDX-License-Identifier: Apache-2.0

package state

import (
	"strings"
	"testing"
)

func (y *yard) health(want, when string) {
	y.t.Helper()
	if st := y.state().Status(nil); st.Health != want {
		y.t.Errorf("%s: health %s because of %q, want %s", when, st.Health, st.Reasons, want)
	}
}

// Goal: health tells apart what is missing from what is being mended, and that
// from what only moves. Method: a server goes and comes back, another joins.
func TestHealthOfALoss(t *testing.T) {
	y := newYard(t, 2, 2)
	y.health(OK, "at first")
	y.down(0)
	y.health(Degraded, "a server is down")
	y.settle()
	y.health(Degraded, "its copies are out")
	y.restart(0, false)
	y.announce()
	y.health(Rebuilding, "it is back and catches up")
	y.carry(1)
	y.health(OK, "it has caught up")
	y.reports = append(y.reports, report(2, 1))
	y.register(y.reports[2])
	y.plan()
	y.health(Rebalancing, "data moves to a server that joined")
	y.carry(2)
	y.health(OK, "it has moved")
	y.tell(0)
	y.down(1)
	y.down(2)
	y.health(Unavailable, "two of three are down")
	y.tell(1)
	if e := y.newest(); e.Kind != "health" || e.Severity != Error || e.Subject != Unavailable ||
		!strings.Contains(e.Text, "was ok") || !strings.Contains(e.Text, "I/O to them waits") {
		y.t.Errorf("event %+v", e)
	}
	y.tell(0)
	y.restart(1, true)
	y.restart(2, true)
	y.carry(1)
	y.tell(1)
	if e := y.newest(); e.Subject != OK || e.Severity != Info {
		y.t.Errorf("event %+v", e)
	}
}

// tell tells the health, which makes so many events.
func (y *yard) tell(want uint64) {
	y.t.Helper()
	before := y.state().LastEvent()
	y.commit(y.state().TellHealth(nil, y.now))
	if n := y.state().LastEvent() - before; n != want {
		y.t.Errorf("%d events, want %d", n, want)
	}
}

func (y *yard) newest() Event {
	events := y.state().Events(0, 1)
	return events[len(events)-1]
}
