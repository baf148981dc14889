// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"flag"
	"testing"
	"time"
)

var (
	seeds = flag.Int("seeds", 12, "how many seeds a campaign runs")
	first = flag.Uint64("seed", 1, "the first seed")
	loud  = flag.Bool("trace", false, "print the whole trace of a failing run")
)

func basic(seed uint64) Config {
	return Config{Seed: seed, Servers: 3, Replicas: 2 + int(seed%2), Volumes: 1, Chunks: 4, Duration: 20 * time.Second,
		Verbose: *loud,
		Faults: Faults{Every: 300 * ms, Kill: 3, Power: 3, AllPower: 1, Stop: 1, Cut: 5, Clog: 3, Partition: 2,
			Stall: 1, MdmDown: 1, MdmCut: 2, LostRPC: 3}}
}

func TestCampaign(t *testing.T) {
	marks := map[string]int{}
	events, done := uint64(0), 0
	start := time.Now()
	for i := range *seeds {
		cfg := basic(*first + uint64(i))
		r := Run(cfg)
		events += r.Events
		done += r.Done
		for k, n := range r.Marks {
			marks[k] += n
		}
		if r.Err != nil {
			t.Fatalf("%s\n\nseed %d: %v\nreplay: go test ./internal/sim -run 'Campaign$' -seeds 1 -seed %d -trace", r.Trace, r.Seed, r.Err, r.Seed)
		}
	}
	t.Logf("%d events, %.0f a second, %d requests, %v", events, float64(events)/time.Since(start).Seconds(), done, marks)
}

// Goal: the same seed gives the same run. Method: the hash over all events.
func TestSameSeedSameRun(t *testing.T) {
	for seed := range uint64(3) {
		cfg := basic(seed + 100)
		cfg.Duration = 5 * time.Second
		if a, b := Run(cfg), Run(cfg); a.Hash != b.Hash || a.Events != b.Events {
			t.Errorf("seed %d: %d events, hash %x; then %d events, hash %x", cfg.Seed, a.Events, a.Hash, b.Events, b.Hash)
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
					t.Fatalf("unit %d width %d: block %d lies at %d+%d, which is block %d", unit, width, b, chunk, in, back)
				}
			}
		}
	}
}
