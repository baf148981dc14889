// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/state"
)

// caring starts a member that evicts, two servers, and a volume on both with a
// session.
func caring(t *testing.T) (*client.Client, *clock, *client.Session) {
	t.Helper()
	turned := &clock{t: time.Now()}
	config := testConfig(t)
	config.AutoEvict, config.now, config.ServerLease = true, turned.now, time.Hour
	c := newClient(t, startMember(t, config).Addr())
	register(t, c, 1)
	register(t, c, 2)
	create(t, c, "v", 2)
	s, err := c.Attach(t.Context(), client.AttachRequest{Client: "c", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if !s.Before.ResumePossible || s.Before.Wait != 0 || !s.Volume.Attached {
		t.Errorf("a first attach: %+v, %+v", s.Before, s.Volume)
	}
	return c, turned, s
}

// all reports whether every group fits.
func all(m *cluster.Map, set uint32, fits func(*cluster.PG) bool) bool {
	for _, pg := range m.PGs[set] {
		if !fits(pg) {
			return false
		}
	}
	return len(m.PGs[set]) > 0
}

// Goal: a server says farewell and comes back; its copies leave, are announced,
// wait for the session, and are in sync again, all through the API and etcd.
func TestACopyGoesAndComesBack(t *testing.T) {
	leaks(t)
	c, _, s := caring(t)
	maps := follow(t, c, s.Volume.ID)
	reg := register(t, c, 1)
	if known, err := c.RenewServer(t.Context(), "sds1", reg.LeaseID, nil); err != nil || known {
		t.Logf("farewell: %v, %v", known, err)
	}
	maps.until(t, "copies that left", func(m *cluster.Map) bool {
		return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool { return !pg.Has(1) && pg.Has(2) })
	})
	register(t, c, 1)
	m := maps.until(t, "targets", func(m *cluster.Map) bool {
		return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool {
			return pg.Target == 1 && pg.TargetEpoch == pg.Epoch
		})
	})
	if ready, err := c.ResyncReady(t.Context(), 1); err != nil || len(ready) != 0 {
		t.Errorf("before the session has adopted: %d groups, %v", len(ready), err)
	}
	if st, err := c.Status(t.Context()); err != nil || st.PgsRebuilding == 0 || st.PgsDegraded == 0 {
		t.Errorf("status: %v, %v", st, err)
	}
	state := held(s)
	state[0].AdoptedVersion = m.Version
	if lost, err := c.RenewSession(t.Context(), "c", state); err != nil || len(lost) > 0 {
		t.Fatalf("lost %v, %v", lost, err)
	}
	ready, err := c.ResyncReady(t.Context(), 1)
	if err != nil || len(ready) != len(m.PGs[s.Volume.PGSet]) {
		t.Fatalf("%d groups are ready, %v", len(ready), err)
	}
	request := client.JoinRequest{Device: 1, Incarnation: 1, Version: m.Version}
	for _, g := range ready {
		if len(g.Sources) != 1 || g.Sources[0] != (client.Source{Device: 2, Incarnation: 1}) || g.Broken {
			t.Fatalf("ready: %+v", g)
		}
		request.Groups = append(request.Groups, client.JoinGroup{PG: g.PG, Epoch: g.Epoch})
	}
	for range 2 { // a lost answer makes it ask again
		if refused, later, err := c.JoinInSync(t.Context(), request); err != nil || len(refused)+len(later) > 0 {
			t.Fatalf("refused %v, later %v, %v", refused, later, err)
		}
	}
	maps.until(t, "copies in sync", func(m *cluster.Map) bool {
		return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool {
			return pg.Has(1) && pg.Has(2) && pg.Target == 0
		})
	})
}

// Goal: the status of a cluster says that, and for how long, a copy waits whose device
// comes and goes. Method: a server goes and comes twice while the clock stands.
func TestWaitsOfADeviceThatComesAndGoes(t *testing.T) {
	leaks(t)
	c, turned, s := caring(t)
	maps := follow(t, c, s.Volume.ID)
	for round := range 2 {
		reg := register(t, c, 1)
		if known, err := c.RenewServer(t.Context(), "sds1", reg.LeaseID, nil); err != nil || known {
			t.Logf("farewell: %v, %v", known, err)
		}
		maps.until(t, "copies that left", func(m *cluster.Map) bool {
			return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool { return !pg.Has(1) && pg.Target == 0 })
		})
		register(t, c, 1)
		status, err := c.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		says := strings.Contains(strings.Join(status.Reasons, "\n"), "device 1 comes and goes: it is brought in sync "+
			"again in 1s")
		if says != (round == 1) {
			t.Errorf("round %d: %q", round, status.Reasons)
		}
		if round == 1 {
			turned.advance(time.Second)
		}
		maps.until(t, "targets", func(m *cluster.Map) bool {
			return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool { return pg.Target == 1 })
		})
	}
}

// Goal: a client's report of a server whose process has ended is enough at once;
// one of a server that mdm can reach takes a while, and is not believed when the
// client fails to reach several fault sets.
func TestReportDevice(t *testing.T) {
	leaks(t)
	c, turned, s := caring(t)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	alive := serverReportOf(2)
	alive.Addr = listener.Addr().String()
	if _, err := c.RegisterServer(t.Context(), alive); err != nil {
		t.Fatal(err)
	}
	report := func(id cluster.DeviceID, faultSets int) client.Verdict {
		t.Helper()
		v, err := c.ReportDevice(t.Context(), client.DeviceTrouble{Volume: s.Volume.ID,
			Generation: s.Generation, Device: id, Reason: "no answer", FaultSets: faultSets})
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
	if v := report(2, 1); v.Evicted || !strings.Contains(v.Text, "can reach") {
		t.Errorf("the first report: %+v", v)
	}
	turned.advance(reportTerm)
	if v := report(2, 2); v.Evicted || !strings.Contains(v.Text, "several fault sets") {
		t.Errorf("the client seems to be what is broken: %+v", v)
	}
	turned.advance(reportGap + time.Second)
	if v := report(2, 1); v.Evicted {
		t.Errorf("after a pause it counts anew: %+v", v)
	}
	turned.advance(reportTerm)
	if v := report(2, 1); !v.Evicted || len(v.Last) != 0 {
		t.Errorf("after %v of reports: %+v", reportTerm, v)
	}
	maps := follow(t, c, s.Volume.ID)
	maps.until(t, "copies that left", func(m *cluster.Map) bool {
		return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool { return !pg.Has(2) && pg.Target == 0 })
	})
	turned.advance(firstHold + time.Second)
	maps.until(t, "targets after a pause", func(m *cluster.Map) bool {
		return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool { return pg.Target == 2 })
	})
	if v := report(1, 2); !v.Evicted || len(v.Last) == 0 || !strings.Contains(v.Text, "has ended") {
		t.Errorf("a server whose port is closed, with the only copies: %+v", v)
	}
	_, err = c.ReportDevice(t.Context(), client.DeviceTrouble{Volume: s.Volume.ID, Generation: 77, Device: 1})
	if !errors.Is(err, client.ErrRefused) {
		t.Errorf("a report of a client without the session: %v", err)
	}
}

// Goal: a device that becomes a target again and again waits longer each time.
func TestHold(t *testing.T) {
	c, now := newCare(Config{Probe: connects}), time.Now()
	ids := []cluster.DeviceID{1}
	var waits []time.Duration
	for range 16 {
		c.hold(ids, now)
		waits = append(waits, c.flaps[1].until.Sub(now))
		if !c.held(now)(1) || c.held(now)(2) || c.held(now.Add(longestHold))(1) {
			t.Fatal("held wrongly")
		}
		now = now.Add(longestHold)
	}
	if waits[0] != firstHold || waits[freeHolds] != firstHold || waits[freeHolds+2] != 4*firstHold ||
		waits[15] != longestHold {
		t.Errorf("it waits for %v", waits)
	}
	if !c.due(1, now) {
		t.Error("nothing to do after the wait")
	}
	c.settled = 1
	if c.due(1, now) || !c.due(2, now) {
		t.Error("the same revision is looked at again, or another is not")
	}
	c.hold(ids, now.Add(calmAfter+time.Second))
	if f := c.flaps[1]; f.count != 1 {
		t.Errorf("after a calm time it counts %d", f.count)
	}
}

// Goal: a server that accepts connections and says nothing, as one that hangs
// does, counts as down as soon as a client reports it and mdm has looked itself.
// Method: a probe that gets no answer.
func TestAServerThatHangsIsOut(t *testing.T) {
	leaks(t)
	config := testConfig(t)
	config.AutoEvict, config.ServerLease = true, time.Hour
	asked := make(chan string, 8)
	config.Probe = func(ctx context.Context, addr string) error {
		asked <- addr
		<-ctx.Done()
		return ctx.Err()
	}
	c := newClient(t, startMember(t, config).Addr())
	register(t, c, 1)
	register(t, c, 2)
	create(t, c, "v", 2)
	s, err := c.Attach(t.Context(), client.AttachRequest{Client: "c", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	maps := follow(t, c, s.Volume.ID)
	v, err := c.ReportDevice(t.Context(), client.DeviceTrouble{Volume: s.Volume.ID, Generation: s.Generation,
		Device: 1, Reason: "it says nothing", FaultSets: 1})
	if err != nil || !strings.Contains(v.Text, "cannot reach server") {
		t.Errorf("the verdict is %+v, %v", v, err)
	}
	m := maps.until(t, "copies that left", func(m *cluster.Map) bool {
		return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool { return !pg.Has(1) && pg.Has(2) })
	})
	if m.Devices[1].Up || !m.Devices[2].Up {
		t.Error("the server that hangs counts as up, or the other does not")
	}
	if <-asked != m.Devices[1].Addr {
		t.Error("mdm looked somewhere else")
	}
}

// Goal: nothing is overlooked that changes between the two plans of a look at the
// groups: the second plan alone has seen it, and it is the first that has to act.
// Method: a server ends just there.
func TestAChangeBetweenThePlansIsSeen(t *testing.T) {
	leaks(t)
	config := testConfig(t)
	config.AutoEvict, config.ServerLease = true, time.Hour
	var m *Member
	var armed atomic.Bool
	end := func(server string) {
		if err := m.leads().change(t.Context(), func(st *state.State, now time.Time) (*state.Tx, error) {
			return st.Expire([]string{server}, now), nil
		}); err != nil {
			t.Error(err)
		}
	}
	config.between = func() {
		if armed.CompareAndSwap(true, false) {
			end("sds1")
		}
	}
	m = startMember(t, config)
	c := newClient(t, m.Addr())
	register(t, c, 1)
	register(t, c, 2)
	register(t, c, 3)
	create(t, c, "v", 3)
	s, err := c.Attach(t.Context(), client.AttachRequest{Client: "c", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	maps := follow(t, c, s.Volume.ID)
	end("sds3") // so that the cluster's health is no news later, and nobody looks again for that
	limit, told := time.After(patience), ""
	for told != state.Degraded {
		select {
		case <-limit:
			t.Fatalf("no event of its health: %q", told)
		case <-time.After(10 * time.Millisecond):
		}
		m.store.read(func(st *state.State) { told = st.ToldHealth() })
	}
	armed.Store(true)
	register(t, c, 2) // something to look at
	maps.until(t, "copies that left", func(m *cluster.Map) bool {
		return all(m, s.Volume.PGSet, func(pg *cluster.PG) bool { return !pg.Has(1) && pg.Has(2) })
	})
}
