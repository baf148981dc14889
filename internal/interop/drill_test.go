// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"strings"
	"testing"
)

// Goal: `scli drill full` really fills a cluster of processes, its autopilot extends it by
// the spare, data spreads, and every byte is right; without an autopilot that can help,
// without leave, or beside a volume that is attached, it is refused and says what to do.
// Method: three servers and a spare. The report is logged.
func TestDrillFull(t *testing.T) {
	c := up(t, "--size", "256M", "--backing", "file", "--ram", "--drills")
	drill := []string{"drill", "full", "--to", "98%", "--yes"}
	c.refused(t, 1, []string{"scli autopilot set mode=on"}, "scli", drill...)
	c.do(t, "scli", "autopilot", "set", "mode=on", "ceiling=4", "cooldown=1s")
	c.refused(t, 1, []string{"no spare device"}, "scli", drill...)
	c.refused(t, 2, []string{"give percent"}, "scli", "drill", "full", "--to", "much")
	c.script(t, "add", "sds", "--spare")
	c.volume(t, "other", "16M", "--replicas", "2")
	e := c.serve(t, "other")
	c.refused(t, 1, []string{"--force"}, "scli", drill...)
	e.stop(t)
	c.do(t, "scli", append(drill, "--dry-run")...)

	out, err := c.command(t, "scli", drill...).CombinedOutput()
	t.Logf("scli drill full --to 98%%\n%s", out)
	if err != nil || !strings.Contains(string(out), "drill full: passed") {
		t.Fatal(err)
	}
	if r := decode[struct {
		Devices int
		History []any
	}](t, c.do(t, "scli", "autopilot", "show", "-o", "json")); r.Devices != 4 || len(r.History) != 1 {
		t.Errorf("the autopilot did not add one device: %+v", r)
	}
	if left := decode[[]struct{ Name string }](t, c.do(t, "scli", "volume", "list", "-o", "json")); len(left) != 1 {
		t.Errorf("the drill left volumes: %v", left)
	}
}
