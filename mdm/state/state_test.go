// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"braid/cluster"
)

// bench commits transactions the way etcd does, to one or several states.
type bench struct {
	t        testing.TB
	kv       map[string]Change
	revision int64
	states   []*State
	now      time.Time
	lastTx   []Step
}

func newBench(t testing.TB, servers int) *bench {
	b := &bench{t: t, kv: map[string]Change{}, states: []*State{New()},
		now: time.Date(2031, 5, 1, 12, 0, 0, 0, time.UTC)}
	b.commit(b.state().Found(cluster.UUID{1, 2, 3}, b.now))
	for i := range servers {
		b.register(report(i, 1))
	}
	return b
}

func (b *bench) state() *State { return b.states[0] }

// commit fails the test when a condition does not hold, as etcd would refuse.
func (b *bench) commit(tx *Tx) {
	b.t.Helper()
	b.lastTx = tx.Steps()
	for _, step := range b.lastTx {
		b.revision++
		for key, want := range step.Expect {
			if got := b.kv[key].Revision; got != want {
				b.t.Fatalf("%s has revision %d, the transaction wants %d", key, got, want)
			}
		}
		var changes []Change
		for _, p := range step.Puts {
			changes = append(changes, Change{p.Key, p.Value, b.revision})
		}
		for _, key := range step.Deletes {
			changes = append(changes, Change{Key: key, Revision: b.revision})
		}
		if step.EventsUpTo != "" {
			for key := range b.kv {
				if key >= step.EventsFrom && key < step.EventsUpTo {
					changes = append(changes, Change{Key: key, Revision: b.revision})
				}
			}
		}
		for _, c := range changes {
			if c.Value == nil {
				delete(b.kv, c.Key)
			} else {
				b.kv[c.Key] = c
			}
		}
		for _, s := range b.states {
			if err := s.Apply(slices.Clone(changes)); err != nil {
				b.t.Fatal(err)
			}
		}
	}
}

// reload is what a member does that starts now.
func (b *bench) reload() *State {
	s := New()
	if err := s.Load(slices.Collect(maps.Values(b.kv))); err != nil {
		b.t.Fatal(err)
	}
	return s
}

func (b *bench) register(r ServerReport) Registered {
	b.t.Helper()
	tx, answer, err := b.state().Register(r, uint64(b.revision), b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	b.commit(tx)
	return answer
}

func report(server, disks int) ServerReport {
	r := ServerReport{Name: fmt.Sprintf("sds%d", server), Addr: fmt.Sprintf("127.0.0.1:%d", 8000+server)}
	for d := range disks {
		r.Devices = append(r.Devices, DeviceReport{UUID: cluster.UUID{byte(server + 1), byte(d + 1)},
			Path: fmt.Sprintf("/dev/disk%d", d), Size: 10 << 30, Incarnation: 1, StartCounter: 1})
	}
	return r
}

func (b *bench) create(name string, replicas int) *Volume {
	b.t.Helper()
	tx, v, _, err := b.state().CreateVolume(VolumeSpec{Name: name, Size: 1 << 30, Replicas: replicas}, b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	b.commit(tx)
	return v
}

func (b *bench) attach(r AttachRequest) (*Session, error) {
	tx, _, session, err := b.state().Attach(r, func(cluster.VolumeID) cluster.Generation { return 0 }, b.now)
	if err == nil {
		b.commit(tx)
	}
	return session, err
}

// wants fails unless err is of the kind and says all of the words.
func wants(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Errorf("error %v, want kind %v", err, kind)
		return
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("error %q does not mention %q", err, w)
		}
	}
}

// wholeMap is the map of somebody who connects now.
func wholeMap(t testing.TB, s *State, volumes ...cluster.VolumeID) *cluster.Map {
	m, err := cluster.NewMap().Apply(s.Delta(0, volumes))
	if err != nil {
		t.Fatal(err)
	}
	return m
}

// same compares what two maps show. Version and tombstones may differ: a map
// that grew remembers tombstones that mdm has forgotten.
func same(a, b *cluster.Map) string {
	for _, parts := range [][2]any{{a.Devices, b.Devices}, {a.Volumes, b.Volumes}, {a.Sets, b.Sets}} {
		if !reflect.DeepEqual(parts[0], parts[1]) {
			return fmt.Sprintf("%+v\nand\n%+v", parts[0], parts[1])
		}
	}
	for n := range a.Sets {
		if !slices.EqualFunc(a.PGs[n], b.PGs[n], func(x, y *cluster.PG) bool {
			return x.ID == y.ID && samePG(x, y)
		}) {
			return fmt.Sprintf("set %d: %v\nand\n%v", n, a.PGs[n], b.PGs[n])
		}
	}
	return ""
}

// Goal: whoever follows deltas, however slowly and from whichever member, sees
// what a whole map shows; a member that starts anew sees what one sees that
// followed all along. Method: random changes; several followers that look at
// random times at a state that followed or at one that was loaded.
func TestDeltasEqualTheWholeMap(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t, 3)
		b.states = append(b.states, b.reload())
		followers := make([]*cluster.Map, 3)
		for i := range followers {
			followers[i] = cluster.NewMap()
		}
		for range rapid.IntRange(5, 30).Draw(rt, "steps") {
			b.randomChange(rt)
			if rapid.IntRange(0, 9).Draw(rt, "restart a member") == 0 {
				b.states[1] = b.reload()
			}
			for i, m := range followers {
				if !rapid.Bool().Draw(rt, "looks") {
					continue
				}
				s := b.states[rapid.IntRange(0, 1).Draw(rt, "member")]
				next, err := m.Apply(s.Delta(m.Version, nil))
				if err != nil {
					rt.Fatal(err)
				}
				followers[i] = next
				if diff := same(next, wholeMap(t, s)); diff != "" {
					rt.Fatalf("after deltas, and whole: %s", diff)
				}
				for _, v := range s.Tombstones() {
					if !next.Removed[v] {
						rt.Fatalf("the follower does not know that volume %d is gone", v)
					}
				}
			}
		}
		if diff := same(wholeMap(t, b.states[0]), wholeMap(t, b.states[1])); diff != "" {
			rt.Fatalf("two members differ: %s", diff)
		}
	})
}

func (b *bench) randomChange(rt *rapid.T) {
	s := b.state()
	pick := func(n int, what string) int { return rapid.IntRange(0, n-1).Draw(rt, what) }
	name := fmt.Sprintf("v%d", pick(4, "volume"))
	switch pick(9, "change") {
	case 0:
		b.register(report(pick(5, "server"), 1+pick(2, "disks")))
	case 1:
		b.commit(s.Expire([]string{fmt.Sprintf("sds%d", pick(5, "server"))}, b.now))
	case 2:
		spec := VolumeSpec{Name: name, Size: 1 << 30, Replicas: 1 + pick(2, "replicas")}
		if tx, _, _, err := s.CreateVolume(spec, b.now); err == nil {
			b.commit(tx)
		}
	case 3:
		if tx, err := s.DeleteVolume(name, true, b.now); err == nil {
			b.commit(tx)
		}
	case 4:
		if tx, _, _, err := s.ResizeVolume(name, 2<<30, false, b.now); err == nil {
			b.commit(tx)
		}
	case 5:
		b.attach(AttachRequest{Volume: name, Client: "c", Host: "h", Force: true})
	case 6:
		for _, x := range s.Sessions() {
			device := cluster.DeviceID(1 + pick(4, "device"))
			tx, _, _, err := s.DropReplica(x.Volume, x.Generation, device, "test", b.now)
			if err != nil {
				rt.Fatal(err)
			}
			b.commit(tx)
			return
		}
	case 7:
		if tx, err := s.RemoveDevice(cluster.DeviceID(1+pick(6, "device")), true, b.now); err == nil {
			b.commit(tx)
		}
	case 8:
		b.commit(s.Forget(s.Tombstones(), b.now))
	}
}

// Goal: a client's deltas hold its volume and the groups behind it, and no
// other volume; and nothing at all when something else changes.
func TestDeltaOfOneVolume(t *testing.T) {
	b := newBench(t, 3)
	one, two := b.create("one", 2), b.create("two", 1)
	m := wholeMap(t, b.state(), one.ID)
	if len(m.Volumes) != 1 || m.Volumes[one.ID] == nil || len(m.Sets) != 1 || m.PGs[one.PGSet] == nil ||
		len(m.Devices) != 3 {
		t.Errorf("%d volumes, %d sets, %d devices", len(m.Volumes), len(m.Sets), len(m.Devices))
	}
	if _, err := b.attach(AttachRequest{Volume: "two", Client: "c", Host: "h"}); err != nil {
		t.Fatal(err)
	}
	d := b.state().Delta(m.Version, []cluster.VolumeID{one.ID})
	if len(d.Volumes)+len(d.PGs)+len(d.Sets)+len(d.Devices) != 0 || d.From != m.Version {
		t.Errorf("the delta of one volume is %+v after volume %d changed", d, two.ID)
	}
}

// Goal: the loss of a server changes one key, whatever it holds, and its return
// as well; a dropped device changes a key per page of groups.
func TestChangesAreBatched(t *testing.T) {
	b := newBench(t, 2)
	b.register(report(2, 8))
	b.create("v", 2)
	session, err := b.attach(AttachRequest{Volume: "v", Client: "c", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	version := b.state().MapVersion()
	b.commit(b.state().Expire([]string{"sds2"}, b.now))
	if puts := len(b.lastTx[0].Puts); len(b.lastTx) != 1 || puts != 2 {
		t.Errorf("%d transactions, %d keys for the loss of 8 devices, want the server and an event",
			len(b.lastTx), puts)
	}
	if d := b.state().Delta(version, nil); len(d.Devices) != 8 || len(d.PGs) != 0 {
		t.Errorf("the delta has %d devices, %d groups", len(d.Devices), len(d.PGs))
	}
	tx, dropped, last, err := b.state().DropReplica(session.Volume, session.Generation, 1, "test", b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	pages := pageCount(uint32(len(b.state().table(1))))
	if len(b.lastTx) != 1 || len(b.lastTx[0].Puts) > pages+1 || len(dropped) == 0 || len(last) != 0 {
		t.Errorf("%d transactions, %d keys, %d groups dropped, %d kept", len(b.lastTx), len(b.lastTx[0].Puts),
			len(dropped), len(last))
	}
}

// Goal: many groups become several transactions, of which each fits into an
// etcd with default limits.
func TestLargeTablesAreSplit(t *testing.T) {
	b := newBench(t, 0)
	for i := range 16 {
		b.register(report(i, 16))
	}
	b.create("v", 2)
	if len(b.lastTx) < 3 {
		t.Fatalf("%d transactions for %d groups", len(b.lastTx), len(b.state().table(1)))
	}
	for _, step := range b.lastTx {
		if n := len(step.Puts) + len(step.Deletes) + 1; n > 128 || len(step.Expect)+1 > 128 {
			t.Errorf("a transaction of %d operations and %d conditions", n, len(step.Expect))
		}
	}
	if pgs := len(wholeMap(t, b.state()).PGs[1]); pgs < 128*256/2 {
		t.Errorf("%d groups for 256 devices", pgs)
	}
}

// Goal: the ring of events is bounded and keeps the newest.
func TestEventsAreBounded(t *testing.T) {
	b := newBench(t, 1)
	for range MaxEvents + 50 {
		tx := b.state().Begin(b.now)
		tx.event(Info, "test", "x", "event")
		b.commit(tx)
	}
	events, newest := b.state().Events(0, 0), b.state().LastEvent()
	if len(events) != MaxEvents || events[len(events)-1].Seq != newest {
		t.Errorf("%d events, the newest is %d of %d", len(events), events[len(events)-1].Seq, newest)
	}
	if got := b.state().Events(newest-10, 3); len(got) != 3 || got[2].Seq != newest {
		t.Errorf("the last three are %+v", got)
	}
	if n := len(b.reload().Events(0, 0)); n != MaxEvents {
		t.Errorf("a member that starts sees %d events", n)
	}
}

// Goal: records of a newer version, or damaged ones, are an error and no panic.
func TestUnreadableRecords(t *testing.T) {
	for key, value := range map[string]string{
		identityKey:                  `{"uuid":"01234567-89ab-cdef-0000-000000000001","layout":99}`,
		devicePrefix + "zz":          `{}`,
		devicePrefix + "00000001":    `{"id":`,
		volumePrefix + "1":           `[]`,
		pagePrefix + "001/00000":     `nonsense`,
		pagePrefix + "001":           `{}`,
		eventPrefix + "x":            `{}`,
		retiredPrefix + "not-a-uuid": `{}`,
	} {
		if err := New().Load([]Change{{Key: key, Value: []byte(value), Revision: 1}}); err == nil {
			t.Errorf("%s = %s was taken", key, value)
		}
	}
	if err := New().Load([]Change{{Key: ElectionPrefix + "/12", Value: []byte("a b"), Revision: 1},
		{Key: Prefix + "unknown/x", Value: []byte("?"), Revision: 2}}); err != nil {
		t.Errorf("keys of others: %v", err)
	}
}
