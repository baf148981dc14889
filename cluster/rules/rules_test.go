// SPDX-License-Identifier: Apache-2.0

package rules

import "testing"

// Goal: each rule is its own bit and is found by its name and its number.
func TestRulesAreToldApart(t *testing.T) {
	if len(All()) != 24 {
		t.Errorf("there are %d rules, want 24", len(All()))
	}
	for _, r := range All() {
		o := Set(r)
		for _, other := range All() {
			if o.Has(other) != (r == other) {
				t.Errorf("Set(%v).Has(%v) = %v", r, other, o.Has(other))
			}
		}
		if back, err := Parse(o.String()); err != nil || back != o {
			t.Errorf("Parse(%q) = %v, %v", o.String(), back, err)
		}
	}
	if o, err := Parse("24,stamp"); err != nil || o != Set(EpochFence, Stamp) || o.String() != "Stamp,EpochFence" {
		t.Errorf("Parse gives %v, %v", o, err)
	}
	if o, err := Parse("none"); err != nil || o != 0 || o.String() != "none" {
		t.Errorf("none gives %v, %v", o, err)
	}
	if _, err := Parse("18"); err == nil {
		t.Error("a rule that cannot be switched off was switched off")
	}
}
