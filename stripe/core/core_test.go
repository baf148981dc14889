// SPDX-License-Identifier: Apache-2.0

package core

import (
	"flag"
	"fmt"
	"maps"
	"testing"
)

var (
	seedFlag  = flag.Uint64("seed", 0, "run the simulation with this seed only")
	seedCount = flag.Int("seeds", 8, "how many seeds each simulation runs")
)

func runSim(cfg simConfig, steps int) *sim {
	s := newSim(cfg)
	for i := 0; i < steps && s.fail == nil && s.lost == nil; i++ {
		s.step()
	}
	s.heal()
	s.checkRest()
	return s
}

func baseConfig(seed uint64) simConfig {
	return simConfig{seed: seed, unit: 8192, width: 4, size: 8 << 20, devices: 5, replicas: 3, groups: 8,
		requests: 8, frames: 64, maxLength: 300 << 10}
}

// Goal: whatever the network and the devices do, reads return what was written,
// acks mean what they say, everything ends, replicas end up equal. Method: a
// random schedule over fake devices for each of several worlds; see sim and
// oracle. A failure prints the command that replays it.
func TestSimulation(t *testing.T) {
	worlds := []struct {
		name  string
		steps int
		set   func(*simConfig)
		must  []string // what has to have happened in some run
	}{
		{"calm", 3000, func(*simConfig) {}, []string{"flush"}},
		{"drops", 4000, func(c *simConfig) { c.drops, c.statuses = 300, 30 },
			[]string{"drop", "need-map", "close-link"}},
		{"restarts", 4000, func(c *simConfig) { c.drops, c.restarts = 100, 200 }, []string{"restart"}},
		{"power", 4000, func(c *simConfig) {
			c.devices, c.replicas, c.restarts, c.powerLoss = 4, 2, 80, true
		}, []string{"power-loss", "drop-replica", "lost"}},
		{"bad reads", 3000, func(c *simConfig) { c.badReads, c.drops = 30, 50 }, []string{"bad-read"}},
		// The log must hold at least what is incomplete at once: 4 chunks of 4 requests.
		{"pressure", 3000, func(c *simConfig) {
			c.size, c.requests, c.maxLength, c.alCap, c.drops = 64<<20, 4, 16<<10, 18, 30
		}, []string{"flush"}},
		{"full logs", 3000, func(c *simConfig) {
			c.size, c.requests, c.maxLength, c.alCap, c.drops = 64<<20, 4, 16<<10, 18, 50
			c.silent = true
		}, []string{"al-full"}},
		{"few tables", 3000, func(c *simConfig) { c.requests, c.frames, c.drops = 3, 4, 50 }, nil},
		// Trims that need more pieces than there are.
		{"long trims", 1500, func(c *simConfig) {
			c.size, c.requests, c.drops, c.longTrims = 64<<20, 3, 30, true
		}, nil},
		{"attach", 3000, func(c *simConfig) {
			c.attach, c.drops, c.requests, c.frames = true, 50, 3, 4
			c.before.GuestAlive = true
		}, []string{"resolved"}},
		{"fresh attach", 3000, func(c *simConfig) {
			c.attach, c.drops, c.statuses, c.requests, c.frames = true, 50, 20, 3, 4
		}, []string{"resolved"}},
		// Writes wait for room, also so many of them that they would take all slots.
		{"full devices", 3000, func(c *simConfig) { c.size, c.fills, c.drops, c.statuses = 32<<20, 150, 50, 10 },
			[]string{"room", "flush"}},
		{"full devices that die", 3000, func(c *simConfig) {
			c.size, c.fills, c.drops, c.restarts, c.alCap, c.maxLength, c.requests = 64<<20, 150, 50, 30, 18, 16<<10, 4
		}, []string{"room", "restart"}},
		{"one copy", 3000, func(c *simConfig) { c.replicas, c.drops, c.width, c.unit = 1, 100, 1, 65536 }, nil},
	}
	for _, w := range worlds {
		t.Run(w.name, func(t *testing.T) {
			t.Parallel()
			marks := map[string]int{}
			first, last := uint64(1), uint64(*seedCount)
			if testing.Short() {
				last = min(last, 2) // one goroutine: the race detector has nothing to find
			}
			if *seedFlag != 0 {
				first, last = *seedFlag, *seedFlag
			}
			for seed := first; seed <= last; seed++ {
				cfg := baseConfig(seed)
				w.set(&cfg)
				s := runSim(cfg, w.steps)
				for k, n := range s.marks {
					marks[k] += n
				}
				if s.fail != nil {
					t.Fatalf("seed %d: %v\nreplay: go test ./stripe/core -run 'TestSimulation/%s' -seed %d",
						seed, s.fail, w.name, seed)
				}
			}
			for _, m := range w.must {
				if marks[m] == 0 && *seedFlag == 0 && !testing.Short() {
					t.Errorf("no run came across %q: %v", m, marks)
				}
			}
			if testing.Verbose() {
				fmt.Println(w.name, maps.Clone(marks))
			}
		})
	}
}
