// SPDX-License-Identifier: Apache-2.0

package server

import (
	"testing"
	"time"

	"braid/cluster"
	"braid/server/resync"
)

// Goal: the rate of catching up is what was done, follows a change within seconds,
// is not disturbed by a pause of a moment, and begins when there is something to
// measure. Method: counters of a made-up resync.
func TestCatchUpMeter(t *testing.T) {
	var m catchUpMeter
	var s resync.Stats
	now := int64(time.Hour)
	run := func(steps int, chunks uint64) {
		for range steps {
			m.look(now, &s)
			now += int64(100 * time.Millisecond)
			s.Copied += chunks
			s.BytesCopied += chunks * cluster.ChunkSize / 4
		}
	}
	near := func(what string, got, want float64) {
		t.Helper()
		if got < want*0.9 || got > want*1.1 {
			t.Errorf("%s: %.0f bytes a second, want about %.0f", what, got, want)
		}
	}
	run(30, 0)
	if m.known || m.settled != 0 {
		t.Errorf("nothing was copied, and the rate is %.0f", m.settled)
	}
	run(20, 10)
	near("after 2 s", m.settled, 100*cluster.ChunkSize)
	near("after 2 s, copied", m.copied, 25*cluster.ChunkSize)
	run(5, 0)
	if m.settled < 50*cluster.ChunkSize {
		t.Errorf("a pause of half a second leaves %.0f bytes a second", m.settled)
	}
	run(300, 2)
	near("after 30 s at another rate", m.settled, 20*cluster.ChunkSize)
}
