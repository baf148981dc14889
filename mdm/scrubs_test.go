// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// Goal: a device that has not been scrubbed for long is scrubbed, with the rate that
// is set; the end of it is written down, and known to the next leader; one that
// somebody stopped rests; servers are told the bounds of resyncs and the reserve. Method: a clock that is
// turned, and a server that only reports.
func TestScheduledScrubs(t *testing.T) {
	leaks(t)
	turned := &clock{t: time.Now()}
	config := testConfig(t)
	config.now, config.ServerLease = turned.now, 10000*time.Hour
	m := startMember(t, config)
	c := newClient(t, m.Addr())
	reg := register(t, c, 1)
	rate, resync := uint64(20<<20), uint64(7<<20)
	p99 := uint64(3000)
	if _, err := c.SetSettings(t.Context(), &pb.SetSettingsRequest{ScrubRate: &rate, ResyncRate: &resync,
		ResyncP99Us: &p99}); err != nil {
		t.Fatal(err)
	}
	renew := func(scrub *client.ScrubReport) client.Renewal {
		t.Helper()
		devices := serverReportOf(1).Devices
		devices[0].Scrub = scrub
		r, err := c.Renew(t.Context(), "sds1", reg.LeaseID, devices)
		if err != nil || !r.Known {
			t.Fatalf("renewal %+v, %v", r, err)
		}
		return r
	}
	if r := renew(nil); len(r.Scrubs) != 0 || r.ResyncRate != resync || r.Reserve != 5 ||
		r.ResyncP99 != 3*time.Millisecond {
		t.Errorf("at first: %+v", r)
	}
	// until turns the clock step by step until an order comes.
	until := func(scrub *client.ScrubReport, step time.Duration) client.ScrubOrder {
		t.Helper()
		for end := time.Now().Add(patience); time.Now().Before(end); {
			if r := renew(scrub); len(r.Scrubs) > 0 {
				return r.Scrubs[0]
			}
			turned.advance(step)
		}
		t.Fatal("no scrub was ordered")
		return client.ScrubOrder{}
	}
	turned.advance(15 * 24 * time.Hour)
	order := until(nil, scrubLook)
	if order.Device != (cluster.UUID{1}) || order.Rate != rate || order.Volume != 0 || order.Stop {
		t.Errorf("order %+v", order)
	}
	began := func() int64 {
		s, err := c.ScrubStatus(t.Context())
		if err != nil || len(s.Devices) != 1 {
			t.Fatal(s, err)
		}
		return s.Devices[0].ScrubbedMs
	}
	joined := began()
	done := &client.ScrubReport{Run: order.Run, State: "done"}
	for end := time.Now().Add(patience); began() == joined; turned.advance(scrubLook) {
		if r := renew(done); len(r.Scrubs) > 0 || time.Now().After(end) {
			t.Fatalf("the end is not known: %+v", r)
		}
	}
	if want := time.Unix(0, int64(order.Run)).UnixMilli(); began() != want {
		t.Errorf("it began at %d, want %d", began(), want)
	}
	// The next is stopped by somebody, and does not begin again at once.
	turned.advance(15 * 24 * time.Hour)
	second := until(done, scrubLook)
	running := &client.ScrubReport{Run: second.Run, State: "running"}
	renew(running)
	if _, err := c.Scrub(t.Context(), &pb.ScrubRequest{Stop: true}); err != nil {
		t.Fatal(err)
	}
	if r := renew(running); len(r.Scrubs) != 1 || !r.Scrubs[0].Stop {
		t.Errorf("after the stop: %+v", r)
	}
	stopped := turned.now()
	third := until(&client.ScrubReport{Run: second.Run, State: "stopped"}, scrubRest/10)
	if rested := time.Unix(0, int64(third.Run)).Sub(stopped); rested < scrubRest || third.Stop {
		t.Errorf("it began again after %v: %+v", rested, third)
	}
}
