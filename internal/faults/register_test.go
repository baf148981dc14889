// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"testing"

	"github.com/anishathalye/porcupine"
)

// Goal: the oracle would see what must never be. Method: histories of three or four
// requests to one block.
func TestOracle(t *testing.T) {
	op := func(call, end int64, r request, seen uint64) porcupine.Operation {
		return porcupine.Operation{Call: call, Return: end, Input: r, Output: seen}
	}
	wrote := func(call, end int64, value uint64) porcupine.Operation {
		return op(call, end, request{write: true, value: value}, 0)
	}
	maybe := func(call, end int64, value uint64) porcupine.Operation {
		return op(call, end, request{write: true, unknown: true, value: value}, 0)
	}
	saw := func(call, end int64, value uint64) porcupine.Operation { return op(call, end, request{}, value) }
	for _, c := range []struct {
		name string
		ops  []porcupine.Operation
		good bool
	}{
		{"reads what was written", []porcupine.Operation{wrote(0, 1, 5), saw(2, 3, 5)}, true},
		{"an acknowledged write is gone", []porcupine.Operation{wrote(0, 1, 5), saw(2, 3, 0)}, false},
		{"an old value returns", []porcupine.Operation{wrote(0, 1, 5), wrote(2, 3, 6), saw(4, 5, 5)}, false},
		{"a value vanishes", []porcupine.Operation{maybe(0, 9, 5), saw(2, 3, 5), saw(4, 5, 0)}, false},
		{"an unknown write happens late", []porcupine.Operation{maybe(0, 9, 5), saw(2, 3, 0), saw(10, 11, 5)}, true},
		{"it happens too late", []porcupine.Operation{maybe(0, 9, 5), saw(10, 11, 0), saw(12, 13, 5)}, false},
		{"it never happens", []porcupine.Operation{maybe(0, 9, 5), saw(10, 11, 0)}, true},
	} {
		if good := porcupine.CheckOperations(register.ToModel(), c.ops); good != c.good {
			t.Errorf("%s: linearizable: %t, want %t", c.name, good, c.good)
		}
	}
	ops := []porcupine.Operation{wrote(0, 1, 5), wrote(2, 3, 6), maybe(8, 9, 7)}
	for _, c := range []struct {
		value   uint64
		flushed int64
		good    bool
	}{{5, 0, true}, {5, 2, true}, {5, 4, false}, {6, 4, true}, {7, 4, true}, {8, 0, false}} {
		if good := mayBe(ops, c.value, c.flushed); good != c.good {
			t.Errorf("value %d after a crash, flush at %d: %t, want %t", c.value, c.flushed, good, c.good)
		}
	}
	fua := wrote(10, 11, 8)
	fua.Input = request{write: true, durable: true, value: 8}
	lost := maybe(12, 13, 9)
	lost.Input = request{write: true, durable: true, unknown: true, value: 9}
	for value, good := range map[uint64]bool{5: false, 6: false, 8: true, 9: true} {
		if mayBe(append(ops[:2:2], fua, lost), value, 0) != good {
			t.Errorf("value %d after a crash behind an answered FUA write of 8: want %t", value, good)
		}
	}
	data := make([]byte, block)
	stamp(data, 3, 9)
	if v, err := stamped(data, 3); v != 9 || err != nil {
		t.Errorf("a stamped block reads as %d, %v", v, err)
	}
	if _, err := stamped(data, 4); err == nil {
		t.Error("a block in the wrong place goes unseen")
	}
	stamp(data[2048:], 3, 10)
	if _, err := stamped(data, 3); err == nil {
		t.Error("a torn block goes unseen")
	}
}
