// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/state"
)

// Terms of the care for copies.
const (
	//
	// probeTimeout bounds mdm's own look at a server that a client cannot reach. The
	// client has waited for transport.DefaultSilence by then; both together are what
	// a server that hangs costs.
	probeTimeout = 700 * time.Millisecond
	probeAge     = 500 * time.Millisecond // a probe's answer is used again so long
	// reportTerm is how long a client has to report a device that mdm can reach
	// before mdm sides with it; a pause of reportGap starts that anew.
	reportTerm = 2 * time.Second
	reportGap  = 3 * time.Second
	// A device that is announced as a target again and again waits longer each
	// time, so that one that flaps does not flood everybody with maps. The first few
	// times are free of that: a machine that is repaired is restarted a few times.
	firstHold   = 500 * time.Millisecond
	freeHolds   = 5
	longestHold = 30 * time.Second
	calmAfter   = 10 * time.Minute
)

// care is what the leader remembers for the care for copies.
type care struct {
	mu       sync.Mutex // guards what follows; never held across a call
	settled  int64      // revision on which nothing was left to do
	flaps    map[cluster.DeviceID]*flap
	troubles map[cluster.DeviceID]map[cluster.VolumeID]*complaint
	probes   map[string]*probe
	ask      func(ctx context.Context, addr string) error // Config.Probe
	between  func()                                       // Config.between, or nil
}

// flap counts how often a device became a target lately.
type flap struct {
	count int
	last  time.Time
	until time.Time // no new announcement before
}

// complaint is a client's word about a device, repeated.
type complaint struct{ first, last time.Time }

// probe is mdm's own look at an address.
type probe struct {
	done chan struct{} // closed when err and at are set
	err  error
	at   time.Time
}

func newCare(c Config) *care {
	return &care{ask: c.Probe, between: c.between, flaps: map[cluster.DeviceID]*flap{}, probes: map[string]*probe{},
		troubles: map[cluster.DeviceID]map[cluster.VolumeID]*complaint{}}
}

// held reports whether the device is not to be announced yet.
func (c *care) held(now time.Time) func(cluster.DeviceID) bool {
	return func(id cluster.DeviceID) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		f := c.flaps[id]
		return f != nil && now.Before(f.until)
	}
}

// waits says which devices would be announced and have to wait, and for how long.
func (c *care) waits(st *state.State, now time.Time) (reasons []string) {
	_, targets := st.Announce(func(cluster.DeviceID) bool { return false }, now)
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range targets {
		if f := c.flaps[id]; f != nil && now.Before(f.until) {
			reasons = append(reasons, fmt.Sprintf("device %d comes and goes: it is brought in sync again in %v", id,
				max(f.until.Sub(now).Round(time.Second), time.Second)))
		}
	}
	return reasons
}

// due reports whether there may be something to do: the state is another one
// than that on which nothing was left, or a device has waited long enough.
func (c *care) due(revision int64, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	due := c.settled != revision
	for _, f := range c.flaps {
		if !f.until.IsZero() && !now.Before(f.until) {
			f.until, due = time.Time{}, true
		}
	}
	return due
}

// hold makes each device wait before it is announced again.
func (c *care) hold(ids []cluster.DeviceID, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, id := range ids {
		f := c.flaps[id]
		if f == nil || now.Sub(f.last) > calmAfter {
			f = &flap{}
			c.flaps[id] = f
		}
		f.last = now
		f.until = now.Add(min(firstHold<<min(max(f.count-freeHolds, 0), 10), longestHold))
		f.count++
	}
}

// complain notes a client's report; it returns for how long it has gone on.
func (c *care) complain(t trouble, now time.Time) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	of := c.troubles[t.device]
	if of == nil {
		of = map[cluster.VolumeID]*complaint{}
		c.troubles[t.device] = of
	}
	x := of[t.volume]
	if x == nil || now.Sub(x.last) > reportGap {
		x = &complaint{first: now}
		of[t.volume] = x
	}
	x.last = now
	return now.Sub(x.first)
}

// look probes an address: nil when a server answers there. Callers of the same
// time share one probe.
func (c *care) look(ctx context.Context, addr string) error {
	c.mu.Lock()
	p := c.probes[addr]
	fresh := p == nil || p.finished() && time.Since(p.at) > probeAge
	if fresh {
		p = &probe{done: make(chan struct{})}
		c.probes[addr] = p
	}
	c.mu.Unlock()
	if fresh {
		ctx, cancel := context.WithTimeout(ctx, probeTimeout)
		p.err = c.ask(ctx, addr)
		cancel()
		p.at = time.Now()
		close(p.done)
	}
	<-p.done
	return p.err
}

func (p *probe) finished() bool {
	select {
	case <-p.done:
		return true
	default:
		return false
	}
}

// gone: nobody listens there any more, so the process has ended.
func gone(err error) bool {
	return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, syscall.ECONNRESET)
}

// tend does what follows for the groups from what is known by now: copies leave
// and targets are announced, each for all groups in one transaction.
func (l *leader) tend(ctx context.Context) error {
	var revision int64
	l.store.read(func(st *state.State) { revision = st.Revision })
	if err := l.place(ctx); err != nil {
		return err
	}
	if !l.care.due(revision, l.now()) {
		return nil
	}
	if err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		revision = st.Revision
		return st.Settle(now), nil
	}); err != nil {
		return err
	}
	if l.care.between != nil {
		l.care.between()
	}
	var targets []cluster.DeviceID
	err := l.change(ctx, func(st *state.State, now time.Time) (tx *state.Tx, err error) {
		tx, targets = st.Announce(l.care.held(now), now)
		return tx, nil
	})
	if err != nil {
		return err
	}
	l.care.hold(targets, l.now())
	l.care.mu.Lock()
	defer l.care.mu.Unlock()
	// What these very plans changed is looked at once more, and so is what somebody
	// else changed between them, which only the second has seen.
	l.care.settled = revision
	return nil
}

// tendNow does so without waiting for the next tick, which repeats what fails.
func (l *leader) tendNow(ctx context.Context) {
	if err := l.tend(ctx); err != nil {
		l.log.Warn("placement groups could not be brought up to date", "error", err)
	}
}

// trouble is a client's report of a device.
type trouble struct {
	volume     cluster.VolumeID
	generation cluster.Generation
	device     cluster.DeviceID
	reason     string
	faultSets  int
	attaching  bool
}

type verdict struct {
	evicted bool
	text    string
}

// judge decides about a report: a server that mdm cannot reach either counts as
// down at once, with all of its devices, until it registers again; a device that
// mdm can reach is out after a while, unless the client seems to be what is
// broken.
func (l *leader) judge(ctx context.Context, t trouble) (v verdict, last []cluster.PGID, err error) {
	var addr, server string
	var evict, up, abandons bool
	l.store.read(func(st *state.State) {
		evict = st.Policy.Evict
		if err = st.MayReport(t.volume, t.generation, t.device); err != nil {
			return
		}
		addr, server, up = st.Reach(t.device)
		abandons = t.attaching && !st.Session(t.volume).Resumed
	})
	switch {
	case err != nil:
		return v, nil, err
	case !evict:
		return verdict{text: "this cluster does not take copies out by itself (mdm --auto-evict)"}, nil, nil
	}
	since := l.care.complain(t, l.now())
	if up {
		found := l.care.look(ctx, addr)
		if found != nil {
			l.leases.endServer(server)
			if err := l.expire(ctx); err != nil {
				return v, nil, err
			}
			up = false
		}
		switch {
		case gone(found):
			v.text = fmt.Sprintf("server %s has ended: %v", server, found)
		case found != nil:
			v.text = fmt.Sprintf("mdm cannot reach server %s either: %v", server, found)
		default:
			v.text = fmt.Sprintf("mdm can reach server %s", server)
		}
	} else {
		v.text = fmt.Sprintf("server %s is down", server)
	}
	switch {
	case t.attaching:
	case up && t.faultSets > 1:
		v.text += "; the client fails to reach several fault sets, so it may be what is broken"
		return v, nil, nil
	case up && since < reportTerm:
		return v, nil, nil
	}
	var abandoned cluster.VolumeID
	if abandons {
		abandoned = t.volume
	}
	err = l.change(ctx, func(st *state.State, now time.Time) (tx *state.Tx, err error) {
		tx, _, last = st.Evict(t.device, t.reason+"; "+v.text, abandoned, now)
		return tx, nil
	})
	if err == nil {
		v.evicted = true
		l.care.hold([]cluster.DeviceID{t.device}, l.now())
		err = l.tend(ctx)
	}
	return v, last, err
}

// planJoin puts a target in sync where that is right.
func (l *leader) planJoin(q *pb.JoinInSyncRequest, groups []state.JoinGroup, resp *pb.JoinInSyncResponse,
) func(*state.State, time.Time) (*state.Tx, error) {
	return func(st *state.State, now time.Time) (*state.Tx, error) {
		tx, refused, later := st.JoinInSync(cluster.DeviceID(q.Device), cluster.Incarnation(q.Incarnation),
			groups, q.Version, now)
		resp.Refused, resp.Later = groupIDs(refused), groupIDs(later)
		return tx, nil
	}
}
