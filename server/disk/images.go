// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"maps"
	"math/rand/v2"
)

// Images are the disks that a power loss now may leave. Up to Limit choices of
// "which version of each unflushed sector is there" are made: all of them where
// there are no more, otherwise the extreme ones and a sample. Each choice comes
// as it is and, with Torn, again with one of those sectors torn at 512-byte grain
// or full of garbage; AllTorn: with each of them torn in each way, where there are
// few.
type Images struct {
	Limit   int
	Torn    bool
	AllTorn bool
	Rand    *rand.Rand
}

// sectorVersions is a sector that is not durable: what was written to it, in order.
type sectorVersions struct {
	at       int64
	versions [][]byte
}

// Each calls fn for every image and returns how many there were, and whether
// these were all choices. inflight are writes that have begun and not returned.
func (x *Images) Each(m *Mem, inflight []MemWrite, fn func(*Mem)) (n int, all bool) {
	m.mu.Lock()
	sectors := unflushed(append(append([]MemWrite(nil), m.cached...), inflight...))
	base := &Mem{size: m.size, durable: maps.Clone(m.durable)}
	m.mu.Unlock()
	emit := func(choice []int, torn int, way int) {
		c := &Mem{size: base.size, durable: maps.Clone(base.durable)}
		for i, s := range sectors {
			if choice[i] > 0 {
				c.durable[s.at] = s.versions[choice[i]-1]
			}
		}
		if torn >= 0 {
			s := sectors[torn]
			from := c.durable[s.at]
			to := s.versions[len(s.versions)-1]
			if choice[torn] == len(s.versions) { // the newest is there: an older one under it
				from = base.durable[s.at]
			}
			c.durable[s.at] = tearAs(x.Rand, way, from, to)
		}
		c.view = maps.Clone(c.durable)
		n++
		fn(c)
	}
	k := 0
	each := func(choice []int) {
		emit(choice, -1, 0)
		switch {
		case len(sectors) == 0 || !x.Torn:
		case x.AllTorn && len(sectors) <= fewSectors:
			for i := range sectors {
				for way := range tearWays {
					emit(choice, i, way)
				}
			}
		default:
			emit(choice, k%len(sectors), k/len(sectors)%tearWays)
		}
		k++
	}
	all = x.choices(sectors, each)
	return n, all
}

func unflushed(ws []MemWrite) (list []*sectorVersions) {
	by := map[int64]*sectorVersions{}
	for _, w := range ws {
		for o := 0; o < len(w.Data); o += sector {
			at := (w.Off + int64(o)) / sector
			s := by[at]
			if s == nil {
				s = &sectorVersions{at: at}
				by[at] = s
				list = append(list, s)
			}
			s.versions = append(s.versions, w.Data[o:o+sector])
		}
	}
	return list
}

// choices calls fn with a version number for each sector, 0: the durable one.
func (x *Images) choices(sectors []*sectorVersions, fn func([]int)) (all bool) {
	choice := make([]int, len(sectors))
	total := 1
	for _, s := range sectors {
		total *= 1 + len(s.versions)
		if total > x.Limit {
			x.sample(sectors, choice, fn)
			return false
		}
	}
	for k := range total {
		for i, s := range sectors {
			choice[i] = k % (1 + len(s.versions))
			k /= 1 + len(s.versions)
		}
		fn(choice)
	}
	return true
}

// sample: nothing, everything, each sector alone, all but one, and random ones.
func (x *Images) sample(sectors []*sectorVersions, choice []int, fn func([]int)) {
	left := x.Limit
	try := func(pick func(i, newest int) int) {
		if left == 0 {
			return
		}
		left--
		for i, s := range sectors {
			choice[i] = pick(i, len(s.versions))
		}
		fn(choice)
	}
	try(func(_, _ int) int { return 0 })
	try(func(_, newest int) int { return newest })
	first := x.Rand.IntN(len(sectors))
	for k := range min(len(sectors), left/4) {
		one := (first + k) % len(sectors)
		try(func(i, newest int) int {
			if i == one {
				return newest
			}
			return 0
		})
		try(func(i, newest int) int {
			if i == one {
				return 0
			}
			return newest
		})
	}
	for left > 0 {
		try(func(_, newest int) int { return x.Rand.IntN(newest + 1) })
	}
}

const (
	tearWays   = 4
	fewSectors = 4
)

// tearAs mixes two versions of a sector: the start of the new one, its end, a
// random mixture of 512-byte pieces, or garbage.
func tearAs(r *rand.Rand, way int, from, to []byte) []byte {
	b := make([]byte, sector)
	copy(b, from)
	cut := 512 * (1 + r.IntN(7))
	switch way {
	case 0:
		copy(b[:cut], to)
	case 1:
		copy(b[cut:], to[cut:])
	case 2:
		for o := 0; o < sector; o += 512 {
			if r.IntN(2) == 0 {
				copy(b[o:o+512], to[o:])
			}
		}
	default:
		for i := range b {
			b[i] = byte(r.Uint32())
		}
	}
	return b
}
