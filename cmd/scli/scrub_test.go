// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

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
}
