// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"strings"
	"testing"
	"time"

	"braid/cluster"
)

// plan computes and commits the moves that are due.
func (y *yard) plan(without ...cluster.DeviceID) MovePlan {
	y.t.Helper()
	m := y.membership(without...)
	plan, err := y.state().PlanMoves(m, y.now)
	if err != nil {
		y.t.Fatal(err)
	}
	y.wantFlows(plan)
	y.commit(y.state().Move(plan, "test", y.now))
	return plan
}

// wantFlows fails unless what flows is all that comes to each device, and is read where
// it is in sync: on every device that has some of it.
func (y *yard) wantFlows(plan MovePlan) {
	y.t.Helper()
	comes, from := map[cluster.DeviceID]uint64{}, map[[2]cluster.DeviceID]bool{}
	all := uint64(0)
	for _, f := range plan.Flows {
		comes[f.To] += f.Bytes
		from[[2]cluster.DeviceID{f.From, f.To}] = true
		all += f.Bytes
	}
	for _, f := range plan.Fill {
		if comes[f.Device] != f.Comes {
			y.t.Errorf("%d bytes flow to device %d, the plan has %d", comes[f.Device], f.Device, f.Comes)
		}
	}
	for _, m := range plan.Moves {
		for _, to := range m.Come {
			for _, d := range y.state().record(m.PG).InSync {
				if !from[[2]cluster.DeviceID{d, to}] {
					y.t.Errorf("nothing flows from device %d to %d, which takes copies of its groups", d, to)
				}
			}
		}
	}
	if all != plan.Bytes {
		y.t.Errorf("%d bytes flow, the plan has %d", all, plan.Bytes)
	}
}

// membership has every device as full as it has copies: 1 MiB each.
func (y *yard) membership(without ...cluster.DeviceID) Membership {
	m := Membership{Used: map[cluster.DeviceID]uint64{}, Without: map[cluster.DeviceID]bool{}}
	for id, n := range y.state().copies() {
		m.Used[id] = uint64(n) << 20
	}
	for _, id := range without {
		m.Without[id] = true
	}
	return m
}

// resync lets every running target join, as servers do when all is copied.
func (y *yard) resync() (joined int) {
	y.t.Helper()
	for _, d := range y.state().sortedDevices() {
		var groups []JoinGroup
		for _, r := range y.state().ResyncReady(d.ID, y.done) {
			groups = append(groups, JoinGroup{r.PG, r.Epoch})
		}
		if len(groups) == 0 {
			continue
		}
		tx, refused, later := y.state().JoinInSync(d.ID, d.Incarnation, groups, y.state().MapVersion(), y.now)
		if len(refused)+len(later) > 0 {
			y.t.Fatalf("device %d: refused %v, later %v", d.ID, refused, later)
		}
		y.commit(tx)
		joined += len(groups)
	}
	return joined
}

// carry lets everything happen that is due, and returns how many copies were
// made. In each state between, no group has fewer copies than floor.
func (y *yard) carry(floor int) (copied int) {
	y.t.Helper()
	for range 1000 {
		y.settle()
		y.announce()
		y.eachGroup(func(g *group) {
			if len(g.InSync) < floor {
				y.t.Fatalf("a group has %v in sync, want %d at least", g.InSync, floor)
			}
		})
		n := y.resync()
		y.wantBounded()
		if copied += n; n == 0 && y.state().Settle(y.now).Empty() {
			return copied
		}
	}
	y.t.Fatal("moving does not come to an end")
	return 0
}

// wantBounded fails where a group has more copies than a client takes.
func (y *yard) wantBounded() {
	y.t.Helper()
	replicas := y.state().sets[y.volume.PGSet].Replicas
	y.eachGroup(func(g *group) {
		if n := len(g.InSync); n > replicas+1 || n > replicas && g.Target != 0 {
			y.t.Fatalf("a group of %d replicas has %v in sync and target %d", replicas, g.InSync, g.Target)
		}
	})
}

func (y *yard) eachGroup(f func(*group)) {
	y.state().each(y.volume.PGSet, func(_ cluster.PGID, p *placed) { f(p.record) })
}

// wantEven fails unless the copies lie evenly, and only on these devices.
func (y *yard) wantEven(what string, on ...cluster.DeviceID) {
	y.t.Helper()
	n := y.state().copies()
	least, most := 1<<30, 0
	for _, id := range on {
		least, most = min(least, n[id]), max(most, n[id])
		delete(n, id)
	}
	if len(n) != 0 || most-least > 1 {
		y.t.Errorf("%s: %d..%d copies on %v, and on others %v", what, least, most, on, n)
	}
	y.eachGroup(func(g *group) {
		if g.Want != nil || g.Target != 0 || !sameDevices(g.Replicas, g.InSync) {
			y.t.Fatalf("%s: %+v is not settled", what, g)
		}
	})
}

// Goal: data spreads over servers that join, as few copies move as can, and
// redundancy is never less than before. A server that is then removed in order
// is emptied and forgotten.
func TestMovesFollowMembership(t *testing.T) {
	y := newYard(t, 3, 2)
	y.wantEven("at first", 1, 2, 3)
	if p := y.plan(); len(p.Moves) != 0 {
		t.Fatalf("moves without a cause: %+v", p.Moves[0])
	}
	for i := 3; i < 5; i++ {
		y.reports = append(y.reports, report(i, 1))
		y.register(y.reports[i])
	}
	plan := y.plan()
	if plan.Copies == 0 || plan.Copies > plan.Least*115/100 {
		t.Errorf("%d copies move, %d would do", plan.Copies, plan.Least)
	}
	if copied := y.carry(2); copied != plan.Copies {
		t.Errorf("%d copies were made, the plan had %d", copied, plan.Copies)
	}
	y.wantEven("after two joined", 1, 2, 3, 4, 5)

	tx, removal, err := y.state().PlanRemoval(ids(2), true, y.membership(), y.now)
	if err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	if again := y.plan(); again.Copies != removal.Copies || again.Bytes != removal.Bytes {
		t.Errorf("shown were %d copies, done are %d", removal.Copies, again.Copies)
	}
	y.carry(2)
	y.wantEven("after one was removed", 1, 3, 4, 5)
	if y.state().devices[2] != nil || y.state().copies()[2] != 0 {
		t.Error("the emptied device is still there")
	}
	y.reports[1].Devices[0].StartCounter++
	if answer := y.register(y.reports[1]); !strings.Contains(answer.Refused[0], "was removed") {
		t.Errorf("a removed device came back: %+v", answer)
	}
}

// Goal: what a lost device held is made again after the grace time and not
// before; a device that returns within it only catches up.
func TestLostCopiesAreMadeAgain(t *testing.T) {
	y := newYard(t, 4, 2)
	y.down(0)
	y.settle()
	y.now = y.now.Add(DefaultGrace / 2)
	if p := y.plan(); len(p.Moves) != 0 {
		t.Fatal("moves within the grace time")
	}
	y.restart(0, false)
	y.carry(1)
	y.wantEven("after it came back", 1, 2, 3, 4)

	y.down(0)
	y.now = y.now.Add(DefaultGrace + time.Second)
	plan := y.plan()
	if plan.Rebuilt != plan.Copies || plan.Copies == 0 {
		t.Errorf("%d of %d copies are rebuilt", plan.Rebuilt, plan.Copies)
	}
	y.carry(1)
	y.wantEven("after it was lost", 2, 3, 4)
	y.restart(0, false)
	y.plan()
	y.carry(2)
	y.wantEven("after it came back late", 1, 2, 3, 4)
}

// Goal: a server in maintenance keeps its copies, however long it is away, and
// nobody enters maintenance whose copies are the last.
func TestMaintenanceKeepsCopies(t *testing.T) {
	y := newYard(t, 3, 2)
	maintain := func(name string, enter bool) error {
		tx, err := y.state().Maintain(name, enter, false, Membership{}, y.now)
		if err == nil {
			y.commit(tx)
		}
		return err
	}
	if err := maintain("sds0", true); err != nil {
		t.Fatal(err)
	}
	y.down(0)
	y.now = y.now.Add(time.Hour)
	if p := y.plan(); len(p.Moves) != 0 {
		t.Error("copies of a server in maintenance are made again")
	}
	y.settle()
	wants(t, maintain("sds1", true), ErrRefused, "only in-sync copy", "scli status")
	wants(t, maintain("sds9", true), ErrNotFound, "scli sds list")
	y.restart(0, true)
	if y.state().servers["sds0"].Maintenance == "" {
		t.Error("a restart ended the maintenance")
	}
	y.carry(1)
	if err := maintain("sds0", false); err != nil {
		t.Fatal(err)
	}
	y.wantEven("after maintenance", 1, 2, 3)
}

// Goal: no move that puts two copies of a group on one server because another is
// lost, and none for which there is no room; both with words that help.
func TestMovesThatMustNotBe(t *testing.T) {
	y := newYard(t, 2, 2)
	y.down(0)
	y.now = y.now.Add(2 * DefaultGrace)
	_, err := y.state().PlanMoves(y.membership(), y.now)
	wants(t, err, ErrRefused, "add servers")
	_, _, err = y.state().PlanRemoval(ids(1), true, y.membership(), y.now)
	wants(t, err, ErrRefused, "add servers")
	_, _, err = y.state().PlanRemoval(ids(7), true, y.membership(), y.now)
	wants(t, err, ErrNotFound, "device 7", "scli device list")

	y = newYard(t, 3, 2)
	m := y.membership()
	for id := range m.Used {
		m.Used[id] = 9 << 30 // of 10
	}
	_, _, err = y.state().PlanRemoval(ids(1), true, m, y.now)
	wants(t, err, ErrRefused, "% full", "add devices")
}

// Goal: plans that replace each other half-way leave no copy behind that none of them
// names any more, and never more copies of a group than a client takes.
func TestPlansThatReplaceEachOther(t *testing.T) {
	for replicas := 1; replicas <= 4; replicas++ {
		y := newYard(t, 4, replicas)
		for i := 4; i < 8; i++ {
			y.reports = append(y.reports, report(i, 1))
			y.register(y.reports[i])
		}
		for _, without := range [][]cluster.DeviceID{ids(1, 2, 3), ids(2, 3, 5, 6), ids(3, 4, 7, 8), ids(1, 5, 6, 7)} {
			y.plan(without...)
			for range 3 {
				y.settle()
				y.announce()
				y.wantBounded()
				y.resync()
				y.wantBounded()
			}
		}
		y.plan(ids(5, 6, 7, 8)...)
		y.carry(replicas)
		y.wantEven("back where it was", 1, 2, 3, 4)
	}
}

// Goal: while paused, copies catch up and nothing moves; a removal that is taken
// back leaves all where it was.
func TestPauseAndTakeBack(t *testing.T) {
	y := newYard(t, 3, 2)
	tx, err := y.state().Set(Settings{Grace: time.Minute, Paused: true}, y.now)
	if err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	y.reports = append(y.reports, report(3, 1))
	y.register(y.reports[3])
	plan := y.plan()
	y.restart(0, false)
	y.carry(1)
	if y.state().copies()[4] != 0 {
		t.Error("something moved while paused")
	}
	if tx, err = y.reloaded().Set(Settings{Grace: time.Minute}, y.now); err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	if copied := y.carry(2); copied != plan.Copies {
		t.Errorf("%d copies after the pause, planned were %d", copied, plan.Copies)
	}
	y.wantEven("after the pause", 1, 2, 3, 4)

	for _, removing := range []bool{true, false} {
		if tx, _, err = y.state().PlanRemoval(ids(4), removing, y.membership(), y.now); err != nil {
			t.Fatal(err)
		}
		y.commit(tx)
		y.plan()
		if removing {
			y.settle()
			y.announce()
		}
	}
	y.carry(2)
	y.wantEven("after a removal was taken back", 1, 2, 3, 4)
}

func (y *yard) reloaded() *State {
	s := y.reload()
	s.Policy = y.state().Policy
	if s.Settings() != y.state().Settings() {
		y.t.Error("settings differ after a restart")
	}
	return s
}

// Goal: a device of twice the size takes twice the copies.
func TestMovesByWeight(t *testing.T) {
	y := newYard(t, 3, 2)
	big := report(3, 1)
	big.Devices[0].Size *= 2
	y.reports = append(y.reports, big)
	y.register(big)
	y.plan()
	y.carry(2)
	n, total := y.state().copies(), 0
	for _, c := range n {
		total += c
	}
	if got, want := n[4], total*2/5; got < want-1 || got > want+1 {
		t.Errorf("the big device has %d of %d copies, want %d", got, total, want)
	}
	if !slices.IsSorted([]int{n[1] - 1, n[2], n[1] + 1}) {
		t.Errorf("the others are uneven: %v", n)
	}
}

// Goal: an attach after an unclean end reckons with a device that was removed
// since: it may still serve the old client, and nobody can fence it.
func TestRemovedDevicesAreReckonedWith(t *testing.T) {
	y := newYard(t, 4, 2)
	x := y.start(AttachRequest{})
	y.adopt(x, y.state().MapVersion())
	tx, _, err := y.state().PlanRemoval(ids(1), true, y.membership(), y.now)
	if err != nil {
		t.Fatal(err)
	}
	y.commit(tx)
	y.plan()
	for y.settle(); y.state().devices[1] != nil; y.settle() {
		y.announce()
		y.adopt(x, y.state().MapVersion())
		y.resync()
	}
	if b := y.state().Before(y.volume, y.done); !slices.Contains(b.Fence, 1) || b.Wait == 0 {
		t.Errorf("before the session has adopted the removal: fence %v, wait %v", b.Fence, b.Wait)
	}
	y.adopt(x, y.state().MapVersion())
	if b := y.state().Before(y.volume, y.done); slices.Contains(b.Fence, 1) {
		t.Errorf("after it has: fence %v", b.Fence)
	}
}

// Goal: what mdm notes for itself makes no new version of the map, since nobody
// would be sent one, and clients that come later would be ahead of all servers.
func TestNotesAreNoVersions(t *testing.T) {
	y := newYard(t, 3, 2)
	y.reports = append(y.reports, report(3, 1))
	y.register(y.reports[3])
	before := y.state().MapVersion()
	if plan := y.plan(); len(plan.Moves) == 0 {
		t.Fatal("nothing is to move")
	}
	if got := y.state().MapVersion(); got != before {
		t.Errorf("planned moves made map version %d of %d", got, before)
	}
	y.announce()
	if got := y.state().MapVersion(); got == before {
		t.Error("announced targets made no new version")
	}
}
