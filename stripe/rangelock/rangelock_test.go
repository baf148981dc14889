// SPDX-License-Identifier: Apache-2.0

package rangelock

import (
	"fmt"
	"slices"
	"testing"

	"pgregory.net/rapid"
)

// naiveLock is the specification: a list in order of arrival; an entry is
// granted when no earlier one conflicts.
type naiveLock struct {
	slot         int32
	first, count uint64
	write        bool
	granted      bool
}

func (a naiveLock) conflicts(b naiveLock) bool {
	return (a.write || b.write) && a.first < b.first+b.count && b.first < a.first+a.count
}

func naiveGrants(list []naiveLock) (granted []int32) {
	for i := range list {
		if list[i].granted {
			continue
		}
		free := true
		for j := range i {
			free = free && !list[j].conflicts(list[i])
		}
		if free {
			list[i].granted = true
			granted = append(granted, list[i].slot)
		}
	}
	return granted
}

// Goal: grants, and their order, are those of the specification; granted ranges
// never conflict. Method: random locks and unlocks (also of waiting slots) on
// both, compared after each step.
func TestAgainstNaive(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const slots = 12
		table := New(slots)
		var list []naiveLock
		free := []int32{}
		for i := range int32(slots) {
			free = append(free, i)
		}
		for step := range rapid.IntRange(1, 120).Draw(t, "steps") {
			if len(free) > 0 && rapid.Bool().Draw(t, "lock") {
				n := naiveLock{
					slot:  free[len(free)-1],
					first: rapid.Uint64Range(0, 20).Draw(t, "first"),
					count: rapid.Uint64Range(1, 8).Draw(t, "count"),
					write: rapid.Bool().Draw(t, "write"),
				}
				free = free[:len(free)-1]
				list = append(list, n)
				want := len(naiveGrants(list)) == 1
				if got := table.Lock(n.slot, n.first, n.count, n.write); got != want {
					t.Fatalf("step %d: Lock %+v = %v, want %v", step, n, got, want)
				}
			} else if len(list) > 0 {
				i := rapid.IntRange(0, len(list)-1).Draw(t, "victim")
				n := list[i]
				list = slices.Delete(list, i, i+1)
				free = append(free, n.slot)
				want := naiveGrants(list)
				if got := table.Unlock(n.slot, nil); !slices.Equal(got, want) {
					t.Fatalf("step %d: Unlock %+v grants %v, want %v", step, n, got, want)
				}
			}
			if err := checkTable(table, list); err != nil {
				t.Fatalf("step %d: %v", step, err)
			}
		}
	})
}

func checkTable(table *Table, list []naiveLock) error {
	waiting := 0
	for i, a := range list {
		if !a.granted {
			waiting++
			continue
		}
		for _, b := range list[:i] {
			if b.granted && a.conflicts(b) {
				return fmt.Errorf("%+v and %+v are both granted", a, b)
			}
		}
	}
	if table.Used() != len(list) || table.Waiting() != waiting {
		return fmt.Errorf("%d used, %d waiting; want %d, %d",
			table.Used(), table.Waiting(), len(list), waiting)
	}
	return nil
}

// Goal: a reader behind a waiting writer does not overtake it. Method: script.
func TestFirstComeFirstServed(t *testing.T) {
	table := New(4)
	if !table.Lock(0, 0, 1, false) {
		t.Fatal("the first read waits")
	}
	if table.Lock(1, 0, 1, true) {
		t.Fatal("the write does not wait for the read")
	}
	if table.Lock(2, 0, 1, false) || table.Lock(3, 0, 1, false) {
		t.Fatal("a read overtakes the waiting write")
	}
	if got := table.Unlock(0, nil); !slices.Equal(got, []int32{1}) {
		t.Fatalf("granted %v, want the write", got)
	}
	if got := table.Unlock(1, nil); !slices.Equal(got, []int32{2, 3}) {
		t.Fatalf("granted %v, want both reads", got)
	}
}

func BenchmarkLockUnlockQD64(b *testing.B) {
	table := New(512)
	for i := range int32(64) {
		table.Lock(i, uint64(i)*100, 1, i%2 == 0)
	}
	granted := make([]int32, 0, 512)
	b.ReportAllocs()
	for i := range b.N {
		slot := int32(i % 64)
		granted = table.Unlock(slot, granted[:0])
		table.Lock(slot, uint64(slot)*100, 1, true)
	}
}
