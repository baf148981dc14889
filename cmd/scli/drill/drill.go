// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/mdm/state"
)

// Terms of a drill.
type Terms struct {
	Kind    string
	Server  string        // where; none for restart-mdm and full
	For     time.Duration // how long the fault lasts
	Delay   time.Duration // of each answer, slow-disk
	Size    uint64        // of the drill's own volume; 0: 64 MiB
	To      uint64        // percent of the space that clients can use, full
	Force   bool          // although other volumes are attached, full
	DryRun  bool
	Patient time.Duration // how long the cluster may take to be whole again; 0: 5 min
	Say     func(format string, args ...any)
}

// Check is one thing that was expected.
type Check struct {
	What string `json:"what"`
	Was  string `json:"was"`
	OK   bool   `json:"ok"`
}

// Report says how a drill went.
type Report struct {
	Kind   string  `json:"kind"`
	Server string  `json:"server,omitempty"`
	Passed bool    `json:"passed"`
	Checks []Check `json:"checks"`
	Next   string  `json:"next,omitempty"` // what to do where it did not pass
}

func (r *Report) check(ok bool, what, format string, args ...any) {
	r.Checks = append(r.Checks, Check{what, fmt.Sprintf(format, args...), ok})
}

const (
	poll        = 200 * time.Millisecond
	defaultSize = 64 << 20
	defaultWait = 5 * time.Minute
	cleanUp     = 30 * time.Second
)

// Run rehearses a fault. An error means that it could not, or that the report is not whole;
// the report says what is known.
func Run(ctx context.Context, mdm *client.Client, t Terms) (r Report, err error) {
	r = Report{Kind: t.Kind, Server: t.Server}
	if t.Say == nil {
		t.Say = func(string, ...any) {}
	}
	if t.Size == 0 {
		t.Size = defaultSize
	}
	if t.Patient == 0 {
		t.Patient = defaultWait
	}
	order := &pb.DrillRequest{Kind: t.Kind, Server: t.Server, DryRun: true, ForMs: uint64(t.For.Milliseconds()),
		DelayMs: uint32(t.Delay.Milliseconds())}
	if _, err := mdm.Drill(ctx, order); err != nil {
		return r, err
	}
	if t.Kind == state.DrillFull {
		if err := fullAllowed(ctx, mdm, t); err != nil {
			return r, err
		}
	}
	if t.DryRun {
		return r, nil
	}
	c := &canary{name: fmt.Sprintf("%s%d", state.DrillPrefix, time.Now().UnixNano()), size: t.Size, mdm: mdm}
	defer func() { err = errors.Join(err, c.remove(ctx)) }()
	if t.Kind == state.DrillFull {
		err = fullDrill(ctx, c, t, &r)
	} else {
		order.DryRun, order.Volume = false, c.name
		err = faultDrill(ctx, c, t, order, &r)
	}
	r.Passed = err == nil
	for _, x := range r.Checks {
		r.Passed = r.Passed && x.OK
	}
	if !r.Passed {
		r.Next = "scli status, scli events and the logs of mdm and the servers say more"
	}
	return r, err
}

// faultDrill has a fault happen under load.
func faultDrill(ctx context.Context, c *canary, t Terms, order *pb.DrillRequest, r *Report) error {
	if err := c.attach(ctx); err != nil {
		return err
	}
	l := &load{c: c, version: make([]uint64, c.size/unit), stop: make(chan struct{})}
	t.Say("filling volume %s", c.name)
	if err := l.fill(ctx); err != nil {
		return err
	}
	before, err := c.mdm.Status(ctx)
	if err != nil {
		return err
	}
	w := &watch{mdm: c.mdm, before: before}
	starts := w.starts(ctx, t.Server)
	found, mended, _, err := w.rot(ctx, t.Server, c.name)
	if err != nil {
		return err
	}
	l.start(ctx)
	began := time.Now()
	answer, err := c.mdm.Drill(ctx, order)
	if err != nil {
		close(l.stop)
		l.group.Wait()
		return err
	}
	t.Say("ordered: %s", strings.TrimSpace(t.Kind+" "+t.Server))
	within := time.Duration(answer.WithinMs)*time.Millisecond + t.For
	switch t.Kind {
	case state.DrillKill, state.DrillPartition:
		seen := w.until(ctx, within+t.Patient, func(s *pb.StatusResponse) bool {
			return !w.whole(s) || w.starts(ctx, t.Server) > starts // whoever starts it again may be quick
		})
		r.check(seen, "the fault is noticed", "after %v%s", since(began), listed(w.last.GetReasons()))
		if t.Kind == state.DrillKill {
			t.Say("%s has been killed: if nothing starts it by itself, start it again", t.Server)
		}
	case state.DrillLeader:
		w.newLeader(ctx, within, t.Patient, r)
	default:
		w.until(ctx, within, func(*pb.StatusResponse) bool { return false })
	}
	if t.Kind == state.DrillRot {
		w.scrub(ctx, t, c.name, found, mended, r)
	}
	t.Say("waiting until all is whole again")
	ok := w.until(ctx, t.Patient, w.whole)
	r.check(ok, "all copies are in sync again", "%v after the order", since(began))
	w.until(ctx, time.Until(began.Add(within)), func(*pb.StatusResponse) bool { return false }) // no drill after this
	t.Say("comparing")
	l.end(ctx)
	l.mu.Lock()
	defer l.mu.Unlock()
	r.check(len(l.wrong) == 0, "no I/O error, every byte as written", "%d requests%s", l.requests, listed(l.wrong))
	r.check(true, "longest pause of a request", "%v", l.longest.Round(time.Millisecond))
	return ctx.Err()
}

func listed(wrong []string) string {
	if len(wrong) == 0 {
		return ""
	}
	return ": " + strings.Join(wrong, "; ")
}

func since(t time.Time) time.Duration { return time.Since(t).Round(100 * time.Millisecond) }
