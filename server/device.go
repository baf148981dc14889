// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/server/disk"
	"braid/server/gate"
	"braid/server/resync"
	"braid/server/store"
	"braid/transport"
	"braid/transport/buf"
	"braid/transport/loop"
	"braid/transport/meter"
)

// deviceState is owned by the device's loop.
type deviceState uint8

const (
	deviceServing deviceState = iota
	deviceStopping
	deviceFailed
)

// errStopping closes connections at a clean stop.
var errStopping = errors.New("server: the server is stopping")

// device is one disk. It is opened with its backing and identity only; start,
// once a cluster has claimed it, adds the store and the loop that owns it.
type device struct {
	path       string
	uuid       cluster.UUID
	backing    disk.Backing
	id         store.Identity // constant once started
	wasClean   bool           // the last stop was
	broken     error          // why it could not be started; guarded by Server.mu
	engine     loop.Engine
	log        *slog.Logger
	touch      func([]byte)
	poison     bool          // tests: freed buffers are overwritten
	changed    func()        // tells the registrar that there is news; never blocks
	onEnd      func(*device) // after a failure
	manager    Manager
	resync     resync.Config
	resyncRate atomic.Uint64  // that the manager has set
	resyncP99  atomic.Int64   // the same, ns
	reserve    atomic.Uint32  // the same
	tasks      sync.WaitGroup // goroutines of the resync

	loop        *loop.Loop
	pool        *buf.Pool
	blocking    *blockingDisk // where the backing has no file descriptor
	incarnation atomic.Uint64
	dead        atomic.Bool // failed for good
	live        atomic.Bool // started
	stats       deviceStats
	meter       deviceMeter // the loop's

	// mu guards report. It is a leaf, held for copies only.
	mu     sync.Mutex
	report client.DeviceReport

	// The rest is the loop's.
	core      *store.Core
	state     deviceState
	slots     *slotTable
	gate      *gate.Gate
	target    *target
	mend      *mender
	scrub     *scrubber
	pace      pacer
	limit     limiter
	catchUp   catchUpMeter
	front     meter.Tail // of clients' reads and writes
	adopted   uint64     // map version, as last reported
	conns     map[*conn]struct{}
	lastConn  gate.ConnID
	dropped   map[cluster.VolumeID]bool // deleted volumes; true: nothing is left of them
	member    map[uint32][]bool         // by set and group, as of the last look at what to vacate
	vacated   uint64                    // map version of which nothing is left to vacate
	vacating  bool
	watch     loop.Timer
	idle      loop.Timer
	lastOps   uint64 // diskOps at the last idle tick
	hung      string
	hungAfter time.Duration // hungAfter of limits.go, but in tests

	queued            bool // RunDeferred is due
	failing           bool
	paused, pauseTail *conn // connections that wait for a slot or a buffer, in order
	ends              *slot // fences that the store has done
	ownEnds           *ownRequest
	oldest, newest    *diskOp // running ones, in order of their start
	sending           int     // replies in the hands of the transport
	whenSent          func()  // called once when there is none
	whenEmpty         func()  // called once when the last connection has closed
}

// newDevice describes an opened disk that is not serving yet.
func newDevice(path string, backing disk.Backing, id store.Identity, engine loop.Engine, log *slog.Logger) *device {
	d := &device{path: path, uuid: id.Device, backing: backing, id: id, engine: engine,
		hungAfter: hungAfter, log: log.With("device", path, "uuid", id.Device.String())}
	d.report = client.DeviceReport{UUID: id.Device, Path: path, Size: uint64(id.Capacity),
		StartCounter: id.Starts, StartID: id.StartID}
	return d
}

// started reports whether the device has a loop. It is constant after start,
// which happens before the device can be found by clients.
func (d *device) started() bool { return d.loop != nil }

// start recovers the store and begins to serve. It blocks for as long as the
// recovery takes.
func (d *device) start(cfg store.Config) error {
	d.wasClean = d.id.Clean
	core, err := store.Open(d.backing, cfg)
	if err != nil {
		return fmt.Errorf("device %s: recover the store: %w", d.path, err)
	}
	pool, err := buf.NewPool(payloadConsumers()...)
	if err != nil {
		return fmt.Errorf("device %s: %w", d.path, err)
	}
	touchAll(pool, d.touch)
	if d.poison {
		pool.Poison()
	}
	l, err := loop.New(loop.Options{Engine: d.engine, Name: d.path})
	if err != nil {
		return errors.Join(fmt.Errorf("device %s: %w", d.path, err), pool.Close())
	}
	d.core, d.pool, d.id = core, pool, core.Identity()
	d.incarnation.Store(uint64(core.Incarnation()))
	if d.backing.FD() < 0 {
		d.blocking = newBlockingDisk(d.backing, l)
	}
	d.slots, d.gate = newSlotTable(maxRequests), gate.New(cfg.Off)
	d.conns = map[*conn]struct{}{}
	d.target = newTarget(d, d.resync)
	d.mend, d.scrub = newMender(d), newScrubber(d)
	d.pace.init(d)
	d.limit.init(d)
	d.dropped = map[cluster.VolumeID]bool{}
	d.watch.Fire, d.idle.Fire = d.onWatch, d.onIdle
	d.refreshReport()
	l.Post(func() {
		l.Arm(&d.watch, watchInterval)
		l.Arm(&d.idle, idleInterval)
		d.schedule()
	})
	d.loop = l
	d.live.Store(true)
	l.Start()
	return nil
}

// touchAll calls touch for each buffer of a fresh pool.
func touchAll(pool *buf.Pool, touch func([]byte)) {
	if touch == nil {
		return
	}
	var taken []*buf.Buf
	for _, c := range payloadConsumers() {
		for range c.Count {
			if b := pool.Get(c.Size); b != nil {
				touch(b.B)
				taken = append(taken, b)
			}
		}
	}
	for _, b := range taken {
		pool.Release(b)
	}
}

// serving says whether data requests are admitted.
func (d *device) serving() transport.Status {
	switch d.state {
	case deviceServing:
		return transport.StatusOK
	case deviceStopping:
		return transport.StatusRetry
	}
	return transport.StatusIO
}

func (d *device) opened(c *conn) {
	switch {
	case d.state != deviceServing:
		c.tc.Close(errStopping)
	case len(d.conns) >= maxConns:
		c.tc.Close(fmt.Errorf("server: %s has %d connections already", d.path, maxConns))
	}
	d.lastConn++
	c.id = d.lastConn
	d.conns[c] = struct{}{}
	d.stats.conns.Store(int64(len(d.conns)))
}

func (d *device) closed(c *conn, err error) {
	delete(d.conns, c)
	d.stats.conns.Store(int64(len(d.conns)))
	d.gate.ConnClosed(c.id)
	d.target.connClosed(c.id)
	d.log.Debug("connection closed", "peer", c.tc.Addr, "reason", err)
	d.emptied()
	if d.paused != nil {
		d.schedule()
	}
}

// emptied tells who waits for the end of all connections.
func (d *device) emptied() {
	if d.isEmpty() && d.whenEmpty != nil {
		d.whenEmpty()
		d.whenEmpty = nil
	}
}

func (d *device) isEmpty() bool {
	return len(d.conns) == 0 && len(d.target.links) == 0 && d.mend.link == nil
}

// pause queues a connection until a slot or buffer has come back.
func (d *device) pause(c *conn) {
	if c.paused {
		return
	}
	d.stats.pauses.Add(1)
	c.paused, c.next = true, nil
	if d.pauseTail != nil {
		d.pauseTail.next = c
	} else {
		d.paused = c
	}
	d.pauseTail = c
}

// resume lets all waiting connections try again, in order. Those that find
// nothing queue up again.
func (d *device) resume() {
	c := d.paused
	d.paused, d.pauseTail = nil, nil
	for c != nil {
		next := c.next
		c.paused, c.next = false, nil
		if !c.closed {
			c.tc.Resume()
		}
		c = next
	}
}

// fail takes the device out of service for good: its store has retired (rule
// 19), and nothing that it says can be relied on. Every client sees its
// connection end and asks the manager, which is told why.
func (d *device) fail(why error) {
	if d.state == deviceFailed {
		return
	}
	d.state = deviceFailed
	d.dead.Store(true)
	if why == nil {
		why = errors.New("the store retired without a reason")
	}
	d.log.Error("device failed and is out of service; the others go on", "reason", why)
	d.refreshReport()
	d.target.stop()
	for c := range d.conns {
		c.tc.Close(fmt.Errorf("server: device %s failed: %w", d.path, why))
	}
	d.tell()
}

func (d *device) tell() {
	if d.changed != nil {
		d.changed()
	}
}

// learn adopts a new map.
func (d *device) learn(m *cluster.Map) {
	own := d.gate.Device()
	for id, dev := range m.Devices {
		if dev.UUID == d.uuid {
			own = id
		}
	}
	if d.gate.Map() == nil {
		d.log.Info("map learned; serving", "version", m.Version, "id", own)
	}
	d.gate.Learn(m, own)
	d.gateMoved()
	d.target.learn()
	d.dropVolumes(m)
}

// dropVolumes frees what is left of deleted volumes and forgets those that the
// manager has forgotten.
func (d *device) dropVolumes(m *cluster.Map) {
	for id := range d.dropped {
		if !m.Removed[id] {
			delete(d.dropped, id)
		}
	}
	if d.state != deviceServing {
		return
	}
	for id := range m.Removed {
		if _, begun := d.dropped[id]; begun {
			continue
		}
		d.dropped[id] = false
		d.gate.FenceVolume(id)
		d.own(store.Request{Op: store.OpDrop, Volume: id}, func(status transport.Status) {
			if status != transport.StatusOK {
				delete(d.dropped, id) // with the next map
				d.log.Warn("a deleted volume was not freed", "volume", id, "status", status)
				return
			}
			d.dropped[id] = true
			d.log.Info("freed a deleted volume", "volume", id)
			d.refreshReport()
			d.tell()
		})
	}
}

// refreshReport writes down what the manager is told next.
func (d *device) refreshReport() {
	st := d.core.Stats()
	d.stats.publish(&st, d.core.Pressure())
	r := client.DeviceReport{UUID: d.uuid, Path: d.path, Size: uint64(d.id.Capacity),
		Used: (st.Chunks - st.ChunksFree) * cluster.ChunkSize, StartCounter: d.id.Starts, StartID: d.id.StartID,
		Incarnation: d.core.Incarnation(), Failed: d.hung, Adopted: d.gate.Adopted(),
		Volumes: map[cluster.VolumeID]cluster.Generation{}}
	r.RotMended, r.RotFound = st.Mended, st.Mended+d.mend.unmended
	r.Scrub = d.scrub.progress()
	p := d.target.core.Stats()
	if d.target.core.Busy() {
		r.Resync = &client.ResyncReport{Groups: p.Groups, Compared: p.Compared, ChunksLeft: uint64(p.Dirty),
			BytesCopied: p.BytesCopied, BytesPerSecond: uint64(p.Rate), Stuck: p.Stuck}
		m := &d.catchUp
		m.look(d.loop.Now(), &p)
		r.Resync.CopiedPerSecond, r.Resync.SettledPerSecond = uint64(m.copied), uint64(m.settled)
	} else {
		d.catchUp = catchUpMeter{}
	}
	d.stats.resynced.Store(p.BytesCopied)
	d.stats.repeated.Store(p.Repeated)
	if d.state == deviceFailed {
		r.Failed = "failed"
		if err := d.core.Err(); err != nil {
			r.Failed = err.Error()
		}
	}
	d.core.Generations(func(id cluster.VolumeID, gen cluster.Generation) { r.Volumes[id] = gen })
	for id, done := range d.dropped {
		if done {
			r.Freed = append(r.Freed, id)
		}
	}
	d.mu.Lock()
	d.report = r
	d.mu.Unlock()
}

// currentReport may be called from any goroutine.
func (d *device) currentReport() client.DeviceReport {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.report
}

// onWatch looks for what hangs.
func (d *device) onWatch(t *loop.Timer) {
	d.loop.Arm(t, watchInterval)
	now := d.loop.Now()
	was := d.hung
	d.hung = ""
	if o := d.oldest; o != nil && now-o.since > int64(d.hungAfter) {
		d.hung = fmt.Sprintf("hung: a %s at %d has not ended for %v", ioName(o.io.Kind), o.io.Off,
			time.Duration(now-o.since).Truncate(time.Second))
	}
	d.refreshReport()
	if (was == "") != (d.hung == "") {
		if d.hung != "" {
			d.log.Error("the disk hangs; the device counts as failed until it answers", "reason", d.hung)
		} else {
			d.log.Warn("the disk answers again")
		}
		d.tell()
	}
	d.closeStalled(now)
}

// closeStalled ends connections that hold slots without getting on. Paused ones
// hold no slot for it: they are this side's doing.
func (d *device) closeStalled(now int64) {
	for i := range d.slots.slots {
		s := &d.slots.slots[i]
		if (s.state == slotReceiving || s.state == slotSending) && now-s.since > int64(stalledAfter) {
			s.conn.tc.Close(fmt.Errorf("server: a request has been %v for more than %v", s.state, stalledAfter))
		}
	}
}

// onIdle gives the store time for background work when nothing else is going on.
func (d *device) onIdle(t *loop.Timer) {
	after := idleInterval
	ops := d.stats.frames.Load()
	if ops == d.lastOps && d.state == deviceServing && d.core.Idle() {
		after = idleStep
	}
	d.lastOps = ops
	d.schedule()
	d.loop.Arm(t, after)
}
