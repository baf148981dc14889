// SPDX-License-Identifier: Apache-2.0

package state

import (
	"slices"
	"strings"
	"testing"
	"time"

	"pgregory.net/rapid"

	"braid/cluster"
)

// spares registers servers whose devices join as spares.
func (b *bench) spares(from, to int) {
	for i := from; i < to; i++ {
		r := report(i, 1)
		r.Spare = true
		b.register(r)
	}
}

func (b *bench) pilot(p Autopilot) {
	b.t.Helper()
	tx, err := b.state().SetAutopilot(p, b.now)
	if err != nil {
		b.t.Fatal(err)
	}
	b.commit(tx)
}

// filled is a usage of so many percent on each of the first n devices.
func (b *bench) filled(n int, percent uint64) map[cluster.DeviceID]uint64 {
	used := map[cluster.DeviceID]uint64{}
	for i := range n {
		used[cluster.DeviceID(i+1)] = (10 << 30) / 100 * percent
	}
	return used
}

// settleMoves carries out what is to move, as mdm and servers would.
func (b *bench) settleMoves() {
	b.t.Helper()
	for _, number := range b.state().used() {
		tx, changed := b.state().Begin(b.now), map[uint32]*group{}
		b.state().each(number, func(id cluster.PGID, p *placed) {
			if g := *p.record; g.Want != nil {
				g.Replicas, g.InSync, g.Want, g.Joined, g.Target = g.Want, g.Want, nil, nil, 0
				g.Epoch++
				changed[id.Index()] = &g
			}
		})
		tx.putPGs(number, changed)
		b.commit(tx)
	}
}

// Goal: spares hold nothing, whatever joins or is created, and do when they are put to
// use; made spare again, a device is emptied; what cannot be is refused.
func TestSpares(t *testing.T) {
	b := newBench(t, 3)
	b.spares(3, 5)
	b.create("v", 2)
	on := func() (ids []cluster.DeviceID) {
		for _, d := range b.state().Housing(b.now) {
			ids = append(ids, d.ID)
		}
		return ids
	}
	if got := on(); !slices.Equal(got, []cluster.DeviceID{1, 2, 3}) || b.state().copies()[4] > 0 {
		t.Fatalf("copies lie on %v", got)
	}
	if st := b.state().Status(nil); st.Capacity != 30<<30 || st.Devices != 5 {
		t.Errorf("capacity %d of %d devices", st.Capacity, st.Devices)
	}
	plan := func(id cluster.DeviceID, spare bool) (MovePlan, error) {
		tx, plan, err := b.state().PlanSpare([]cluster.DeviceID{id}, spare, Membership{}, b.now)
		if err == nil {
			b.commit(tx)
		}
		return plan, err
	}
	if p, err := plan(4, false); err != nil || len(p.Moves) == 0 || p.Copies != p.Least {
		t.Errorf("put to use: %+v, %v", p, err)
	}
	if got := on(); !slices.Equal(got, []cluster.DeviceID{1, 2, 3, 4}) {
		t.Errorf("copies are to lie on %v", got)
	}
	if r := b.register(report(3, 1)); r.Devices[0] != 4 || b.state().devices[4].Spare {
		t.Error("a restart changes it")
	}
	r := report(0, 1)
	r.Spare = true
	if b.register(r); b.state().devices[1].Spare {
		t.Error("a device that holds copies is spare after a restart with --spare")
	}
	if _, err := plan(4, true); err != nil || b.reload().devices[4] == nil || !b.reload().devices[4].Spare {
		t.Errorf("made spare: %v", err)
	}
	for _, c := range []struct {
		ids  []cluster.DeviceID
		says string
	}{{nil, "which device"}, {[]cluster.DeviceID{9}, "there is none"}, {[]cluster.DeviceID{1, 2}, "servers"}} {
		if _, _, err := b.state().PlanSpare(c.ids, true, Membership{}, b.now); err == nil ||
			!strings.Contains(err.Error(), c.says) {
			t.Errorf("%v: %v, want %q", c.ids, err, c.says)
		}
	}
}

// Goal: one device at a time, never beyond the ceiling, never within the cooldown or
// while data moves, nothing on half knowledge; what keeps it from it is told once.
func TestAutopilot(t *testing.T) {
	b := newBench(t, 3)
	b.create("v", 2)
	b.spares(3, 6)
	steer := func(n int, percent uint64, hook Hook) Decision {
		t.Helper()
		tx, d := b.state().Steer(b.filled(n, percent), hook, b.now)
		b.commit(tx)
		return d
	}
	waits := func(d Decision, why string, stuck bool) {
		t.Helper()
		if d.Acts() || d.Stuck != stuck || !strings.Contains(d.Why, why) || why == "" && d.Why != "" {
			t.Errorf("%+v, want %q", d, why)
		}
	}
	waits(steer(3, 99, HookReady), "", false) // off
	terms := Autopilot{Mode: PilotDry, Threshold: 75, Ceiling: 5, Cooldown: time.Minute}
	b.pilot(terms)
	waits(steer(3, 74, HookReady), "", false)
	waits(steer(2, 90, HookReady), "not known", false)
	events := func(text string) (n int) {
		for _, e := range b.state().events {
			if strings.Contains(e.Text, text) {
				n++
			}
		}
		return n
	}
	for range 3 {
		waits(steer(3, 80, HookReady), "puts spare device 4", false)
	}
	if events("if it were on") != 1 || len(b.state().Housing(b.now)) != 3 {
		t.Error("a dry run is told again and again, or does something")
	}
	terms.Mode = PilotOn
	b.pilot(terms)
	if d := steer(3, 80, HookReady); d.Device != 4 || d.Fill != 79 && d.Fill != 80 {
		t.Fatalf("%+v", d)
	}
	waits(steer(4, 80, HookReady), "cools down", false)
	tx, _, err := b.state().PlanSpare([]cluster.DeviceID{4}, false, Membership{}, b.now)
	if err != nil || !tx.Empty() {
		t.Errorf("it is in use already: %v", err)
	}
	plan, err := b.state().PlanMoves(Membership{}, b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(b.state().Move(plan, "test", b.now))
	b.now = b.now.Add(2 * time.Minute)
	waits(steer(4, 80, HookRunning), "its hook", false)
	waits(steer(4, 80, HookReady), "has moved", false)
	b.settleMoves()
	if d := steer(4, 80, HookReady); d.Device != 5 {
		t.Fatalf("%+v", d)
	}
	b.now = b.now.Add(2 * time.Minute)
	for range 3 {
		waits(steer(5, 80, HookReady), "ceiling of 5", true)
	}
	if events("ceiling") != 1 {
		t.Error("that the ceiling is reached is told again and again, or not at all")
	}
	terms.Ceiling = 9
	b.pilot(terms)
	if d := steer(5, 80, HookReady); d.Device != 6 {
		t.Fatalf("%+v", d)
	}
	b.now = b.now.Add(2 * time.Minute)
	waits(steer(6, 80, NoHook), "no spare device is left", true)
	if d := steer(6, 80, HookReady); !d.Hook {
		t.Fatalf("%+v", d)
	}
	waits(steer(6, 80, HookReady), "cools down", false)
	h := b.reload().Autopilot().History
	b.now = b.now.Add(2 * time.Minute)
	terms.Ceiling = 7 // six are there, and one is on its way
	b.pilot(terms)
	waits(steer(6, 80, HookReady), "ceiling of 7", true)
	if len(h) != 4 || h[0].Device != 4 || h[3].Device != 0 || h[3].Fill != 79 && h[3].Fill != 80 {
		t.Errorf("history %+v", h)
	}
	waits(steer(6, 10, HookReady), "", false)
}

// Goal: writes that wait for room count as full, whatever the sum says.
func TestAutopilotHelpsWriters(t *testing.T) {
	b := newBench(t, 3)
	v := b.create("v", 2)
	b.spares(3, 4)
	b.pilot(Autopilot{Mode: PilotOn, Threshold: 90, Ceiling: 9, Cooldown: time.Minute})
	x, err := b.attach(AttachRequest{Volume: "v", Client: "c", Host: "h", Request: "r"})
	if err != nil {
		t.Fatal(err)
	}
	if d := b.state().Decide(b.filled(3, 50), NoHook, b.now); d.Why != "" {
		t.Errorf("%+v", d)
	}
	b.commit(b.state().TellRoomless(v.ID, x.Generation, []cluster.DeviceID{2}, b.now))
	if d := b.state().Decide(b.filled(3, 50), NoHook, b.now); d.Device != 4 {
		t.Errorf("%+v", d)
	}
}

func TestAutopilotTerms(t *testing.T) {
	b := newBench(t, 3)
	good := Autopilot{Mode: PilotOn, Threshold: 80, Ceiling: 4, Cooldown: time.Minute}
	for name, bad := range map[string]func(*Autopilot){
		"mode":       func(p *Autopilot) { p.Mode = "auto" },
		"threshold ": func(p *Autopilot) { p.Threshold = 100 },
		"threshold":  func(p *Autopilot) { p.Threshold = 0 },
		"cooldown":   func(p *Autopilot) { p.Cooldown = 0 },
		"ceiling":    func(p *Autopilot) { p.Ceiling = 0 },
	} {
		p := good
		bad(&p)
		if _, err := b.state().SetAutopilot(p, b.now); err == nil ||
			!strings.Contains(err.Error(), strings.TrimSpace(name)) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if b.state().Autopilot().Mode != PilotOff {
		t.Error("it is not off by itself")
	}
}

// Goal: whatever fills, moves, comes and goes, it keeps to ceiling and cooldown, and
// the same state gives the same decision.
func TestAutopilotKeepsToItsTerms(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		b := newBench(t, 3)
		b.create("v", 2)
		b.spares(3, 3+rapid.IntRange(0, 4).Draw(rt, "spares"))
		terms := Autopilot{Mode: PilotOn, Threshold: 50, Ceiling: rapid.Uint32Range(1, 8).Draw(rt, "ceiling"),
			Cooldown: time.Duration(rapid.IntRange(1, 100).Draw(rt, "cooldown")) * time.Second}
		b.pilot(terms)
		last, joined, late := time.Time{}, 0, 0
		for range 30 {
			b.now = b.now.Add(time.Duration(rapid.IntRange(0, 60).Draw(rt, "pass")) * time.Second)
			if rapid.Bool().Draw(rt, "settle") {
				b.settleMoves()
			}
			known := rapid.IntRange(0, 8).Draw(rt, "known")
			used := b.filled(known, rapid.Uint64Range(0, 100).Draw(rt, "fill"))
			hook := Hook(rapid.IntRange(0, 2).Draw(rt, "hook"))
			if late > 0 && rapid.Bool().Draw(rt, "join") {
				b.register(report(20+joined, 1))
				joined, late = joined+1, late-1
			}
			before := b.state().Decide(used, hook, b.now)
			if again := b.state().Decide(used, hook, b.now); again != before {
				rt.Fatalf("%+v, then %+v", before, again)
			}
			inUse := len(b.state().Housing(b.now))
			tx, d := b.state().Steer(used, hook, b.now)
			b.commit(tx)
			if !d.Acts() {
				continue
			}
			switch {
			case inUse >= int(terms.Ceiling):
				rt.Fatalf("%d devices in use, ceiling %d: %+v", inUse, terms.Ceiling, d)
			case !last.IsZero() && b.now.Sub(last) < terms.Cooldown:
				rt.Fatalf("%v after the last: %+v", b.now.Sub(last), d)
			case known < inUse || d.Fill < terms.Threshold:
				rt.Fatalf("%d of %d known: %+v", known, inUse, d)
			}
			last = b.now
			if d.Hook {
				late++
			}
			if all := b.state().owned() + late; all > int(terms.Ceiling) {
				rt.Fatalf("%d devices, with those that are on their way, ceiling %d", all, terms.Ceiling)
			}
		}
	})
}
