// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"braid/internal/sim/e2e"
	"braid/mdm/pb"
	"braid/mdm/state"
	"braid/transport/bio"
)

func report(t *testing.T, r Report) string {
	t.Helper()
	out, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return string(out)
}

// Goal: each drill happens, is over by itself, and passes on a cluster that can stand
// it; where a server does not come back it says that it did not pass; nothing of it
// is left, and other volumes keep their bytes. Method: all kinds after another.
func TestDrills(t *testing.T) {
	t.Parallel()
	c := e2e.Start(t, e2e.Options{Drills: true})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 16 << 20, Replicas: 2}))
	mine := make([]byte, 1<<20)
	pattern(mine, 1, 1)
	e2e.Write(t, v, 0, mine)
	e2e.Flush(t, v)
	terms := func(kind, server string) Terms {
		return Terms{Kind: kind, Server: server, Size: 8 << 20, Patient: e2e.Patience, Say: t.Logf}
	}
	run := func(d Terms, want string) Report {
		t.Helper()
		r, err := Run(t.Context(), c.Api, d)
		if err != nil || !r.Passed || !strings.Contains(report(t, r), want) {
			t.Errorf("%s: %v, want %q in:\n%s", d.Kind, err, want, report(t, r))
		}
		return r
	}
	slow := terms(state.DrillSlow, "sds1")
	slow.For, slow.Delay = time.Second, 150*time.Millisecond
	r := run(slow, "longest pause")
	if longest, err := time.ParseDuration(r.Checks[len(r.Checks)-1].Was); err != nil || longest < slow.Delay {
		t.Errorf("with each answer %v late no request took longer than %v", slow.Delay, longest)
	}
	run(terms(state.DrillRot, "sds2"), " mended")
	run(terms(state.DrillLeader, ""), "can be changed again")
	cut := terms(state.DrillPartition, "sds3")
	cut.For = 3 * time.Second
	run(cut, "is noticed")
	again := make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(again)
		select {
		case <-c.Node[0].Died:
			c.Node[0].Kill(false)
			c.Node[0].Start()
		case <-ctx.Done():
		}
	}()
	run(terms(state.DrillKill, "sds1"), "is noticed")
	cancel()
	<-again
	c.AwaitHealthy()

	never := terms(state.DrillKill, "sds1")
	never.Patient = 3 * time.Second
	gone := make(chan struct{})
	ctx, cancel = context.WithCancel(t.Context())
	go func() {
		defer close(gone)
		select {
		case <-c.Node[0].Died:
			c.Node[0].Kill(false)
		case <-ctx.Done():
		}
	}()
	if r, err := Run(t.Context(), c.Api, never); err != nil || r.Passed || r.Next == "" ||
		!strings.Contains(report(t, r), "in sync again") {
		t.Errorf("the server is away: %v\n%s", err, report(t, r))
	}
	cancel()
	<-gone
	if _, err := Run(t.Context(), c.Api, terms(state.DrillSlow, "sds2")); err == nil {
		t.Error("a drill begins while a server is down")
	}
	back := make([]byte, len(mine))
	read := e2e.Begin(v, bio.Request{Op: bio.Read, Len: uint64(len(back)), Data: back})
	if err := read.Wait(e2e.Patience); err != nil || string(back) != string(mine) {
		t.Errorf("a volume beside the drills has other bytes: %v", err)
	}
	volumes, err := c.Api.ListVolumes(t.Context())
	if err != nil || len(volumes) != 1 {
		t.Errorf("drills left volumes: %v, %v", volumes, err)
	}
}
