// SPDX-License-Identifier: Apache-2.0

package state

import (
	"strings"
	"testing"
	"time"
)

// Goal: a drill is refused, with what to do, wherever it could cost more than time.
// Method: one cluster, changed case by case.
func TestDrillGuard(t *testing.T) {
	check := func(b *bench, kind, server, running, want string) {
		t.Helper()
		err := b.state().CheckDrill(kind, server, running)
		switch {
		case want == "" && err != nil:
			t.Errorf("%s %s: %v", kind, server, err)
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s %s: %v, want %q", kind, server, err, want)
		}
	}
	drills := func(from, to int, allowed bool) *bench {
		b := newBench(t, 0)
		for i := from; i < to; i++ {
			r := report(i, 1)
			r.Drills = allowed
			b.register(r)
		}
		return b
	}
	b := drills(0, 3, true)
	for _, kind := range []string{DrillSlow, DrillRot, DrillPartition, DrillKill} {
		check(b, kind, "sds1", "", "")
		check(b, kind, "sds9", "", "no such server")
		check(b, kind, "", "", "no such server")
		check(b, kind, "sds1", "sds0", "goes on at sds0")
	}
	check(b, DrillLeader, "", "", "")
	check(b, DrillFull, "", "", "")
	check(b, "flood", "sds1", "", "there is no drill")
	check(drills(0, 3, false), DrillKill, "sds1", "", "--allow-drills")
	check(drills(0, 3, false), DrillFull, "", "", "--allow-drills")
	two := drills(0, 2, true)
	check(two, DrillKill, "sds1", "", "want 3")
	check(two, DrillPartition, "sds1", "", "want 3")
	check(two, DrillSlow, "sds1", "", "")

	b.create("v", 2)
	check(b, DrillKill, "sds1", "", "")
	if tx, err := b.state().Maintain("sds1", true, false, Membership{}, b.now); err != nil {
		t.Fatal(err)
	} else {
		b.commit(tx)
	}
	check(b, DrillKill, "sds1", "", "maintenance")

	single := drills(0, 3, true)
	single.create("alone", 1)
	check(single, DrillKill, "sds1", "", "only copy")
	check(single, DrillLeader, "", "", "")

	down := drills(0, 3, true)
	down.create("v", 2)
	down.commit(down.state().Expire([]string{"sds0"}, down.now.Add(time.Hour)))
	check(down, DrillSlow, "sds1", "", "lack copies")

	if _, err := b.state().DrillVolume("v"); err == nil || !strings.Contains(err.Error(), "not a drill's own") {
		t.Errorf("a drill may spoil volume v: %v", err)
	}
	if _, err := b.state().DrillVolume("drill-9"); err == nil || !strings.Contains(err.Error(), "no volume") {
		t.Errorf("a drill may spoil a volume that is not there: %v", err)
	}
}
