// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"flag"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"braid/cluster/rules"
)

var (
	seeds = flag.Int("seeds", 40/slow, "how many seeds a campaign runs")
	first = flag.Uint64("seed", 1, "the first seed")
	loud  = flag.Bool("story", false, "print the whole trace of a failing run")
	small = flag.Bool("shrink", false, "look for a smaller plan that fails")
	mix   = flag.String("mix", "basic", "the mixture of faults: basic, full, moves or losses")
	off   = flag.String("off", "", "switch off a rule, by name or number")
)

// basic is the mixture of faults of the campaign.
func basic(seed uint64) Config {
	c := Config{Seed: seed, Evict: seed%4 < 2, Servers: 3, Replicas: 2 + int(seed%2),
		Volumes: 1 + int(seed/3%2), Chunks: 4, Duration: 20 * time.Second, Verbose: *loud,
		Faults: Faults{Every: []int64{300, 1000, 3000}[seed/2%3] * ms, Kill: 3, Power: 3, AllPower: 1, Stop: 1,
			Cut: 5, Clog: 3, Partition: 2, Stall: 1, MdmDown: 1, MdmCut: 2, LostRPC: 3}}
	if seed%5 == 0 {
		c.Faults.WriteError, c.Faults.FlushError, c.Faults.SoleErrors = 2, 1, true
	}
	return c
}

// full adds what clients and groups go through.
func full(seed uint64) Config {
	c := basic(seed)
	c.Evict, c.Resync, c.Reattach = true, true, true
	c.Volumes = 1 + int(seed/3%3)
	c.Faults.Client, c.Faults.Zombie, c.Faults.Fill = 2, 2, 2
	return c
}

// moves is what operators and planned changes add to all of that.
func moves(seed uint64) Config {
	c := full(seed)
	c.Servers, c.Duration = 4, 30*time.Second
	c.Faults.Move, c.Faults.Remove = 8, 1
	return c
}

// lossy is what takes devices away and brings new ones, and writes that go astray.
func lossy(seed uint64) Config {
	c := full(seed)
	c.Servers, c.Duration, c.Grace = c.Replicas+1, 40*time.Second, 3*time.Second
	c.Faults.AllPower, c.Faults.WriteError, c.Faults.FlushError, c.Faults.SoleErrors = 0, 0, 0, false
	c.Faults.Lose, c.Faults.Fresh, c.Faults.Stray = 3, 3, 4
	c.Faults.Every = max(c.Faults.Every, s1)
	return c
}

var mixes = map[string]func(uint64) Config{"basic": basic, "full": full, "moves": moves, "losses": lossy}

// complain reports a failing run: its story, and how to see it again.
func complain(t *testing.T, mix string, cfg Config, r *Report) {
	t.Helper()
	if *small {
		cfg, r = Shrink(cfg, 200)
	}
	t.Fatalf("%s\n\n%s\nseed %d: %v\nreplay: go test ./internal/sim -run 'TestCampaign$' -seeds 1 -seed %d "+
		"-story -mix %s -off '%v' (smaller: -shrink)", r.Trace, cfg.Script(), cfg.Seed, r.Err, cfg.Seed, mix, cfg.Off)
}

// Goal: nothing that a fault does breaks a promise. Method: seeds, each a
// cluster with its own shape, load and faults, every event checked.
func TestCampaign(t *testing.T) { campaign(t, *mix, *seeds) }

// Goal: the same for clients that die, come back and haunt, and for groups that
// lose copies and get them back.
func TestFullCampaign(t *testing.T) { campaign(t, "full", *seeds) }

// Goal: the same while groups move and devices are removed.
func TestMovesCampaign(t *testing.T) { campaign(t, "moves", *seeds) }

// Goal: the same while devices are lost and fresh ones come, and writes go astray.
func TestLossesCampaign(t *testing.T) { campaign(t, "losses", max(*seeds/4, 1)) }

func campaign(t *testing.T, mix string, seeds int) {
	marks := map[string]int{}
	events, done := uint64(0), 0
	start := time.Now()
	rule, err := rules.Parse(*off)
	if err != nil {
		t.Fatal(err)
	}
	for i := range seeds {
		cfg := mixes[mix](*first + uint64(i))
		cfg.Off = rule
		r := Run(cfg)
		events += r.Events
		done += r.Done
		for k, n := range r.Marks {
			marks[k] += n
		}
		if r.Err != nil {
			complain(t, mix, cfg, r)
		}
	}
	cover(t, marks)
	t.Logf("%d events, %.0f a second, %d requests", events, float64(events)/time.Since(start).Seconds(), done)
	for _, k := range slices.Sorted(maps.Keys(marks)) {
		t.Logf("%8d  %s", marks[k], k)
	}
}

// Goal: a shrunk run is smaller and fails all the same.
func TestShrink(t *testing.T) {
	cfg := full(1000)
	cfg.Off = rules.Set(rules.LogFirst)
	least, r := Shrink(cfg, 40)
	if r.Err == nil || len(least.Plan) >= len(cfg.plan()) {
		t.Errorf("%d faults of %d are left, the end is %v", len(least.Plan), len(cfg.plan()), r.Err)
	}
	again, err := ParseScript(least.Script())
	if err != nil {
		t.Fatal(err)
	}
	if x := Run(again); x.Hash != r.Hash {
		t.Errorf("its script is another run: %v, not %v", x.Err, r.Err)
	}
}

// Goal: the fault model has teeth. Method: a disk whose flush lies has to be
// noticed.
func TestLyingFlushIsCaught(t *testing.T) {
	for i := range 20 {
		cfg := basic(uint64(2000 + i))
		cfg.Faults.Lie, cfg.Faults.Power = 20, 10
		if r := Run(cfg); r.Err != nil {
			t.Logf("seed %d: %v", cfg.Seed, r.Err)
			return
		}
	}
	t.Error("nobody noticed")
}

// Goal: what once failed does not fail again. Method: the scripts of testdata,
// whose faults are told one by one, so that they stay what they are when seeds
// come to draw others.
func TestScripts(t *testing.T) {
	paths, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range paths[:max(len(paths)/slow, 1)] {
		t.Run(strings.TrimSuffix(filepath.Base(path), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			cfg, err := ParseScript(string(text))
			if err != nil {
				t.Fatal(err)
			}
			cfg.Verbose = *loud
			if *small {
				cfg, _ = Shrink(cfg, 200)
				t.Log(cfg.Script())
			}
			if r := Run(cfg); r.Err != nil {
				t.Fatalf("%s\n\n%v", r.Trace, r.Err)
			}
		})
	}
}

// Goal: a script is the run that it was made from.
func TestScriptsRepeatRuns(t *testing.T) {
	cfg := basic(7)
	cfg.Duration = 5 * time.Second
	again, err := ParseScript(cfg.Script())
	if err != nil {
		t.Fatal(err)
	}
	if a, b := Run(cfg), Run(again); a.Hash != b.Hash || again.Script() != cfg.Script() {
		t.Errorf("hash %x, then %x\n%s\n%s", a.Hash, b.Hash, cfg.Script(), again.Script())
	}
}

// Goal: the same seed gives the same run. Method: the hash over all events.
func TestSameSeedSameRun(t *testing.T) {
	for seed := range uint64(3) {
		cfg := basic(seed + 100)
		cfg.Duration = 5 * time.Second
		if a, b := Run(cfg), Run(cfg); a.Hash != b.Hash || a.Events != b.Events {
			t.Errorf("seed %d: %d events, hash %x; then %d events, hash %x",
				cfg.Seed, a.Events, a.Hash, b.Events, b.Hash)
		}
	}
}

// Goal: the oracle's idea of where a block lies is the client's. Method: its two
// directions are inverse for all shapes (a wrong place fails the campaign).
func TestBlockPlaces(t *testing.T) {
	for _, unit := range []uint32{4096, 64 << 10, 1 << 20} {
		for _, width := range []uint32{1, 2, 4} {
			v := &Volume{unit: unit, width: width, size: 8 << 20}
			for b := range v.size / block {
				chunk, in := v.locate(b)
				if back := v.block(chunk, in); back != b || in >= 256 {
					t.Fatalf("unit %d width %d: block %d lies at %d+%d, which is block %d",
						unit, width, b, chunk, in, back)
				}
			}
		}
	}
}
