// SPDX-License-Identifier: Apache-2.0

package main

import "testing"

// Goal: the autopilot's terms are shown as they are given, one leaves the others as
// they are, bad ones are refused with what to do, and devices are spared with the plan
// shown first.
func TestAutopilotCommands(t *testing.T) {
	b := newBench(t, 3)
	b.expect("autopilot show", 0, "mode       off", "80% full", "none set", "10m0s", "nothing: it is off")
	b.expect("autopilot history", 0, "has not added anything yet")
	b.expect("autopilot set mode=on", 1, "needs a ceiling", "3 are now")
	b.expect("autopilot set mode=dry-run ceiling=3 threshold=70%", 0,
		"dry-run", "70% full", "3 devices in use at most, 3 are")
	b.expect("autopilot set cooldown=1h", 0, "dry-run", "70%", "1h0m0s", "nothing: there is room")
	b.expect("autopilot set cooldown=soon", 2, "10m or 1h")
	b.expect("autopilot set ceiling=-1", 2, "number of devices")
	b.expect("autopilot set speed=9", 2, "threshold=")
	b.expect("autopilot set", 2, "what?")
	b.expect("autopilot set mode=maybe", 1, "off, dry-run or on")
	var p autopilot
	b.json("autopilot show", &p)
	if p.Mode != "dry-run" || p.Ceiling != 3 || p.Threshold != 70 || p.CooldownMS != 3600e3 || p.Devices != 3 ||
		len(p.History) != 0 {
		t.Errorf("%+v", p)
	}
	b.expect("events", 0, "autopilot dry-run")
	b.expect("device spare 3 --dry-run", 0, "nothing would move")
	b.expect("device list", 0, "up")
	b.expect("device spare 3 --yes", 0, "device 3 spare")
	b.expect("device list", 0, "spare, up")
	b.expect("autopilot show", 0, "2 are", "1 spare devices")
	b.expect("device spare 3 --off", 0, "in use")
	b.expect("device spare 9", 1, "there is none")
	b.expect("device spare x", 2, "device list")
	b.expect("device spare", 2, "which device?")
	var devices []device
	b.json("device list", &devices)
	if len(devices) != 3 || devices[2].Spare {
		t.Errorf("%+v", devices)
	}
}
