// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"sync"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/mdm/state"
	"braid/transport/bio"
)

// even is by how many points of percent devices may differ when data has spread. How
// many chunks a group holds is chance: on small devices its deviation is the bound.
func (s space) even() float64 {
	if s.devices == 0 {
		return 0
	}
	size, used := float64(s.size)/float64(s.devices), float64(s.used)/float64(s.devices)
	return max(3, 2*100*math.Sqrt(used*cluster.ChunkSize)/size)
}

// fullAllowed refuses to fill a cluster that nothing would extend, or whose clients
// would feel it.
func fullAllowed(ctx context.Context, mdm *client.Client, t Terms) error {
	p, err := mdm.Autopilot(ctx)
	if err != nil {
		return err
	}
	s, err := mdm.Status(ctx)
	switch {
	case err != nil:
		return err
	case t.To < 1 || t.To > 99:
		return fmt.Errorf("fill the cluster to %d%%: give 1 to 99", t.To)
	case p.Mode != state.PilotOn:
		return fmt.Errorf("the autopilot's mode is %s, so nothing would bring space: "+
			"scli autopilot set mode=on ceiling=%d", p.Mode, p.Devices+1)
	case p.Spares == 0 && !p.Hook:
		return errors.New("there is no spare device and no hook, so nothing would bring space: add a server with " +
			"sds serve --spare --allow-drills")
	case p.Ceiling <= p.Devices:
		return fmt.Errorf("%d devices are in use and the autopilot's ceiling is %d: scli autopilot set ceiling=%d",
			p.Devices, p.Ceiling, p.Devices+1)
	case s.Attached > 0 && !t.Force:
		return fmt.Errorf("%d volumes are attached, and their writes would be slowed and wait, too: detach them, "+
			"or --force", s.Attached)
	}
	return nil
}

// filler writes a canary and knows how that went.
type filler struct {
	c     *canary
	total uint64 // units

	mu      sync.Mutex // guards what follows
	next    uint64
	written uint64
	longest time.Duration
	wrong   []string
}

// fillUnit is what one request of a filler writes.
const fillUnit = cluster.ChunkSize

// run has workers write all units, or read and compare them.
func (f *filler) run(ctx context.Context, op bio.Op) {
	f.next, f.written = 0, 0
	var group sync.WaitGroup
	for range workers {
		group.Go(func() {
			data, want := make([]byte, fillUnit), make([]byte, fillUnit)
			for {
				f.mu.Lock()
				place := f.next
				f.next++
				f.mu.Unlock()
				if place >= f.total || !f.one(ctx, op, place, data, want) {
					return
				}
			}
		})
	}
	group.Wait()
}

func (f *filler) one(ctx context.Context, op bio.Op, place uint64, data, want []byte) bool {
	pattern(want, place, 1)
	if op == bio.Write {
		copy(data, want)
	}
	began := time.Now()
	err := f.c.begin(op, place*fillUnit, data).end(ctx)
	took := time.Since(began)
	if err == nil && !bytes.Equal(data, want) {
		err = errors.New("other bytes than written")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.longest = max(f.longest, took); err != nil {
		f.wrong = append(f.wrong, fmt.Sprintf("at %d: %v", place*fillUnit, err))
		return false
	}
	f.written++
	return true
}

func (f *filler) done() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.written
}

// space is how full the devices in use are.
type space struct {
	size, used  uint64
	devices     int
	least, most float64 // percent
}

func spaceOf(devices []*pb.Device) (s space) {
	s.least = 100
	for _, d := range devices {
		if d.Spare || d.Removing || !d.Up || d.Size == 0 {
			continue
		}
		fill := 100 * float64(d.Used) / float64(d.Size)
		s.size, s.used, s.devices = s.size+d.Size, s.used+d.Used, s.devices+1
		s.least, s.most = min(s.least, fill), max(s.most, fill)
	}
	return s
}

// story is what was seen while a cluster was filled.
type story struct {
	mdm       *client.Client
	began     time.Time
	before    int // expansions that there were
	most      float64
	waited    time.Duration // writes waited for space
	expanded  []*pb.Expansion
	devices   []*pb.Device
	moves     *pb.MovesResponse
	say       func(string, ...any)
	lastTold  uint64
	lastCheck time.Time
}

// look notes how things are.
func (y *story) look(ctx context.Context, f *filler) error {
	now := time.Now()
	s, err := y.mdm.Status(ctx)
	if err == nil {
		y.devices, err = y.mdm.ListDevices(ctx)
	}
	if err == nil {
		y.moves, err = y.mdm.Moves(ctx)
	}
	var p *pb.Autopilot
	if err == nil {
		p, err = y.mdm.Autopilot(ctx)
	}
	if err != nil {
		return err
	}
	if s.VolumesWaiting > 0 && !y.lastCheck.IsZero() {
		y.waited += now.Sub(y.lastCheck)
	}
	y.lastCheck, y.most = now, max(y.most, spaceOf(y.devices).most)
	for _, x := range p.History[min(y.before+len(y.expanded), len(p.History)):] {
		y.expanded = append(y.expanded, x)
		y.say("after %v, %d%% full: the autopilot %s", since(y.began), x.Fill, x.What)
	}
	if told := f.done() * 10 / f.total; told > y.lastTold {
		y.lastTold = told
		y.say("%d%% written", told*10)
	}
	return nil
}

// fullDrill fills the cluster for real, and lets the autopilot extend it.
func fullDrill(ctx context.Context, c *canary, t Terms, r *Report) error {
	y := &story{mdm: c.mdm, began: time.Now(), say: t.Say}
	p, err := c.mdm.Autopilot(ctx)
	if err != nil {
		return err
	}
	y.before = len(p.History)
	settings, err := c.mdm.Settings(ctx)
	if err != nil {
		return err
	}
	if y.devices, err = c.mdm.ListDevices(ctx); err != nil {
		return err
	}
	first := spaceOf(y.devices)
	target := first.size / 100 * uint64(100-settings.Reserve) / 100 * t.To
	if target <= first.used {
		return fmt.Errorf("the cluster is fuller than %d%% already", t.To)
	}
	f := &filler{c: c, total: max((target-first.used)/2/fillUnit, 1)}
	c.size = f.total * fillUnit
	if err := c.attach(ctx); err != nil {
		return err
	}
	t.Say("writing %s, twice each, to volume %s: %d%% of what clients can have of %s", cluster.FormatSize(c.size),
		c.name, t.To, cluster.FormatSize(first.size))
	filled := y.fill(ctx, f, t.Patient)
	filling := since(y.began)
	slowest, spread := f.longest, false
	if filled {
		spread = y.spread(ctx, f, t)
	}
	r.check(filled, "the cluster is filled", "%s of %s in %v, the fullest device was %.0f%% full%s",
		cluster.FormatSize(f.done()*fillUnit), cluster.FormatSize(c.size), filling, y.most, listed(f.wrong))
	r.check(true, "writes waited for space", "%v; the slowest took %v", y.waited.Round(time.Millisecond),
		slowest.Round(time.Millisecond))
	if !filled {
		return ctx.Err()
	}
	what := "no"
	if len(y.expanded) > 0 {
		what = fmt.Sprintf("at %d%% full it %s", y.expanded[0].Fill, y.expanded[0].What)
	}
	if more := len(y.expanded) - 1; more > 0 {
		what += fmt.Sprintf(", and %d more", more)
	}
	r.check(len(y.expanded) > 0, "the autopilot extended the cluster", "%s", what)
	last := spaceOf(y.devices)
	r.check(spread, "data has spread", "%d devices, not %d; %.1f%% to %.1f%% full after %v", last.devices,
		first.devices, last.least, last.most, since(y.began))
	t.Say("comparing")
	f.run(ctx, bio.Read)
	r.check(f.written == f.total && len(f.wrong) == 0, "no I/O error, every byte as written", "%s compared%s",
		cluster.FormatSize(f.written*fillUnit), listed(f.wrong))
	if len(y.expanded) > 0 && y.expanded[0].Device != 0 {
		r.Next = fmt.Sprintf("device %d stays in use; to have it in reserve again: scli device spare %d",
			y.expanded[0].Device, y.expanded[0].Device)
	}
	return ctx.Err()
}

// fill writes and flushes everything, and gives up when nothing gets through for so long.
func (y *story) fill(ctx context.Context, f *filler, patient time.Duration) bool {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	end := make(chan struct{})
	go func() {
		defer close(end)
		f.run(ctx, bio.Write)
	}()
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for last, moved := uint64(0), time.Now(); ; {
		select {
		case <-end:
			_ = y.look(ctx, f)
			return f.written == f.total && f.c.begin(bio.Flush, 0, nil).end(ctx) == nil
		case <-ticker.C:
		}
		_ = y.look(ctx, f) // an error now is none of the drill: the next look may work
		if n := f.done(); n != last {
			last, moved = n, time.Now()
		}
		if time.Since(moved) > patient {
			cancel()
		}
	}
}

// spread waits until the cluster is extended and devices are equally full.
func (y *story) spread(ctx context.Context, f *filler, t Terms) bool {
	t.Say("waiting until data has spread")
	w := &watch{mdm: y.mdm}
	return w.until(ctx, t.Patient, func(s *pb.StatusResponse) bool {
		if y.look(ctx, f) != nil || len(y.expanded) == 0 || s.PgsDegraded+s.PgsRebuilding > 0 || y.moves.Groups > 0 {
			return false
		}
		now := spaceOf(y.devices)
		return now.most-now.least <= now.even()
	})
}
