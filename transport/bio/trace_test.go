// SPDX-License-Identifier: Apache-2.0

package bio

import "testing"

// Goal: of many answers the slowest are kept, whatever their order.
func TestTraceKeepsTheSlowestHops(t *testing.T) {
	var tr Trace
	tr.Begin(1, 2)
	const n = 40
	for i := range n {
		tr.AddHop(Hop{Sent: 100, Answered: 100 + int64(i*7%n)})
	}
	if tr.HopCount != n || len(tr.Kept()) != MaxHops {
		t.Fatalf("%d hops, %d kept", tr.HopCount, len(tr.Kept()))
	}
	for _, h := range tr.Kept() {
		if h.took() < n-MaxHops {
			t.Errorf("an answer after %d is kept, slower ones are not", h.took())
		}
	}
	tr.Begin(3, 4)
	if len(tr.Kept()) != 0 || tr.Arrived != 3 || tr.Submitted != 4 {
		t.Errorf("a new beginning: %+v", tr)
	}
}
