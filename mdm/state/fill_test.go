// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"strings"
	"testing"

	"braid/cluster"
)

// Goal: each crossing of a level is told once, with the device, and a device that
// goes to and fro about a level is not told of again; a new leader, who has only
// the records, says nothing twice. Method: one device's fill, step by step.
func TestFillIsTold(t *testing.T) {
	y := newYard(t, 3, 2)
	size := y.state().devices[1].Size
	steps := []struct {
		percent        uint64
		severity, text string // of the event; empty: none
	}{
		{50, "", ""},
		{84, "", ""},
		{85, Warning, "85% full: add devices soon"},
		{84, "", ""},
		{94, "", ""},
		{95, Warning, "95% full: writes that need space"},
		{93, "", ""},
		{96, "", ""},
		{92, Info, "92% full: has room again"},
		{83, "", ""},
		{82, Info, "82% full: has room again"},
		{99, Warning, "99% full: writes that need space"},
		{10, Info, "10% full: has room again"},
	}
	for _, x := range steps {
		before := y.state().LastEvent()
		used := map[cluster.DeviceID]uint64{1: size / 100 * x.percent}
		y.commit(y.state().TellFill(used, y.now))
		told := y.state().Events(before, 0)
		switch {
		case x.text == "" && len(told) == 0:
		case x.text == "" || len(told) != 1:
			t.Errorf("at %d%%: events %+v", x.percent, told)
		default:
			if e := told[0]; e.Kind != "capacity" || e.Severity != x.severity || !strings.Contains(e.Text, x.text) {
				t.Errorf("at %d%%: event %+v", x.percent, e)
			}
		}
		if !y.reloaded().TellFill(used, y.now).Empty() {
			t.Errorf("at %d%%: a new leader tells again", x.percent)
		}
		y.restart(0, true)
		if !y.state().TellFill(used, y.now).Empty() {
			t.Errorf("at %d%%: told again after the server came back", x.percent)
		}
	}
}

// Goal: status says when the loss of a fault set could not be made good for want
// of room, and only where copies could be made anew at all.
func TestReserveForRebuilds(t *testing.T) {
	const text = "would find no room elsewhere"
	lacks := func(y *yard, percent ...uint64) bool {
		used := map[cluster.DeviceID]uint64{}
		for i, p := range percent {
			id := cluster.DeviceID(i + 1)
			used[id] = y.state().devices[id].Size / 100 * p
		}
		return slices.ContainsFunc(y.state().Status(used).Reasons, func(reason string) bool {
			return strings.Contains(reason, text)
		})
	}
	y := newYard(t, 4, 2)
	for _, x := range []struct {
		percent []uint64
		want    bool
	}{
		{[]uint64{0, 0, 0, 0}, false},
		{[]uint64{70, 70, 70, 70}, false}, // three times 25 % are free elsewhere
		{[]uint64{72, 72, 72, 72}, true},
		{[]uint64{20, 80, 80, 80}, false},
		{[]uint64{80, 80, 80, 60}, true},
	} {
		if got := lacks(y, x.percent...); got != x.want {
			t.Errorf("devices are %v %% full: lacks room %v", x.percent, got)
		}
	}
	if lacks(newYard(t, 2, 2), 80, 80) {
		t.Error("two servers and two copies: nothing could be made anew")
	}
}

// Goal: that writes wait for room is told once when it begins and once when it ends, by
// whatever leader, stands in the status meanwhile, and ends with the session.
func TestRoomlessIsTold(t *testing.T) {
	y := newYard(t, 3, 2)
	x := y.start(AttachRequest{Volume: "v", Client: "c", Host: "h", Request: "r"})
	tell := func(want string, on ...cluster.DeviceID) {
		t.Helper()
		before := y.state().LastEvent()
		y.commit(y.state().TellRoomless(x.Volume, x.Generation, on, y.now))
		told := y.state().Events(before, 0)
		switch {
		case want == "" && len(told) == 0:
		case want == "" || len(told) != 1 || told[0].Kind != "capacity" || !strings.Contains(told[0].Text, want):
			t.Errorf("writes wait on %v: events %+v, want %q", on, told, want)
		}
		if !y.reloaded().TellRoomless(x.Volume, x.Generation, on, y.now).Empty() {
			t.Errorf("writes wait on %v: a new leader tells again", on)
		}
		st := y.state().Status(nil)
		if waits := len(on) > 0; waits != (st.Waiting == 1) || waits != (st.Health == Full) {
			t.Errorf("writes wait on %v: status %+v", on, st)
		}
	}
	tell("")
	tell("volume v: writes wait for space on device 2 (", 2)
	tell("", 3, 2)
	tell("volume v: its writes go on")
	tell("writes wait for space on device 1 (", 1)
	if !y.state().TellRoomless(x.Volume, x.Generation+1, nil, y.now).Empty() {
		t.Error("another session says that writes go on")
	}
	tx, err := y.state().Detach("v", "c", x.Generation, y.now)
	if err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	if st := y.state().Status(nil); st.Waiting != 0 || st.Health == Full {
		t.Errorf("after the detach: %+v", st)
	}
}
