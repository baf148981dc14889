// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"

	"braid/cluster"
	"braid/transport"
)

// testMap has one set of two groups; the first is given, the second belongs to
// devices 7 and 8.
func testMap(version uint64, first cluster.PG) *cluster.Map {
	first.ID = cluster.MakePGID(1, 0)
	m := cluster.NewMap()
	m.Version = version
	m.PGs[1] = []*cluster.PG{&first, {ID: cluster.MakePGID(1, 1), Epoch: 1,
		Replicas: []cluster.DeviceID{7, 8}, InSync: []cluster.DeviceID{7, 8}}}
	return m
}

// Goal: who may do what under which epoch and role, before and after a map.
func TestViewAdmission(t *testing.T) {
	both := []cluster.DeviceID{3, 4}
	v := newView()
	id, other := cluster.MakePGID(1, 0), cluster.MakePGID(1, 1)
	check := func(what string, id cluster.PGID, epoch uint32, read bool, want transport.Status, wantAhead bool) {
		t.Helper()
		if got, ahead := v.check(id, epoch, read); got != want || ahead != wantAhead {
			t.Errorf("%s: %v (ahead %v), want %v (%v)", what, got, ahead, want, wantAhead)
		}
	}
	check("no map yet", id, 1, true, transport.StatusRetry, true)
	v.learn(testMap(1, cluster.PG{Epoch: 5, Replicas: both, InSync: both}), 3)
	check("known epoch", id, 5, true, transport.StatusOK, false)
	check("old epoch", id, 4, true, transport.StatusStaleEpoch, false)
	check("newer epoch", id, 6, false, transport.StatusRetry, true)
	check("not a member", other, 1, false, transport.StatusRefused, false)
	check("unknown set", cluster.MakePGID(9, 0), 1, false, transport.StatusRetry, true)
	check("outside the set", cluster.MakePGID(1, 99), 1, false, transport.StatusRetry, true)

	v.learn(testMap(2, cluster.PG{Epoch: 6, Replicas: both, InSync: both[1:], Target: 3}), 3)
	check("target writes", id, 6, false, transport.StatusOK, false)
	check("target reads", id, 6, true, transport.StatusRefused, false)
	v.learn(testMap(3, cluster.PG{Epoch: 7, Replicas: both, InSync: both[1:]}), 3)
	check("dropped", id, 7, false, transport.StatusRefused, false)
}

// Goal: a new epoch is a fence: its requests wait for those of the old one.
func TestViewLearningIsAFence(t *testing.T) {
	both := []cluster.DeviceID{3, 4}
	id := cluster.MakePGID(1, 0)
	v := newView()
	v.learn(testMap(1, cluster.PG{Epoch: 5, Replicas: both, InSync: both}), 3)
	v.admit(id)
	v.admit(id)
	v.done(id, 5)
	v.learn(testMap(2, cluster.PG{Epoch: 6, Replicas: both, InSync: both}), 3)
	if s, _ := v.check(id, 6, false); s != transport.StatusRetry {
		t.Fatalf("admitted under epoch 6 while one of epoch 5 runs: %v", s)
	}
	v.done(id, 5)
	if s, _ := v.check(id, 6, false); s != transport.StatusOK {
		t.Fatalf("not admitted after the drain: %v", s)
	}
	v.admit(id)
	v.done(id, 6)
	if g := v.find(id); g.admitted != 0 || g.draining != 0 {
		t.Fatalf("counts at rest: %+v", *g)
	}
}
