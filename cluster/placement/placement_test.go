// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"errors"
	"fmt"
	"math"
	"reflect"
	"slices"
	"strings"
	"testing"

	"pgregory.net/rapid"

	"braid/cluster"
)

const tib = 1 << 40

// equal makes servers*disks devices of the same size, a fault set per server.
func equal(servers, disks int) []Device {
	var out []Device
	for s := range servers {
		for range disks {
			out = append(out, Device{ID: cluster.DeviceID(len(out) + 1), Weight: tib,
				Server: fmt.Sprint("server", s), FaultSet: fmt.Sprint("rack", s)})
		}
	}
	return out
}

func copies(table Table) map[cluster.DeviceID]int {
	n := map[cluster.DeviceID]int{}
	for _, row := range table {
		for _, id := range row {
			n[id]++
		}
	}
	return n
}

// windowRange returns the least and the most copies of one device in any run
// of eight neighbouring groups. The seven runs that go on from the last group to
// the first are left out: 256 is no multiple of three, so a seam shows there.
func windowRange(table Table, devices []Device) (least, most int) {
	least = math.MaxInt
	for start := range len(table) - window + 1 {
		n := map[cluster.DeviceID]int{}
		for k := range window {
			for _, id := range table[(start+k)%len(table)] {
				n[id]++
			}
		}
		for _, d := range devices {
			least, most = min(least, n[d.ID]), max(most, n[d.ID])
		}
	}
	return least, most
}

func mustCompute(t interface{ Fatal(...any) }, devices []Device, replicas, groups int, old Table) Plan {
	plan, err := Compute(devices, replicas, groups, old)
	if err != nil {
		t.Fatal(err)
	}
	return plan
}

// Goal: on the common shapes a row of eight groups loads every device nearly
// alike, and each device has many partners.
func TestRowsAreSpreadEvenly(t *testing.T) {
	for _, c := range []struct{ servers, disks, replicas, least, most, partners int }{
		{2, 1, 2, 8, 8, 1},
		{3, 1, 2, 5, 6, 2},
		{3, 1, 3, 8, 8, 2},
		{4, 1, 2, 3, 5, 3},
		{3, 2, 2, 1, 4, 4},
		{8, 1, 2, 1, 3, 7},
		{4, 4, 2, 0, 2, 12},
		{16, 4, 2, 0, 1, 40},
		{16, 4, 3, 0, 2, 55},
	} {
		devices := equal(c.servers, c.disks)
		groups := int(Groups(len(devices), c.replicas))
		plan := mustCompute(t, devices, c.replicas, groups, nil)
		least, most := windowRange(plan.Table, devices)
		partners := math.MaxInt
		for _, d := range devices {
			met := map[cluster.DeviceID]bool{}
			for _, row := range plan.Table {
				if slices.Contains(row, d.ID) {
					for _, id := range row {
						met[id] = true
					}
				}
			}
			partners = min(partners, len(met)-1)
		}
		name := fmt.Sprintf("%d servers x %d disks, %d replicas, %d groups", c.servers, c.disks,
			c.replicas, groups)
		if least < c.least || most > c.most || partners < c.partners {
			t.Errorf("%s: %d..%d copies per device in a row, want %d..%d; %d partners at least, want %d",
				name, least, most, c.least, c.most, partners, c.partners)
		}
		if len(plan.Warnings) > 0 {
			t.Errorf("%s: warnings %q", name, plan.Warnings)
		}
	}
}

func drawDevices(t *rapid.T) []Device {
	servers := rapid.IntRange(1, 8).Draw(t, "servers")
	racks := rapid.IntRange(1, servers).Draw(t, "racks")
	mixed := rapid.Bool().Draw(t, "mixed sizes")
	var out []Device
	for s := range servers {
		for range rapid.IntRange(1, 4).Draw(t, "disks") {
			weight := uint64(tib)
			if mixed {
				weight *= rapid.Uint64Range(1, 8).Draw(t, "TiB")
			}
			out = append(out, Device{ID: cluster.DeviceID(len(out) + 1), Weight: weight,
				Server: fmt.Sprint("server", s), FaultSet: fmt.Sprint("rack", s%racks)})
		}
	}
	return out
}

// checkPlan holds what every plan has to fulfil.
func checkPlan(t *rapid.T, devices []Device, replicas, groups int, plan Plan) {
	byID := map[cluster.DeviceID]Device{}
	racks, servers := map[string]bool{}, map[string]bool{}
	for _, d := range devices {
		byID[d.ID] = d
		racks[d.FaultSet], servers[d.Server] = true, true
	}
	for g, row := range plan.Table {
		seen := map[string]bool{}
		if len(row) != replicas {
			t.Fatalf("group %d has %d copies", g, len(row))
		}
		for _, id := range row {
			d, ok := byID[id]
			key := d.FaultSet
			if len(racks) < replicas {
				key = d.Server
			}
			if len(racks) < replicas && len(servers) < replicas {
				key = fmt.Sprint(id)
			}
			if !ok || seen[key] {
				t.Fatalf("group %d lies on %v: %s twice, or unknown", g, row, key)
			}
			seen[key] = true
		}
	}
	if warned := len(plan.Warnings) > 0; len(racks) < replicas && !warned {
		t.Fatalf("%d fault sets for %d replicas: no warning", len(racks), replicas)
	}
	p := newPlacer(devices, replicas, groups)
	count := copies(plan.Table)
	for i, d := range p.devices {
		if diff := count[d.ID] - p.quota[i]; diff < -1 || diff > 1 {
			t.Fatalf("device %d holds %d copies, its quota is %d", d.ID, count[d.ID], p.quota[i])
		}
	}
}

// Goal: every plan keeps copies apart and every device at its quota, is
// deterministic, and the quotas are proportional to size within 1-3 % unless a
// fault set is too large to be used in full.
func TestPlansHoldTheirPromises(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		devices := drawDevices(t)
		replicas := rapid.IntRange(1, min(3, len(devices))).Draw(t, "replicas")
		groups := int(Groups(len(devices), replicas))
		plan := mustCompute(t, devices, replicas, groups, nil)
		checkPlan(t, devices, replicas, groups, plan)
		if again := mustCompute(t, devices, replicas, groups, nil); !reflect.DeepEqual(plan, again) {
			t.Fatal("the same devices gave two tables")
		}
		if len(plan.Warnings) > 0 {
			return
		}
		total := 0.0
		for _, d := range devices {
			total += float64(d.Weight)
		}
		for _, d := range devices {
			want := float64(d.Weight) / total * float64(groups*replicas)
			if got := float64(copies(plan.Table)[d.ID]); math.Abs(got-want) > 2+0.05*want {
				t.Fatalf("device %d of weight %d holds %v copies, its share is %.1f",
					d.ID, d.Weight, got, want)
			}
		}
	})
}

// Goal: when devices come and go, little more moves than has to. Method: the
// least that must move is what each device has too little of, computed from the
// two tables.
func TestLittleMoves(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		devices := drawDevices(t)
		replicas := rapid.IntRange(1, min(3, len(devices))).Draw(t, "replicas")
		groups := int(Groups(len(devices), replicas))
		old := mustCompute(t, devices, replicas, groups, nil)
		changed := slices.Clone(devices)
		if gone := rapid.IntRange(-1, len(devices)-1).Draw(t, "gone"); gone >= 0 {
			changed = slices.Delete(changed, gone, gone+1)
		}
		for range rapid.IntRange(0, 2).Draw(t, "new disks") {
			d := Device{ID: cluster.DeviceID(100 + len(changed)), Weight: tib,
				Server: fmt.Sprint("server", rapid.IntRange(0, 9).Draw(t, "server of the new disk"))}
			d.FaultSet = d.Server
			for _, other := range devices {
				if other.Server == d.Server {
					d.FaultSet = other.FaultSet
				}
			}
			changed = append(changed, d)
		}
		if len(changed) < replicas {
			if _, err := Compute(changed, replicas, groups, old.Table); !errors.Is(err, ErrTooFew) {
				t.Fatalf("%d devices for %d replicas: %v", len(changed), replicas, err)
			}
			return
		}
		plan := mustCompute(t, changed, replicas, groups, old.Table)
		checkPlan(t, changed, replicas, groups, plan)
		before, after, least := copies(old.Table), copies(plan.Table), 0
		for id, n := range after {
			least += max(0, n-before[id])
		}
		// A hole that no device with room fits costs a detour, and so does a
		// change of what copies must be kept apart by.
		_, domainsBefore, _ := domains(devices, replicas)
		_, domainsAfter, _ := domains(changed, replicas)
		if slack := groups*replicas/20 + 2; plan.Moved > 2*least+slack && domainsBefore <= domainsAfter {
			t.Fatalf("%d copies moved, %d had to", plan.Moved, least)
		}
		same := mustCompute(t, changed, replicas, groups, plan.Table)
		if same.Moved != 0 {
			t.Fatalf("nothing changed, and yet %d copies moved", same.Moved)
		}
	})
}

// Goal: the usual growth moves exactly what has to move.
func TestGrowthMovesTheLeast(t *testing.T) {
	devices := equal(3, 2)
	groups := int(Groups(len(devices), 2))
	old := mustCompute(t, devices, 2, groups, nil)
	grown := append(devices, Device{ID: 50, Server: "new", FaultSet: "new", Weight: tib})
	plan := mustCompute(t, grown, 2, groups, old.Table)
	if got := copies(plan.Table)[50]; plan.Moved != got || got < 2*groups/7 {
		t.Errorf("%d copies moved, the new device holds %d of %d", plan.Moved, got, 2*groups)
	}
	if least, most := windowRange(plan.Table, grown); most > 4 {
		t.Errorf("%d..%d copies per device in a row after growing", least, most)
	}
}

// Goal: what cannot be fulfilled is said in words that help.
func TestWarnings(t *testing.T) {
	big := equal(3, 1)
	big[0].Weight *= 10
	oneRack := equal(3, 1)
	for i := range oneRack {
		oneRack[i].FaultSet = "rack"
	}
	for _, c := range []struct {
		devices  []Device
		replicas int
		want     string
	}{
		{oneRack, 2, "only 1 fault set"},
		{equal(1, 3), 2, "only 1 server"},
		{big, 2, "stays unused"},
	} {
		plan := mustCompute(t, c.devices, c.replicas, 256, nil)
		if !strings.Contains(strings.Join(plan.Warnings, "\n"), c.want) {
			t.Errorf("warnings %q, want %q", plan.Warnings, c.want)
		}
	}
	if _, err := Compute(equal(1, 1), 2, 256, nil); !errors.Is(err, ErrTooFew) {
		t.Errorf("one device for two replicas: %v", err)
	}
}

// Goal: usable space is what fits before the first device is full.
func TestUsable(t *testing.T) {
	plan := mustCompute(t, equal(3, 1), 2, 256, nil)
	if got, want := float64(plan.Usable), 1.5*tib; got > want || got < 0.99*want {
		t.Errorf("three devices of 1 TiB hold %v bytes twice, want just below %v", got, want)
	}
	if got := mustCompute(t, equal(2, 1), 1, 256, nil).Usable; got != 2*tib {
		t.Errorf("two devices of 1 TiB hold %v bytes once", got)
	}
}

// Goal: the number of groups gives each device its 64 copies and room to grow.
func TestGroups(t *testing.T) {
	for devices := 1; devices < 300; devices++ {
		for replicas := 1; replicas <= 3; replicas++ {
			g := int(Groups(devices, replicas))
			if g&(g-1) != 0 || g*replicas < 128*devices || g < 256 {
				t.Fatalf("%d devices, %d replicas: %d groups", devices, replicas, g)
			}
		}
	}
}
