// SPDX-License-Identifier: Apache-2.0

package placement

// window is the run of neighbouring groups that is to be spread evenly: a row
// of the default stripe width.
const window = 8

// What one same-set or same-server pair costs where domains are weaker than
// that. It outweighs any gain in evenness.
const weakPair = 1000

// near measures how crowded the surroundings of a group are with d and e. With
// c(w) the copies of d in window w, the sum over the windows that contain the
// group of c(w) is the sum over d's copies at distance k of window - |k|: the
// derivative of the squares that polish lowers.
func (p *placer) near(d, e, group int) (ofD, ofE int) {
	reach := min(window-1, (p.groups-1)/2)
	if first, last := group-reach, group+reach; first >= 0 && last < p.groups {
		weight, left := window-reach, p.replicas
		for _, at := range p.cells[first*p.replicas : (last+1)*p.replicas] {
			if at == d {
				ofD += weight
			} else if at == e {
				ofE += weight
			}
			if left--; left == 0 {
				left = p.replicas
				if first++; first <= group {
					weight++
				} else {
					weight--
				}
			}
		}
		return ofD, ofE
	}
	for k := -reach; k <= reach; k++ {
		for _, at := range p.row((group + k + p.groups) % p.groups) {
			if at == d {
				ofD += window - max(k, -k)
			} else if at == e {
				ofE += window - max(k, -k)
			}
		}
	}
	return ofD, ofE
}

// weakness counts pairs of a group that share a fault set or a server although
// the domains allow it.
func (p *placer) weakness(cell, d int) int {
	if !p.weak {
		return 0
	}
	group, n := cell/p.replicas, 0
	for r, other := range p.row(group) {
		if other == hole || group*p.replicas+r == cell {
			continue
		}
		if p.set[other] == p.set[d] {
			n++
		}
		if p.server[other] == p.server[d] {
			n++
		}
	}
	return n
}

// fill puts a device into each hole: one below its quota, not crowded nearby,
// rarely together with the others of the group.
func (p *placer) fill() {
	total := 0
	for _, at := range p.cells {
		if at == hole {
			total++
		}
	}
	open := make([]int, len(p.devices)) // copies each device is to get
	for d := range open {
		open[d] = p.quota[d] - p.count[d]
	}
	left := make([]int, p.domainCount) // copies each domain is still to get
	for d, n := range open {
		left[p.domain[d]] += n
	}
	crowd := make([]float64, len(p.devices))
	filled, offset := 0, 0
	var stuck []int
	for cell, at := range p.cells {
		if at != hole {
			continue
		}
		p.crowding(cell/p.replicas, crowd, false)
		groupsLeft := float64(total-filled)/float64(p.replicas) + 1
		best, least := hole, 0.0
		for tried := range p.devices {
			if tried >= sample && best != hole {
				break
			}
			d := (offset + tried) % len(p.devices)
			if p.count[d] >= p.quota[d] || !p.fits(cell, d) {
				continue
			}
			// How far the device lags behind an even filling.
			lag := float64(open[d])*float64(filled)/float64(total) -
				float64(open[d]-p.quota[d]+p.count[d])
			cost := crowd[d] - window*p.ideal[d] - 4*lag + p.company(cell, d) +
				weakPair*float64(p.weakness(cell, d))
			// A domain whose copies are needed in nearly every group that is
			// left may not wait.
			cost -= 64 * float64(left[p.domain[d]]) / groupsLeft
			if best == hole || cost < least || cost == least && d < best {
				best, least = d, cost
			}
		}
		p.crowding(cell/p.replicas, crowd, true)
		filled++
		offset += sample + 1
		if best == hole {
			stuck = append(stuck, cell)
			continue
		}
		p.put(cell, best)
		left[p.domain[best]]--
	}
	for _, cell := range stuck {
		p.unstick(cell)
	}
}

// sample is how many devices are looked at for each hole. Looking at all of a
// thousand takes seconds and makes no better table.
const sample = 128

// crowding is near for all devices at once; erase sets what it touched to 0.
func (p *placer) crowding(group int, crowd []float64, erase bool) {
	reach := min(window-1, (p.groups-1)/2)
	for k := -reach; k <= reach; k++ {
		for _, at := range p.row((group + k + p.groups) % p.groups) {
			switch {
			case at == hole:
			case erase:
				crowd[at] = 0
			default:
				crowd[at] += float64(window - max(k, -k))
			}
		}
	}
}

// company is how often d already shares groups with the others in this one.
func (p *placer) company(cell, d int) float64 {
	sum := int32(0)
	for _, other := range p.row(cell / p.replicas) {
		if other != hole {
			sum += p.pairs[d*len(p.devices)+other]
		}
	}
	return float64(sum)
}

// unstick fills a hole that no device with room fits, by a detour: x goes from
// another group into the hole, and a device with room takes x's place there.
func (p *placer) unstick(cell int) {
	for _, freshOnly := range []bool{true, false} {
		for other, x := range p.cells {
			if x == hole || freshOnly && !p.fresh[other] || !p.fits(cell, x) ||
				other/p.replicas == cell/p.replicas {
				continue
			}
			for d := range p.devices {
				if p.count[d] < p.quota[d] && p.fits(other, d) {
					p.take(other)
					p.put(other, d)
					p.put(cell, x)
					p.fresh[other], p.fresh[cell] = true, true
					return
				}
			}
		}
	}
	// Quotas cannot be met exactly: any device that fits does.
	best := hole
	for d := range p.devices {
		if p.fits(cell, d) && (best == hole ||
			p.count[d]*p.quota[best] < p.count[best]*p.quota[d]) {
			best = d
		}
	}
	p.put(cell, best)
}

// level moves copies from devices above their quota to those below, each from
// where it does the rows most good.
func (p *placer) level() {
	for {
		poor := hole
		for d := range p.devices {
			if p.count[d] < p.quota[d] &&
				(poor == hole || p.quota[d]-p.count[d] > p.quota[poor]-p.count[poor]) {
				poor = d
			}
		}
		if poor == hole || !p.enrich(poor) && !p.detour(poor) {
			return
		}
	}
}

// enrich gives d one copy of a device that has too many.
func (p *placer) enrich(d int) bool {
	best, least := hole, 0
	for cell, at := range p.cells {
		if p.count[at] <= p.quota[at] || !p.fits(cell, d) {
			continue
		}
		group := cell / p.replicas
		poor, rich := p.near(d, at, group)
		change := 2*(poor-rich) + p.pairChange(group, cell, at, d) +
			weakPair*(p.weakness(cell, d)-p.weakness(cell, at))
		if best == hole || change < least {
			best, least = cell, change
		}
	}
	if best == hole {
		return false
	}
	p.replace(best, d)
	return true
}

// detour gives d one copy of a device x that has no copy too many, and x one of
// a device that has, where d itself does not fit.
func (p *placer) detour(d int) bool {
	for cell, rich := range p.cells {
		if p.count[rich] <= p.quota[rich] {
			continue
		}
		for other, x := range p.cells {
			if other/p.replicas != cell/p.replicas && p.fits(cell, x) && p.fits(other, d) {
				p.replace(cell, x)
				p.replace(other, d)
				return true
			}
		}
	}
	return false
}

func (p *placer) replace(cell, d int) {
	p.take(cell)
	p.put(cell, d)
	p.fresh[cell] = true
}

// polish exchanges newly placed copies as long as that makes rows more even or
// pairs more varied. Exchanges keep every device's count.
func (p *placer) polish() {
	var movable []int
	for cell, fresh := range p.fresh {
		if fresh {
			movable = append(movable, cell)
		}
	}
	if len(movable) < 2 {
		return
	}
	// A fixed sequence: the same arguments have to give the same table.
	random := uint64(len(movable))*0x9e3779b97f4a7c15 + 1
	next := func(limit int) int {
		random ^= random << 13
		random ^= random >> 7
		random ^= random << 17
		return int(random >> 11 % uint64(limit))
	}
	for round := range min(polishRounds*len(movable), maxPolish) {
		// Every other partner comes from the neighbourhood: an uneven spot wanders
		// until it meets its opposite.
		a, b := next(len(movable)), next(len(movable))
		if round%2 == 0 {
			b = (a + next(2*window*p.replicas)) % len(movable)
		}
		p.exchange(movable[a], movable[b])
	}
}

// polishRounds is how many exchanges are tried per copy: beyond 40 the cost falls
// by less than 1 % more. maxPolish bounds the time on large tables, where filling
// alone leaves little to do.
const (
	polishRounds = 40
	maxPolish    = 500_000
)

func (p *placer) exchange(a, b int) {
	d, e := p.cells[a], p.cells[b]
	ga, gb := a/p.replicas, b/p.replicas
	if d == e || ga == gb || !p.fits(a, e) || !p.fits(b, d) {
		return
	}
	// The change of the sum of squares over all windows; windows that contain
	// both groups stay as they are.
	distance := max(ga-gb, gb-ga)
	distance = min(distance, p.groups-distance)
	shared := max(0, window-distance)
	dNearA, eNearA := p.near(d, e, ga)
	dNearB, eNearB := p.near(d, e, gb)
	change := 2*(eNearA-dNearA+dNearB-eNearB) + 4*window - 4*shared
	change += weakPair * (p.weakness(a, e) + p.weakness(b, d) - p.weakness(a, d) - p.weakness(b, e))
	change += p.pairChange(ga, a, d, e) + p.pairChange(gb, b, e, d)
	if change > 0 {
		return
	}
	p.take(a)
	p.take(b)
	p.put(a, e)
	p.put(b, d)
}

// pairChange is the change of the sum of squares over all pairs when the cell's
// device out is replaced by in (exact unless two pairs coincide).
func (p *placer) pairChange(group, cell, out, in int) int {
	n, change := len(p.devices), 0
	for r, other := range p.row(group) {
		if group*p.replicas+r == cell {
			continue
		}
		change += 2*int(p.pairs[in*n+other]-p.pairs[out*n+other]) + 2
	}
	return change
}
