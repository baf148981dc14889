// SPDX-License-Identifier: Apache-2.0

package state

import (
	"encoding/json"
	"slices"
	"testing"
	"time"

	"braid/cluster"
)

// Goal: of each fault set the device that has waited longest is scrubbed, one at a
// time; one that is down, rests or has just joined is not; never means never.
// Method: two servers with two disks each, and a clock that is turned.
func TestScrubsDue(t *testing.T) {
	b := newBench(t, 0)
	b.register(report(0, 2))
	b.now = b.now.Add(time.Hour)
	b.register(report(1, 2))
	busy, rests := map[cluster.DeviceID]bool{}, map[cluster.DeviceID]bool{}
	due := func(want ...cluster.DeviceID) {
		t.Helper()
		got := b.state().ScrubsDue(func(id cluster.DeviceID) bool { return !rests[id] },
			func(id cluster.DeviceID) bool { return busy[id] }, b.now)
		if !slices.Equal(got, want) {
			t.Errorf("due are %v, want %v", got, want)
		}
	}
	due()
	b.now = b.now.Add(DefaultScrubEvery - time.Minute)
	due(1) // the others have joined an hour later
	busy[1] = true
	due()
	b.now = b.now.Add(2 * time.Minute)
	due(3)
	b.commit(b.state().Scrubbed(map[cluster.DeviceID]time.Time{1: b.now, 9: b.now}, b.now))
	busy[1] = false
	due(2, 3)
	rests[3] = true
	due(2, 4)
	if tx := b.state().Scrubbed(map[cluster.DeviceID]time.Time{1: b.now.Add(-time.Hour)}, b.now); !tx.Empty() {
		t.Error("an older run counts")
	}
	if d := b.state().LongestUnscrubbed(); d == nil || d.ID != 2 {
		t.Errorf("the longest wait is that of %+v", d)
	}
	b.commit(b.state().Expire([]string{"sds1"}, b.now))
	due(2)
	next := b.state().Settings()
	next.ScrubEvery = 0
	tx, err := b.state().Set(next, b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	due()
	if got := b.reload().Settings(); got != next {
		t.Errorf("after a restart %+v is set", got)
	}
}

// Goal: devices that joined before scrubs were written down are not all due at once
// after an upgrade: they come in turn within the time between two scrubs, and count as
// never scrubbed until then. Method: records without a date, and a clock that is turned.
func TestScrubsAfterUpgrade(t *testing.T) {
	b := newBench(t, 0)
	for i := range 4 {
		b.register(report(i, 1))
	}
	tx := b.state().Begin(b.now)
	for _, d := range b.state().sortedDevices() {
		old := *d
		old.Scrubbed = time.Time{}
		tx.put(deviceKey(d.ID), old)
	}
	b.commit(tx)
	due := func() []cluster.DeviceID {
		return b.state().ScrubsDue(func(cluster.DeviceID) bool { return true },
			func(cluster.DeviceID) bool { return false }, b.now)
	}
	if got := due(); len(got) != 0 {
		t.Errorf("before they have dates %v are due", got)
	}
	b.commit(b.state().Scrubbed(nil, b.now))
	if tx := b.state().Scrubbed(nil, b.now.Add(time.Hour)); !tx.Empty() {
		t.Error("they are given dates twice")
	}
	if d := b.state().LongestUnscrubbed(); !d.Scrubbed.IsZero() {
		t.Errorf("%+v counts as scrubbed", d)
	}
	b.reload()
	for n := range 4 {
		if got := due(); len(got) != n {
			t.Errorf("after %d quarters of the time %v are due", n, got)
		}
		b.now = b.now.Add(DefaultScrubEvery / 4)
	}
	b.commit(b.state().Scrubbed(map[cluster.DeviceID]time.Time{4: b.now}, b.now))
	if got := due(); !slices.Equal(got, []cluster.DeviceID{1, 2, 3}) {
		t.Errorf("after a scrub of device 4 %v are due", got)
	}
}

// Goal: settings that an older version wrote leave the newer ones as they are by
// default; bad ones are refused.
func TestSettings(t *testing.T) {
	s := New()
	old := Change{Key: settingsKey, Value: []byte(`{"grace":5000000000}`), Revision: 1}
	if err := s.Load([]Change{old}); err != nil {
		t.Fatal(err)
	}
	if got, want := s.Settings(), (Settings{Grace: 5 * time.Second, ScrubEvery: DefaultScrubEvery,
		Reserve: DefaultReserve}); got != want {
		t.Errorf("%+v is set, want %+v", got, want)
	}
	for _, bad := range []string{`{"grace":-1}`, `{"scrub_every":1000}`, `{"scrub_every":-1}`,
		`{"scrub_rate":1}`, `{"resync_rate":1000}`, `{"resync_p99":1000}`, `{"resync_p99":20000000000}`,
		`{"reserve":51}`} {
		var next Settings
		if err := json.Unmarshal([]byte(bad), &next); err != nil {
			t.Fatal(err)
		}
		_, err := s.Set(next, time.Now())
		wants(t, err, ErrInvalid, "want")
	}
}
