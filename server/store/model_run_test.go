// SPDX-License-Identifier: Apache-2.0

package store

import (
	"flag"
	"fmt"
	"runtime"
	"testing"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

var (
	firstSeed = flag.Int("seed", 0, "first seed of TestModel")
	seedCount = flag.Int("seeds", 8, "how many seeds TestModel runs")
)

// seeds is how many of them a test runs: with -short, as under the race detector,
// which finds nothing in one goroutine, few.
func seeds() int {
	if testing.Short() {
		return min(*seedCount, 2)
	}
	return *seedCount
}

// shorter is n, or with -short a part of it.
func shorter(n, part int) int {
	if testing.Short() {
		return n / part
	}
	return n
}

// Goal: random operations, completions in random order, power losses at random
// points; every block reads as one of the values it may have, regions with
// unflushed writes are in the log, nothing hangs, the books balance.
// Replay of seed N: go test ./server/store -run TestModel -seed N -seeds 1
func TestModel(t *testing.T) {
	for seed := *firstSeed; seed < *firstSeed+seeds(); seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runSeed(t, seed) })
	}
}

// Goal: what a long run once found stays mended.
// 2152: a block that was first present in one log group was overwritten while the
// next group, with the same chunk, was in flight; a power loss then made the
// flushed block read as zeroes.
func TestModelSeedsThatFailed(t *testing.T) {
	for _, seed := range []int{2152} {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runSeed(t, seed) })
	}
}

func runSeed(t *testing.T, seed int) {
	p := profiles()[seed%4]
	p.steps = shorter(p.steps, 8)
	cfg := Config{LocalResolve: seed%8 < 4, VerifyReads: true, Discard: seed%3 != 0}
	switch seed % 4 {
	case 2:
		cfg.PageCache, cfg.ALSlots = slabPages, 6
	case 3:
		cfg.PageCache = slabPages
	}
	runModel(t, newModel(t, uint64(seed), p, cfg))
}

// Goal: a scrubber that reads while everything else goes on takes nothing healthy
// for rotten, and disturbs nothing.
func TestModelScrub(t *testing.T) {
	for seed := range min(seeds(), 4) {
		p := profiles()[seed]
		p.every *= 4
		p.steps = shorter(p.steps, 4)
		m := newModel(t, uint64(seed), p, Config{LocalResolve: true, Discard: true, PageCache: slabPages})
		m.scrub = &Request{Op: OpScrub, Data: alignedBytes(cluster.ChunkSize), Table: &transport.SumTable{}}
		runModel(t, m)
		if s := m.rig.core.Stats(); m.scrubs < m.steps/10 {
			t.Errorf("%d pieces, %+v", m.scrubs, s)
		}
	}
}

func runModel(t *testing.T, m *model) {
	m.run()
	m.drain()
	m.recovered(m.rig, false, nil)
	t.Logf("%d crashes, %v, %+v", m.crashes, m.seen, m.rig.core.Stats())
}

// caught is a test that may fail: it keeps the first message.
type caught struct {
	testing.TB
	message string
}

func (c *caught) Fatalf(format string, args ...any) {
	c.message = fmt.Sprintf(format, args...)
	runtime.Goexit()
}

func (c *caught) Fatal(args ...any)                 { c.Fatalf("%s", fmt.Sprint(args...)) }
func (c *caught) Errorf(format string, args ...any) {}

// Goal: the model is worth something. With a rule switched off in the core it
// finds a violation.
func TestModelNoticesMissingRules(t *testing.T) {
	for _, rule := range []rules.Rule{rules.LogFirst, rules.FlushMetadata} {
		found := ""
		for seed := uint64(0); seed < 20 && found == ""; seed++ {
			c := &caught{TB: t}
			done := make(chan struct{})
			go func() {
				defer close(done)
				m := newModel(c, seed, profile{testSize, 0, 24, 24, 10, 400, 80, 80, 2},
					Config{LocalResolve: true, VerifyReads: true, Off: rules.Set(rule)})
				m.run()
			}()
			<-done
			found = c.message
		}
		if found == "" {
			t.Errorf("%v is off and nothing was noticed", rule)
		}
		t.Logf("%v off: %.150s", rule, found)
	}
}
