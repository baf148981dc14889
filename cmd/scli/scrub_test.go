// SPDX-License-Identifier: Apache-2.0

package main

import (
	"testing"

	"braid/mdm/pb"
)

// Goal: scrubs are ordered for devices by number, by name or for all, wait until
// their server takes them, and are stopped; mistakes are told. Method: servers that
// do not serve.
func TestScrub(t *testing.T) {
	b := newBench(t, 2)
	b.expect("scrub status", 0, "never", "sds1:/dev/sdx")
	b.expect("scrub", 2, "--all")
	b.expect("scrub --all 1", 2, "--all")
	b.expect("scrub --all --rate nonsense", 2, "--rate")
	b.expect("scrub 9", 1, "device list")
	b.expect("scrub sds2:/dev/sdx --rate 50M", 0, "waiting")
	b.expect("scrub status -o json", 0, `"state": "waiting"`, `"state": "never"`)
	b.expect("scrub 2 --stop", 0, "never")
	b.expect("scrub --all", 0, "waiting")
	b.expect("volume create db --size 1G", 0)
	b.expect("scrub db", 0, "waiting", "db", "sds1", "sds2")
	b.expect("scrub db 1", 1, "device list")
	b.expect("scrub nosuch", 1, "device list")
}

// Goal: a sum over devices counts those that were asked for, ends when the last has
// mended what it found, and takes nothing from a run before.
func TestScrubSum(t *testing.T) {
	done := &pb.ScrubReport{Run: 2, State: "done", BytesDone: 10, BytesTotal: 9, Rotten: 3, Mended: 2}
	list := []*pb.DeviceScrub{{Device: 1, Report: done}, {Device: 2, Report: done},
		{Device: 3, Waiting: true, Report: done}}
	if x := sumScrubs(list, []uint32{1}); !x.going || x.Read != 10 || x.Rotten != 3 || x.Devices != 1 {
		t.Errorf("a block is being mended: %+v", x)
	}
	done.Unmended = 1
	if x := sumScrubs(list, []uint32{1, 2}); x.going || x.Read != 20 || x.Unmended != 2 || x.total != 20 {
		t.Errorf("all have ended: %+v", x)
	}
	if x := sumScrubs(list, []uint32{1, 3}); !x.going || x.Read != 10 || x.Devices != 2 {
		t.Errorf("one waits: %+v", x)
	}
}
