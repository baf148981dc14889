// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// Goal: what is set for the cluster is shown as it is given, one setting leaves the
// others as they are, and each change is among the events.
func TestClusterSettings(t *testing.T) {
	b := newBench(t, 2)
	b.expect("cluster show", 0, "scrub-every  14d", "scrub-rate   none", "resync-rate  none", "reserve      5%",
		"resync-p99   auto")
	b.expect("cluster set scrub-every=36h resync-rate=50M", 0, "scrub-every  36h", "resync-rate  50M")
	b.expect("cluster set scrub-rate=10M", 0, "36h", "50M", "10M")
	b.expect("cluster set resync-rate=none", 0, "36h", "resync-rate  none", "10M")
	var now map[string]any
	b.json("cluster show", &now)
	if now["scrub_every_ms"] != 36*3600e3 || now["scrub_rate"] != float64(10<<20) || now["resync_rate"] != 0.0 {
		t.Errorf("settings %v", now)
	}
	b.expect("cluster set scrub-every=never", 0, "never")
	b.expect("events", 0, "every 36h0m0s", "on order only", "50M a second", "latency allows")
	b.expect("cluster set resync-p99=2500us", 0, "resync-p99   2.5ms")
	b.expect("cluster set resync-p99=1us", 1, "100us to 10s")
	b.expect("cluster set resync-p99=fast", 2, "5ms, or auto")
	b.expect("events", 0, "writes is above 2.5ms")
	b.expect("status", 0, "exceeds 2.5ms")
	b.expect("cluster set resync-p99=auto", 0, "resync-p99   auto")
	b.expect("cluster set reserve=10%", 0, "reserve      10%", "never")
	b.expect("cluster set reserve=0", 0, "reserve      0%")
	b.expect("cluster set reserve=51", 1, "want 0 to 50")
	b.expect("cluster set reserve=all", 2, "percent")
	b.expect("events", 0, "leave 10 % of each device")
	b.expect("scrub 1", 0, "waiting")
	b.expect("cluster set resync-rate=50M scrub-every=7d", 0)
	b.expect("status", 0, "every 7d", "50M a second")
	var st status
	b.json("status", &st)
	if st.Settings.ResyncRate != 50<<20 || st.Scrub.Seconds < 0 || st.Scrub.Device == 0 {
		t.Errorf("status: %+v", st)
	}
}

// Goal: what is shown of a time can be given.
func TestOften(t *testing.T) {
	for _, text := range []string{"never", "1h", "90m30s", "1h30m", "36h", "10h10m10s", "1d", "365d"} {
		ms, err := parseOften(text)
		if again, e := parseOften(often(ms)); err != nil || e != nil || again != ms {
			t.Errorf("%s is %d ms, shown as %s, %d ms; %v, %v", text, ms, often(ms), again, err, e)
		}
	}
}
