// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"strings"
	"testing"

	"braid/cluster"
)

// Goal: each bad volume is refused with words that help.
func TestBadVolumes(t *testing.T) {
	b := newBench(t, 2)
	b.create("taken", 2)
	for _, c := range []struct {
		spec  VolumeSpec
		kind  error
		words []string
	}{
		{VolumeSpec{Name: "", Size: 4096}, ErrInvalid, []string{"a-z 0-9"}},
		{VolumeSpec{Name: "Upper", Size: 4096}, ErrInvalid, []string{"Upper"}},
		{VolumeSpec{Name: "a/b", Size: 4096}, ErrInvalid, nil},
		{VolumeSpec{Name: "..", Size: 4096}, ErrInvalid, nil},
		{VolumeSpec{Name: strings.Repeat("a", 64), Size: 4096}, ErrInvalid, nil},
		{VolumeSpec{Name: "v"}, ErrInvalid, []string{"size is 0"}},
		{VolumeSpec{Name: "v", Size: 5000}, ErrInvalid, []string{"multiple of 4096", "8192"}},
		{VolumeSpec{Name: "v", Size: 1 << 61}, ErrInvalid, []string{"largest"}},
		{VolumeSpec{Name: "v", Size: 4096, Replicas: 5}, ErrInvalid, []string{"1 to 4"}},
		{VolumeSpec{Name: "v", Size: 4096, StripeUnit: 5000}, ErrInvalid, []string{"powers of two"}},
		{VolumeSpec{Name: "v", Size: 4096, StripeUnit: 2 << 20}, ErrInvalid, nil},
		{VolumeSpec{Name: "v", Size: 4096, StripeUnit: 2048}, ErrInvalid, nil},
		{VolumeSpec{Name: "v", Size: 4096, StripeWidth: 65}, ErrInvalid, []string{"1 to 64"}},
		{VolumeSpec{Name: "v", Size: 4096, BlockSize: 1024}, ErrInvalid, []string{"512"}},
		{VolumeSpec{Name: "taken", Size: 4096}, ErrExists, []string{"taken", "in use"}},
		{VolumeSpec{Name: "v", Size: 4096, Replicas: 3}, ErrRefused,
			[]string{"3 replicas", "are 2", "--replicas"}},
		{VolumeSpec{Name: "v", Size: 1 << 40}, ErrRefused, []string{"1T", "10G", "add devices"}},
	} {
		_, _, _, err := b.state().CreateVolume(c.spec, b.now)
		wants(t, err, c.kind, c.words...)
	}
	b.commit(b.state().Expire([]string{"sds1"}, b.now))
	_, _, _, err := b.state().CreateVolume(VolumeSpec{Name: "v", Size: 4096, Replicas: 1}, b.now)
	if err != nil {
		t.Errorf("one replica on the one device that is up: %v", err)
	}
}

func TestResize(t *testing.T) {
	b := newBench(t, 2)
	b.create("v", 2)
	resize := func(size uint64, shrink bool) error {
		tx, _, _, err := b.state().ResizeVolume("v", size, shrink, b.now)
		if err == nil {
			b.commit(tx)
		}
		return err
	}
	if _, err := b.attach(AttachRequest{Volume: "v", Client: "c", Host: "h"}); err != nil {
		t.Fatal(err)
	}
	if err := resize(2<<30, false); err != nil {
		t.Errorf("growing while attached: %v", err)
	}
	wants(t, resize(1<<30, false), ErrRefused, "--shrink", "2G", "1G")
	wants(t, resize(1<<30, true), ErrRefused, "attached on host h", "detach")
	wants(t, resize(0, true), ErrInvalid, "size is 0")
	wants(t, resize(4097, true), ErrInvalid, "4096")
	wants(t, resize(1<<40, false), ErrRefused, "10G")
	tx, err := b.state().Detach("v", "c", 0, b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	if err := resize(1<<30, true); err != nil || b.state().volumeByName("v").Size != 1<<30 {
		t.Errorf("shrinking: %v", err)
	}
	_, _, _, err = b.state().ResizeVolume("w", 4096, false, b.now)
	wants(t, err, ErrNotFound, "there are: v")
}

func TestDeleteLeavesATombstone(t *testing.T) {
	b := newBench(t, 2)
	v := b.create("v", 2)
	if _, err := b.attach(AttachRequest{Volume: "v", Client: "c", Host: "h"}); err != nil {
		t.Fatal(err)
	}
	_, err := b.state().DeleteVolume("v", false, b.now)
	wants(t, err, ErrRefused, "attached on host h", "--force")
	tx, err := b.state().DeleteVolume("v", true, b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	if m := wholeMap(t, b.reload()); !m.Removed[v.ID] || m.Volumes[v.ID] != nil {
		t.Error("a server that connects later does not learn that the volume is gone")
	}
	if again := b.create("v", 2); again.ID <= v.ID {
		t.Errorf("volume number %d was used before", again.ID)
	}
	b.commit(b.state().Forget(b.state().Tombstones(), b.now))
	if m := wholeMap(t, b.state()); len(m.Removed) != 0 {
		t.Error("the tombstone is still there")
	}
}

// Goal: one holder at a time, under generations that only grow; who is refused
// learns who holds it.
func TestAttach(t *testing.T) {
	b := newBench(t, 2)
	if _, err := b.attach(AttachRequest{Client: "c", Host: "h"}); err == nil {
		t.Error("attached a volume where there is none")
	}
	b.create("v", 2)
	first, err := b.attach(AttachRequest{Client: "c1", Host: "h1", Request: "r1"})
	if err != nil || first.Generation != 1 {
		t.Fatalf("the only volume, by no name: %+v, %v", first, err)
	}
	if again, err := b.attach(AttachRequest{Client: "c1", Host: "h1", Request: "r1"}); err != nil ||
		again.Generation != 1 {
		t.Errorf("the repeated call gives %+v, %v", again, err)
	}
	_, err = b.attach(AttachRequest{Volume: "v", Client: "c2", Host: "h2", Request: "r2"})
	wants(t, err, ErrRefused, "host h1", "client c1", "2031-05-01", "--force", "sdc detach")
	_, err = b.attach(AttachRequest{Volume: "v", Client: "c1", Host: "h1", Request: "r3"})
	wants(t, err, ErrRefused, "this client has it")
	again, err := b.attach(AttachRequest{Volume: "v", Client: "c1", Host: "h1", Request: "r4", GuestAlive: true})
	if err != nil || again.Generation != 2 {
		t.Errorf("the same client under a living guest: %+v, %v", again, err)
	}
	_, err = b.attach(AttachRequest{Volume: "v", Client: "c1", Host: "h2", Request: "r5", GuestAlive: true})
	wants(t, err, ErrRefused, "host h1")
	_, err = b.attach(AttachRequest{Volume: "v", Client: "c1", Host: "h1", Request: "r5", GuestAlive: true,
		Continues: 3})
	wants(t, err, ErrRefused, "attached elsewhere since", "generation 2, not 3", "detach it")
	forced, err := b.attach(AttachRequest{Volume: "v", Client: "c2", Host: "h2", Request: "r6", Force: true})
	if err != nil || forced.Generation != 3 || b.state().Holds(1, "c1", 2) || !b.state().Holds(1, "c2", 3) {
		t.Errorf("by force: %+v, %v", forced, err)
	}
	events := b.state().Events(0, 0)
	if !slices.ContainsFunc(events, func(e Event) bool {
		return e.Kind == "fenced" && strings.Contains(e.Text, "h1")
	}) {
		t.Error("no event tells of the fencing")
	}
	tx, err := b.state().Detach("v", "c1", 2, b.now)
	if err != nil || !tx.Empty() {
		t.Errorf("the fenced client detaches what is not its own: %v", err)
	}
	b.commit(b.state().ExpireSessions([]cluster.VolumeID{1}, b.now))
	// Rule 21: etcd came back from a backup and devices have seen more.
	tx, _, s, err := b.state().Attach(AttachRequest{Volume: "v", Client: "c3", Host: "h3"},
		func(cluster.VolumeID) cluster.Generation { return 41 }, b.now)
	if err != nil || s.Generation != 42 {
		t.Fatalf("generation %+v, %v after devices reported 41", s, err)
	}
	b.commit(tx)
	b.create("w", 2)
	_, err = b.attach(AttachRequest{Client: "c", Host: "h"})
	wants(t, err, ErrInvalid, "v, w", "--volume")
	_, err = b.attach(AttachRequest{Volume: "x", Client: "c", Host: "h"})
	wants(t, err, ErrNotFound, "v, w")
}

// Goal: a device leaves the in-sync sets of the volume's groups, with a new
// epoch, and never as the last one; only the holder may say so.
func TestDropReplica(t *testing.T) {
	b := newBench(t, 3)
	v := b.create("v", 2)
	other := b.create("other", 1)
	s, err := b.attach(AttachRequest{Volume: "v", Client: "c", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	before := wholeMap(t, b.state())
	_, _, _, err = b.state().DropReplica(v.ID, s.Generation+1, 1, "", b.now)
	wants(t, err, ErrRefused, "generation 2")
	drop := func(id cluster.DeviceID) (dropped, last []cluster.PGID) {
		tx, dropped, last, err := b.state().DropReplica(v.ID, s.Generation, id, "its cache is gone", b.now)
		if err != nil {
			t.Fatal(err)
		}
		b.commit(tx)
		return dropped, last
	}
	dropped, last := drop(1)
	after := wholeMap(t, b.state())
	if len(last) != 0 || len(dropped) < 150 {
		t.Errorf("%d dropped, %d kept", len(dropped), len(last))
	}
	for i, pg := range after.PGs[v.PGSet] {
		was := before.PGs[v.PGSet][i]
		if pg.Has(1) || was.Has(1) != (pg.Epoch == was.Epoch+1) || len(pg.Replicas) != 2 {
			t.Fatalf("%+v became %+v", was, pg)
		}
	}
	if again, last := drop(1); len(again)+len(last) != 0 || len(b.lastTx) != 0 {
		t.Error("dropping twice changes something")
	}
	dropped, last = drop(2)
	if len(last) == 0 || len(dropped) == 0 {
		t.Errorf("%d dropped, %d kept as the last copy", len(dropped), len(last))
	}
	for _, id := range last {
		if pg := wholeMap(t, b.state()).PG(id); !pg.Has(2) {
			t.Fatalf("group %+v lost its last copy", pg)
		}
	}
	for i, pg := range wholeMap(t, b.state()).PGs[other.PGSet] {
		if was := before.PGs[other.PGSet][i]; !samePG(was, pg) {
			t.Fatalf("another volume's set changed: %+v", pg)
		}
	}
	if st := b.state().Status(nil); st.Health != Degraded || st.GroupsDegraded == 0 {
		t.Errorf("status %+v", st)
	}
}

func TestRegister(t *testing.T) {
	b := newBench(t, 2)
	foreign := report(5, 1)
	foreign.Cluster = cluster.UUID{9}
	_, _, err := b.state().Register(foreign, 1, b.now)
	wants(t, err, ErrRefused, cluster.UUID{9}.String(), b.state().Cluster().String(), "sds format")
	bad := report(5, 1)
	bad.Addr = "nowhere"
	_, _, err = b.state().Register(bad, 1, b.now)
	wants(t, err, ErrInvalid, "HOST:PORT")
	bad = report(5, 1)
	bad.Name = "a/b"
	_, _, err = b.state().Register(bad, 1, b.now)
	wants(t, err, ErrInvalid, "a/b")
	twin := report(7, 1)
	twin.Name = "sds0"
	_, _, err = b.state().Register(twin, 1, b.now)
	wants(t, err, ErrRefused, "127.0.0.1:8000", "--name")

	// The same disk at another server, while the first is up, and after.
	stolen := report(0, 1)
	stolen.Name, stolen.Addr = "thief", "127.0.0.1:9999"
	if got := b.register(stolen); got.Devices[0] != 0 || !strings.Contains(got.Refused[0], "sds0") {
		t.Errorf("a device of a living server: %+v", got)
	}
	b.commit(b.state().Expire([]string{"sds0"}, b.now))
	if got := b.register(stolen); got.Devices[0] != 1 || wholeMap(t, b.state()).Devices[1].Server != "thief" {
		t.Errorf("a device that moved: %+v", got)
	}

	// A restart keeps the numbers; what is missing is known to be so.
	two := report(3, 2)
	ids := b.register(two).Devices
	two.Devices = two.Devices[1:]
	if got := b.register(two); got.Devices[0] != ids[1] {
		t.Errorf("device %d is now %d", ids[1], got.Devices[0])
	}
	if m := wholeMap(t, b.state()); m.Devices[ids[0]].Up || !m.Devices[ids[1]].Up {
		t.Error("the device that the server started without is up, or the other is down")
	}
}

// Goal: renewals change the state only where something changed that matters.
func TestRenew(t *testing.T) {
	b := newBench(t, 2)
	lease := b.state().servers["sds0"].LeaseID
	r := report(0, 1).Devices
	if tx, known := b.state().Renew("sds0", lease, r, b.now); !known || !tx.Empty() {
		t.Errorf("known %v, steps %v", known, tx.Steps())
	}
	if _, known := b.state().Renew("sds0", lease+1, r, b.now); known {
		t.Error("an old lease is known")
	}
	if _, known := b.state().Renew("nobody", 0, r, b.now); known {
		t.Error("a stranger's lease is known")
	}
	r[0].Incarnation, r[0].Failed = 77, "EIO on flush"
	tx, _ := b.state().Renew("sds0", lease, r, b.now)
	b.commit(tx)
	if d := wholeMap(t, b.state()).Devices[1]; d.Up || d.Incarnation != 77 {
		t.Errorf("the failed device is %+v", d)
	}
	st := b.state().Status(nil)
	if st.Health != Degraded || !strings.Contains(strings.Join(st.Reasons, " "), "EIO on flush") {
		t.Errorf("status %+v", st)
	}
	b.commit(b.state().Expire([]string{"sds0"}, b.now))
	if _, known := b.state().Renew("sds0", lease, r, b.now); known {
		t.Error("a server that counts as down has a lease")
	}
}

// Goal: a disk whose start counter went back, or counts another start under the
// same number, is an older image: it leaves the in-sync sets wherever there is
// another copy, is not brought back, and people are told what to do (rule 21).
func TestRolledBackDevice(t *testing.T) {
	for _, c := range []struct {
		what           string
		counter, start uint64
		rolledBack     bool
	}{
		{"the same start, reported again", 9, 77, false},
		{"the next start", 10, 78, false},
		{"an earlier start", 8, 76, true},
		{"another ninth start", 9, 78, true},
		{"a server that does not tell its start", 9, 0, false},
	} {
		b := newBench(t, 3)
		b.state().Policy = Policy{Evict: true, Resync: true}
		b.create("v", 2)
		r := report(0, 1)
		r.Devices[0].StartCounter, r.Devices[0].StartID = 9, 77
		b.register(r)
		r.Devices[0].StartCounter, r.Devices[0].StartID = c.counter, c.start
		b.register(r)
		r.Devices[0].StartCounter++ // and what it does later changes nothing
		r.Devices[0].StartID = 99
		b.register(r)
		tx, _ := b.state().Announce(func(cluster.DeviceID) bool { return false }, b.now)
		b.commit(tx)
		in := false
		for _, pg := range b.state().table(1) {
			in = in || pg.Has(1) || pg.Target == 1
		}
		if in == c.rolledBack {
			t.Errorf("%s: the device is in use: %v", c.what, in)
		}
		st := b.state().Status(nil)
		if said := strings.Contains(strings.Join(st.Reasons, " "), "device remove 1 --force"); said != c.rolledBack {
			t.Errorf("%s: status %+v", c.what, st)
		}
		if on := b.state().Housing(b.now); (len(on) == 2) != c.rolledBack {
			t.Errorf("%s: data is to lie on %v", c.what, on)
		}
	}
}

func TestRemoveDevice(t *testing.T) {
	b := newBench(t, 3)
	_, err := b.state().RemoveDevice(9, false, b.now)
	wants(t, err, ErrNotFound, "device list")
	b.create("v", 2)
	_, err = b.state().RemoveDevice(1, false, b.now)
	wants(t, err, ErrRefused, "copies of", "--force")
	b.create("single", 1)
	_, err = b.state().RemoveDevice(1, true, b.now)
	wants(t, err, ErrRefused, "only in-sync copy", "delete the volumes")
	for _, name := range []string{"single"} {
		tx, err := b.state().DeleteVolume(name, false, b.now)
		if err != nil {
			t.Fatal(err)
		}
		b.commit(tx)
	}
	tx, err := b.state().RemoveDevice(1, true, b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	m := wholeMap(t, b.state())
	if m.Devices[1] != nil {
		t.Error("the device is still there")
	}
	for _, pg := range m.PGs[1] {
		if pg.Member(1) || len(pg.InSync) == 0 {
			t.Fatalf("group %+v", pg)
		}
	}
	if got := b.register(report(0, 1)); got.Devices[0] != 0 || !strings.Contains(got.Refused[0], "removed") {
		t.Errorf("the removed device came back: %+v", got)
	}
}

// Goal: a set is laid out over the devices that are up when its first volume is
// made, and anew when it is empty again; one in use stays, and says so.
func TestLayOut(t *testing.T) {
	b := newBench(t, 2)
	b.create("a", 2)
	before := wholeMap(t, b.state()).PGs[1]
	b.register(report(2, 1))
	_, _, warnings, err := b.state().CreateVolume(VolumeSpec{Name: "b", Size: 1 << 30}, b.now)
	if err != nil || !strings.Contains(strings.Join(warnings, " "), "1 device holds no copies") {
		t.Errorf("warnings %q, %v", warnings, err)
	}
	tx, err := b.state().DeleteVolume("a", false, b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	b.create("c", 2)
	used := map[cluster.DeviceID]bool{}
	for i, pg := range wholeMap(t, b.state()).PGs[1] {
		for _, id := range pg.InSync {
			used[id] = true
		}
		if !slices.Equal(pg.Replicas, before[i].Replicas) && pg.Epoch <= before[i].Epoch {
			t.Fatalf("group %d changed and kept epoch %d", i, pg.Epoch)
		}
	}
	if len(used) != 3 {
		t.Errorf("the new table uses devices %v", used)
	}
	_, _, warnings, err = b.state().CreateVolume(VolumeSpec{Name: "d", Size: 15 << 30}, b.now)
	if err == nil {
		t.Errorf("15 GiB twice on 30 GiB of disks, which hold less than 15: no error, warnings %q", warnings)
	}
	_, _, warnings, err = b.state().CreateVolume(VolumeSpec{Name: "d", Size: 14<<30 + 512<<20}, b.now)
	if err != nil || !strings.Contains(strings.Join(warnings, " "), "promise") {
		t.Errorf("overcommitment: warnings %q, %v", warnings, err)
	}
}

func TestStatus(t *testing.T) {
	b := newBench(t, 0)
	if st := b.state().Status(nil); st.Health != OK || !strings.Contains(st.Reasons[0], "no devices") {
		t.Errorf("an empty cluster: %+v", st)
	}
	for i := range 3 {
		b.register(report(i, 1))
	}
	b.create("v", 2)
	check := func(want string, used map[cluster.DeviceID]uint64, words string) {
		t.Helper()
		st := b.state().Status(used)
		if st.Health != want || !strings.Contains(strings.Join(st.Reasons, "\n"), words) {
			t.Errorf("health %s, reasons %q, want %s because of %q", st.Health, st.Reasons, want, words)
		}
	}
	check(OK, nil, "")
	check(OK, map[cluster.DeviceID]uint64{2: 9 << 30}, "90% full")
	check(Full, map[cluster.DeviceID]uint64{2: 10 << 30}, "100% full")
	b.commit(b.state().Expire([]string{"sds0"}, b.now))
	check(Degraded, nil, "sds0")
	check(Full, map[cluster.DeviceID]uint64{2: 10 << 30}, "sds0")
	b.commit(b.state().Expire([]string{"sds1", "sds2"}, b.now))
	check(Unavailable, nil, "no in-sync copy")
	st := b.state().Status(nil)
	if st.ServersUp != 0 || st.Servers != 3 || st.DevicesUp != 0 || st.Devices != 3 || st.Capacity != 30<<30 ||
		st.Groups != 256 || st.Volumes != 1 {
		t.Errorf("%+v", st)
	}
}
