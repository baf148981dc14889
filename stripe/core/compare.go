// SPDX-License-Identifier: Apache-2.0

package core

import (
	"encoding/binary"

	"braid/cluster"
	"braid/transport"
)

// What a block of a chunk is to hold, other than the index of its donor.
const (
	asHole  = int8(-1)
	asItIs  = int8(-2) // no copy of it can be read: leave it, and whoever reads it is told
	maxRuns = MaxCopies
)

// run is a range of blocks that are written, or trimmed, together.
type run struct {
	first, end int
	isHole     bool
}

// plan says how the copies of a chunk are made equal.
type plan struct {
	choice   [cluster.BlocksPerChunk]int8
	runs     [maxRuns]run
	runCount int
	more     bool // there are more runs than fit
}

// make decides, block by block, what the chunk holds, from the checksums of bytes
// that were just read from all disks: equal ones are taken for equal bytes (rule
// 22). candidates are the copies that may decide, the best first.
func (p *plan) make(tables []transport.SumTable, candidates []int) {
	var differs [cluster.BlocksPerChunk]bool
	for b := range cluster.BlocksPerChunk {
		p.choice[b] = choose(tables, candidates, b)
		for k := range tables {
			differs[b] = differs[b] || isUnlike(tables, p.choice[b], k, b)
		}
	}
	p.runCount, p.more = 0, false
	for b := 0; b < cluster.BlocksPerChunk; b++ {
		if !differs[b] {
			continue
		}
		if p.runCount == maxRuns {
			p.more = true
			return
		}
		r := run{first: b, end: b + 1, isHole: p.choice[b] == asHole}
		for e := b + 1; e < cluster.BlocksPerChunk && p.choice[e] != asItIs; e++ {
			if differs[e] {
				r.end = e + 1
			}
		}
		for e := r.first; e < r.end; e++ {
			r.isHole = r.isHole && p.choice[e] == asHole
		}
		p.runs[p.runCount] = r
		p.runCount++
		b = r.end
	}
}

// choose picks the donor of a block. A torn block, which a crash cut short, gives
// way to a copy that is whole, if that one may decide at all; else it is taken as
// it is. A rotten one is never copied.
func choose(tables []transport.SumTable, candidates []int, b int) int8 {
	for _, k := range candidates {
		switch t := &tables[k]; {
		case !t.Present.Has(b):
			return asHole
		case !t.Torn.Has(b) && !t.Rot.Has(b):
			return int8(k)
		}
	}
	for _, k := range candidates {
		if !tables[k].Rot.Has(b) {
			return int8(k)
		}
	}
	for k := range tables {
		if t := &tables[k]; t.Present.Has(b) && !t.Rot.Has(b) {
			return int8(k)
		}
	}
	return asItIs
}

// isUnlike reports whether copy k of the block has to be changed.
func isUnlike(tables []transport.SumTable, choice int8, k, b int) bool {
	t := &tables[k]
	switch choice {
	case asItIs:
		return false
	case asHole:
		return t.Present.Has(b)
	}
	return !t.Present.Has(b) || t.Rot.Has(b) || t.Sums[b] != tables[choice].Sums[b]
}

// gives reports whether the block is to be read from that donor.
func (p *plan) gives(donor, b int) bool {
	if int(p.choice[b]) != donor {
		return false
	}
	for _, r := range p.runs[:p.runCount] {
		if b >= r.first && b < r.end {
			return true
		}
	}
	return false
}

// given is the range of all blocks that a donor gives.
func (p *plan) given(donor int) (first, end int, any bool) {
	for b := range cluster.BlocksPerChunk {
		if !p.gives(donor, b) {
			continue
		}
		if !any {
			first, any = b, true
		}
		end = b + 1
	}
	return first, end, any
}

// isSum compares a block's checksum as computed with the one in a table.
func isSum(t *transport.SumTable, b int, sum []byte) bool {
	return t.Sums[b] == binary.LittleEndian.Uint64(sum)
}
