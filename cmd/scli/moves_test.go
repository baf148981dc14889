// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"braid/mdm/pb"
)

// Goal: a plan says what comes and goes on each device, and from where to where, the
// most first. Method: golden text of a made-up plan for a lost device.
func TestPlanText(t *testing.T) {
	p := &pb.MovePlan{Groups: 128, Copies: 128, Least: 128, Rebuilt: 128, Bytes: 4 << 30, Rate: 64 << 20, Seconds: 32,
		Warnings: []string{"device 4 is four times as large as the others"}}
	for i := uint32(1); i <= 4; i++ {
		p.Fill = append(p.Fill, &pb.Fill{Device: i, Name: fmt.Sprintf("sds%d:/dev/sdb", (i+1)/2), Size: 10 << 30,
			Used: 3 << 30, Comes: 1 << 30, After: 4 << 30})
		for _, to := range []uint32{1, 2, 3, 4} {
			if to != i {
				p.Flows = append(p.Flows, &pb.Flow{From: i, To: to, Bytes: uint64(i) << 28})
			}
		}
	}
	var out, warn bytes.Buffer
	(&app{out: &out, warn: &warn}).showPlan(toMovePlan(p))
	golden(t, "plan", out.String()+warn.String())
}

// Goal: a plan of a large cluster stays readable, and what is left out is summed up.
func TestPlanOfMany(t *testing.T) {
	var p movePlan
	for i := uint32(0); i < 30; i++ {
		p.Devices = append(p.Devices, fill{Device: i, Name: fmt.Sprintf("sds%d:/dev/sdb", i)})
		p.Flows = append(p.Flows, flow{i, (i + 1) % 30, uint64(30-i) << 30})
	}
	rows, more := p.between()
	if len(rows) != maxPairs || strings.Join(rows[0], " ") != "sds0 sds1 30G" {
		t.Errorf("%d rows, the first %v", len(rows), rows[0])
	}
	if want := "and 10 more, 55G together"; !strings.HasPrefix(more, want) {
		t.Errorf("%q, want %q", more, want)
	}
}
