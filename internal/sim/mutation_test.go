// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"testing"

	"braid/cluster/rules"
)

// mutant is a rule that is off, and a seed from which on that shows.
type mutant struct {
	rule  rules.Rule
	mix   string
	first uint64
}

// mutants are the rules that can be switched off, and where that shows.
var mutants = []mutant{
	{rules.DrainedFlush, "full", 1003},
	{rules.LogFirst, "full", 1000},
	{rules.FlushMetadata, "full", 1000},
	{rules.Stamp, "full", 1001},
	{rules.Overlap, "full", 1000},
	{rules.Direction, "full", 1008},
	{rules.ChunkLock, "full", 1027},
	{rules.Fence, "full", 1000},
}

// mutantTries is how many seeds a mutant gets to show itself.
const mutantTries = 30

// Goal: the campaign is not blind. Method: with a rule switched off, some seed
// has to fail that does not fail with it.
func TestMutations(t *testing.T) {
	for _, m := range mutants[:max(len(mutants)/slow, 2)] {
		t.Run(m.rule.String(), func(t *testing.T) {
			for i := range mutantTries {
				cfg := mixes[m.mix](m.first + uint64(i))
				cfg.Off = rules.Set(m.rule)
				r := Run(cfg)
				if r.Err == nil {
					continue
				}
				cfg.Off = 0
				if whole := Run(cfg); whole.Err != nil {
					t.Errorf("seed %d fails without that, too: %v", cfg.Seed, whole.Err)
					continue
				}
				t.Logf("seed %d, the %dth: %v", cfg.Seed, i+1, r.Err)
				return
			}
			t.Errorf("%d seeds without %v find nothing", mutantTries, m.rule)
		})
	}
}
