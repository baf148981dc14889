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

// Goal: when all went down at once and one is back, status says that I/O waits, and for
// whom: what is up may have forgotten acknowledged writes. It ends when the other is back.
func TestHealthAfterAllWereDown(t *testing.T) {
	y := newYard(t, 2, 2)
	y.down(0)
	y.down(1)
	y.health(Unavailable, "all are down")
	y.restart(0, false)
	y.settle()
	y.health(Unavailable, "one is back, without its cache")
	reasons := strings.Join(y.state().Status(nil).Reasons, "\n")
	for _, want := range []string{"groups wait for device 2 (sds1:", "have restarted, and may lack acknowledged"} {
		if !strings.Contains(reasons, want) {
			t.Errorf("no %q in %s", want, reasons)
		}
	}
	y.restart(1, true)
	y.carry(1)
	y.health(OK, "both are back")

	y.down(0)
	y.down(1)
	y.restart(0, true)
	y.health(Degraded, "one is back with all that it had")

	y.down(0)
	y.restart(0, false)
	y.health(Unavailable, "the other one is lost for good")
	tx, err := y.state().RemoveDevice(2, true, y.now)
	if err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	y.settle()
	y.health(Degraded, "it was given up")
	y.wantInSync("what is left", 1)
	if h := y.state().judge(y.group()); !h[0].up || !h[0].sound {
		t.Errorf("the copy that is left is %+v: nothing can be copied from it", h[0])
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
