// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"cmp"
	"fmt"
	"math"
	"math/bits"
	"slices"

	"braid/cluster"
)

// domains says which devices must not share a group, as a number per device,
// and warns when that is weaker than different fault sets.
func domains(devices []Device, replicas int) (domain []int, count int, warnings []string) {
	sets := number(devices, func(d Device) string { return d.FaultSet })
	servers := number(devices, func(d Device) string { return d.Server })
	setCount, serverCount := 1+slices.Max(sets), 1+slices.Max(servers)
	switch {
	case setCount >= replicas:
		return sets, setCount, nil
	case serverCount >= replicas:
		return servers, serverCount, []string{fmt.Sprintf("%d replicas, but only %d fault %s: copies "+
			"of a group share a fault set (on different servers); add a server with another "+
			"--fault-set", replicas, setCount, plural(setCount, "set", "sets"))}
	}
	each := make([]int, len(devices))
	for i := range each {
		each[i] = i
	}
	return each, len(devices), []string{fmt.Sprintf("%d replicas, but only %d %s: copies of a group "+
		"share a server (on different devices), so its failure takes them all; add a server",
		replicas, serverCount, plural(serverCount, "server", "servers"))}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// number gives equal keys equal numbers, from 0 in order of appearance.
func number(devices []Device, key func(Device) string) []int {
	known := map[string]int{}
	out := make([]int, len(devices))
	for i, d := range devices {
		n, ok := known[key(d)]
		if !ok {
			n = len(known)
			known[key(d)] = n
		}
		out[i] = n
	}
	return out
}

// quotas shares groups*replicas copies out by weight. No domain gets more than
// one copy of each group; what it would have had beyond goes to the others.
func quotas(devices []Device, domain []int, domainCount, groups, replicas int) []int {
	weight := make([]float64, domainCount)
	for i, d := range devices {
		weight[domain[i]] += float64(d.Weight)
	}
	share := make([]float64, domainCount)
	capped := make([]bool, domainCount)
	for again := true; again; {
		again = false
		rest, free := float64(groups*replicas), 0.0
		for n := range share {
			if capped[n] {
				rest -= float64(groups)
			} else {
				free += weight[n]
			}
		}
		for n := range share {
			if capped[n] {
				continue
			}
			share[n] = rest * weight[n] / free
			if share[n] > float64(groups) {
				share[n], capped[n], again = float64(groups), true, true
			}
		}
	}
	perDomain := apportion(share, groups*replicas, groups)
	quota := make([]int, len(devices))
	for n := range domainCount {
		var members []int
		var parts []float64
		for i, d := range devices {
			if domain[i] == n {
				members = append(members, i)
				parts = append(parts, float64(perDomain[n])*float64(d.Weight)/weight[n])
			}
		}
		for k, q := range apportion(parts, perDomain[n], groups) {
			quota[members[k]] = q
		}
	}
	return quota
}

// apportion rounds shares to integers that add up to total, by largest
// remainder, none above limit.
func apportion(shares []float64, total, limit int) []int {
	out := make([]int, len(shares))
	order := make([]int, len(shares))
	for i, s := range shares {
		out[i] = min(int(math.Floor(s+1e-9)), limit)
		order[i] = i
		total -= out[i]
	}
	slices.SortStableFunc(order, func(a, b int) int {
		return cmp.Compare(shares[b]-float64(out[b]), shares[a]-float64(out[a]))
	})
	for total > 0 {
		before := total
		for _, i := range order {
			if total > 0 && out[i] < limit {
				out[i]++
				total--
			}
		}
		if before == total {
			panic("placement: the quotas cannot hold all copies")
		}
	}
	return out
}

// minCopies is how many copies a device holds at least when a table is made.
// The design asks for 64; twice that lets the devices double before groups have
// to be split.
const minCopies = 128

// Groups returns the number of groups for so many devices: a power of two.
func Groups(devices, replicas int) uint32 {
	want := max(256, (minCopies*devices+replicas-1)/replicas)
	return uint32(min(1<<bits.Len(uint(want-1)), cluster.MaxPGs))
}

// Usable returns how many bytes a volume's chunks can take before the first
// device is full, when chunks fall evenly on the groups.
func Usable(table Table, devices []Device) uint64 {
	copies := map[cluster.DeviceID]uint64{}
	for _, row := range table {
		for _, id := range row {
			copies[id]++
		}
	}
	usable := uint64(math.MaxUint64)
	for _, d := range devices {
		n := copies[d.ID]
		if n == 0 {
			continue
		}
		hi, lo := bits.Mul64(d.Weight, uint64(len(table)))
		if hi >= n {
			continue // beyond 64 bits: not the limit
		}
		quotient, _ := bits.Div64(hi, lo, n)
		usable = min(usable, quotient)
	}
	if usable == math.MaxUint64 {
		return 0
	}
	return usable / cluster.ChunkSize * cluster.ChunkSize
}
