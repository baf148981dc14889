// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"errors"
	"fmt"
	"slices"

	"braid/cluster"
)

// Device is what placement has to know of a device.
type Device struct {
	ID       cluster.DeviceID
	Server   string
	FaultSet string
	Weight   uint64 // its size in bytes
}

// Table lists the devices of each group, the preferred one first.
type Table [][]cluster.DeviceID

// Plan is a table with what there is to say about it.
type Plan struct {
	Table    Table
	Moved    int      // copies that lie elsewhere than in the old table
	Warnings []string // what could not be fulfilled, for people
	Usable   uint64   // bytes that volumes can hold
}

// ErrTooFew says that there are fewer devices than replicas.
var ErrTooFew = errors.New("fewer devices than replicas")

// Compute places groups copies times replicas on the devices. old is the table
// to stay close to, nil for a fresh one; it must have as many groups.
func Compute(devices []Device, replicas, groups int, old Table) (Plan, error) {
	devices = slices.DeleteFunc(slices.Clone(devices), func(d Device) bool { return d.Weight == 0 })
	slices.SortFunc(devices, func(a, b Device) int { return cmp.Compare(a.ID, b.ID) })
	switch {
	case replicas < 1 || groups < 1 || groups&(groups-1) != 0:
		return Plan{}, fmt.Errorf("place %d groups of %d replicas: want at least one replica and "+
			"a power of two of groups", groups, replicas)
	case len(devices) < replicas:
		return Plan{}, fmt.Errorf("place %d replicas on %d %s: %w", replicas, len(devices),
			plural(len(devices), "device", "devices"), ErrTooFew)
	case old != nil && len(old) != groups:
		return Plan{}, fmt.Errorf("place %d groups: the old table has %d; splitting groups is a "+
			"step of its own", groups, len(old))
	}
	p := newPlacer(devices, replicas, groups)
	p.keep(old)
	p.fill()
	p.level()
	p.polish()
	table := p.table()
	return Plan{Table: table, Moved: p.moved(old), Warnings: p.warnings(),
		Usable: Usable(table, devices)}, nil
}

// hole marks a cell without a copy.
const hole = -1

// placer works with indexes into devices instead of device ids.
type placer struct {
	devices     []Device
	replicas    int
	groups      int
	domain      []int // per device: no two of a group in one domain
	domainCount int
	set, server []int // per device: numbers of fault set and server
	weak        bool  // domains are weaker than fault sets
	notes       []string

	quota []int // copies each device should hold
	count []int // copies it holds
	cells []int // device per (group, replica); hole: none
	fresh []bool
	pairs []int32 // groups that two devices share, a square
	ideal []float64
}

func newPlacer(devices []Device, replicas, groups int) *placer {
	p := &placer{devices: devices, replicas: replicas, groups: groups,
		count: make([]int, len(devices)), cells: make([]int, groups*replicas),
		fresh: make([]bool, groups*replicas), pairs: make([]int32, len(devices)*len(devices))}
	p.domain, p.domainCount, p.notes = domains(devices, replicas)
	p.weak = p.notes != nil
	p.set = number(devices, func(d Device) string { return d.FaultSet })
	p.server = number(devices, func(d Device) string { return d.Server })
	p.quota = quotas(devices, p.domain, p.domainCount, groups, replicas)
	p.ideal = make([]float64, len(devices))
	for d, q := range p.quota {
		p.ideal[d] = window * float64(q) / float64(groups)
	}
	for c := range p.cells {
		p.cells[c] = hole
		p.fresh[c] = true
	}
	return p
}

func (p *placer) row(group int) []int {
	return p.cells[group*p.replicas : (group+1)*p.replicas]
}

// put places device d in a cell; take makes a hole of it.
func (p *placer) put(cell, d int) {
	for _, other := range p.row(cell / p.replicas) {
		if other != hole {
			p.pairs[d*len(p.devices)+other]++
			p.pairs[other*len(p.devices)+d]++
		}
	}
	p.cells[cell] = d
	p.count[d]++
}

func (p *placer) take(cell int) {
	d := p.cells[cell]
	p.cells[cell] = hole
	p.count[d]--
	for _, other := range p.row(cell / p.replicas) {
		if other != hole {
			p.pairs[d*len(p.devices)+other]--
			p.pairs[other*len(p.devices)+d]--
		}
	}
}

// fits reports whether d may be in the cell, given the rest of the group.
func (p *placer) fits(cell, d int) bool {
	group := cell / p.replicas
	for r, other := range p.row(group) {
		if other != hole && group*p.replicas+r != cell && p.domain[other] == p.domain[d] {
			return false
		}
	}
	return true
}

// keep takes over every copy of the old table that may stay where it is.
func (p *placer) keep(old Table) {
	index := make(map[cluster.DeviceID]int, len(p.devices))
	for i, d := range p.devices {
		index[d.ID] = i
	}
	for g, row := range old {
		for r, id := range row[:min(len(row), p.replicas)] {
			d, ok := index[id]
			if cell := g*p.replicas + r; ok && p.fits(cell, d) {
				p.put(cell, d)
				p.fresh[cell] = false
			}
		}
	}
}

func (p *placer) table() Table {
	table := make(Table, p.groups)
	first := make([]int, len(p.devices))
	for g := range table {
		row := p.row(g)
		// The preferred copy of each group: spread in proportion to the quotas,
		// unless the old table has said already which it is.
		lead := 0
		for r := 1; r < len(row); r++ {
			if p.fresh[g*p.replicas+lead] &&
				first[row[r]]*p.quota[row[lead]] < first[row[lead]]*p.quota[row[r]] {
				lead = r
			}
		}
		first[row[lead]]++
		row[0], row[lead] = row[lead], row[0]
		table[g] = make([]cluster.DeviceID, len(row))
		for r, d := range row {
			table[g][r] = p.devices[d].ID
		}
	}
	return table
}

func (p *placer) moved(old Table) int {
	moved := 0
	for g, row := range old {
		for _, d := range p.row(g) {
			if !slices.Contains(row, p.devices[d].ID) {
				moved++
			}
		}
	}
	return moved
}

// warnings adds what the quotas could not do to what the domains could not.
func (p *placer) warnings() []string {
	notes := p.notes
	total := 0.0
	for _, d := range p.devices {
		total += float64(d.Weight)
	}
	for n := range p.domainCount {
		weight, copies, name := 0.0, 0, ""
		for i, d := range p.devices {
			if p.domain[i] == n {
				weight += float64(d.Weight)
				copies += p.quota[i]
				name = d.FaultSet
				if p.weak {
					name = d.Server
				}
			}
		}
		fair := weight / total * float64(p.groups*p.replicas)
		if copies == p.groups && fair > 1.05*float64(copies) {
			notes = append(notes, fmt.Sprintf("%s has %.0f%% of all space: of its copies a group may "+
				"have only one, so %.0f%% of it stays unused; give the other fault sets more disks",
				name, 100*weight/total, 100*(1-float64(copies)/fair)))
		}
	}
	return notes
}
