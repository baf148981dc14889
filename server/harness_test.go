// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/server/disk"
	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

const patience = 10 * time.Second // for what must happen, on a busy machine

// engines runs a test on both engines of the loop.
func engines(t *testing.T, test func(t *testing.T, e loop.Engine)) {
	for _, e := range []loop.Engine{loop.Uring, loop.Pool} {
		t.Run(e.String(), func(t *testing.T) {
			l, err := loop.New(loop.Options{Engine: e})
			if errors.Is(err, loop.ErrEngine) {
				t.Logf("this kernel refuses the engine; nothing to test: %v", err)
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := l.Close(); err != nil {
				t.Fatal(err)
			}
			test(t, e)
		})
	}
}

// newUUID returns a random identity.
func newUUID() (u cluster.UUID) {
	_, _ = rand.Read(u[:])
	return u
}

// testVolume is attached by most tests, on group testPG.
const testVolume cluster.VolumeID = 7

var testPG = cluster.MakePGID(1, 0)

// fakeManager answers like mdm and keeps what it was told.
type fakeManager struct {
	scrubs  []client.ScrubOrder
	cluster cluster.UUID

	mu       sync.Mutex
	away     bool
	reports  []client.DeviceReport // of the last call
	calls    int
	refuse   map[cluster.UUID]string
	ids      map[cluster.UUID]cluster.DeviceID
	current  *cluster.Map
	change   chan struct{} // closed and replaced when anything changes
	left     bool
	joins    int
	generous bool   // every device is listed in every group
	resyncs  uint64 // the rate that is set
	patience time.Duration
}

func newFakeManager() *fakeManager {
	m := &fakeManager{cluster: newUUID(), refuse: map[cluster.UUID]string{},
		ids: map[cluster.UUID]cluster.DeviceID{}, change: make(chan struct{}), generous: true}
	m.current = cluster.NewMap()
	m.current.Cluster, m.current.Version = m.cluster, 1
	m.current.Volumes[testVolume] = &cluster.Volume{ID: testVolume, Name: "v", Size: 1 << 30, Replicas: 1,
		StripeUnit: 64 << 10, StripeWidth: 8, BlockSize: 4096, PGSet: 1}
	m.current.Sets[1] = &cluster.PGSet{Number: 1, Replicas: 1, Count: 1}
	m.current.PGs[1] = []*cluster.PG{{ID: testPG, Epoch: 1}}
	return m
}

var errAway = errors.New("the manager is away")

func (m *fakeManager) RegisterServer(_ context.Context, r client.ServerReport) (client.Registration, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.away {
		return client.Registration{}, errAway
	}
	reg := client.Registration{Cluster: m.cluster, LeaseID: 1, Lease: 300 * time.Millisecond}
	m.reports = r.Devices
	for _, d := range r.Devices {
		if why := m.refuse[d.UUID]; why != "" {
			reg.Devices, reg.Refused = append(reg.Devices, 0), append(reg.Refused, why)
			continue
		}
		id := m.ids[d.UUID]
		if id == 0 {
			id = cluster.DeviceID(len(m.ids) + 1)
			m.ids[d.UUID] = id
			m.publish(func(next *cluster.Map) {
				next.Devices[id] = &cluster.Device{ID: id, UUID: d.UUID, Up: true, Addr: r.Addr}
				if m.generous {
					pg := *next.PGs[1][0]
					pg.Replicas = append(pg.Replicas[:len(pg.Replicas):len(pg.Replicas)], id)
					pg.InSync = pg.Replicas
					next.PGs[1] = []*cluster.PG{&pg}
				}
			})
		}
		reg.Devices, reg.Refused = append(reg.Devices, id), append(reg.Refused, "")
	}
	return reg, nil
}

func (m *fakeManager) Renew(_ context.Context, _ string, _ uint64, devices []client.DeviceReport,
) (client.Renewal, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls++
	if m.away {
		return client.Renewal{}, errAway
	}
	if len(devices) == 0 {
		m.left = true
	} else {
		m.reports = devices
	}
	return client.Renewal{Known: true, Scrubs: m.scrubs, ResyncRate: m.resyncs, ResyncP99: m.patience}, nil
}

// publish makes the next map. The caller holds mu.
func (m *fakeManager) publish(edit func(*cluster.Map)) {
	next, _ := m.current.Apply(&cluster.Delta{From: m.current.Version, Version: m.current.Version + 1})
	fresh := *next
	fresh.Devices, fresh.Volumes = map[cluster.DeviceID]*cluster.Device{}, map[cluster.VolumeID]*cluster.Volume{}
	fresh.PGs, fresh.Removed = map[uint32][]*cluster.PG{}, map[cluster.VolumeID]bool{}
	for k, v := range next.Devices {
		fresh.Devices[k] = v
	}
	for k, v := range next.Volumes {
		fresh.Volumes[k] = v
	}
	for k, v := range next.PGs {
		fresh.PGs[k] = v
	}
	for k, v := range next.Removed {
		fresh.Removed[k] = v
	}
	edit(&fresh)
	m.current = &fresh
	close(m.change)
	m.change = make(chan struct{})
}

// edit publishes a changed map.
func (m *fakeManager) edit(edit func(*cluster.Map)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.publish(edit)
}

// ResyncReady has every target of a device begin at once.
func (m *fakeManager) ResyncReady(_ context.Context, id cluster.DeviceID) (list []client.ReadyGroup, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, pg := range m.current.PGs[1] {
		if m.away || pg.Target != id {
			continue
		}
		g := client.ReadyGroup{PG: pg.ID, Epoch: pg.TargetEpoch}
		for _, s := range pg.InSync {
			for _, r := range m.reports {
				if m.ids[r.UUID] == s {
					g.Sources = append(g.Sources, client.Source{Device: s, Incarnation: r.Incarnation})
				}
			}
		}
		list = append(list, g)
	}
	return list, nil
}

// JoinInSync ends attempts. The first call says nothing of its outcome.
func (m *fakeManager) JoinInSync(_ context.Context, r client.JoinRequest) (refused, later []cluster.PGID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.joins++; m.joins == 1 {
		return nil, nil, errAway
	}
	for _, j := range r.Groups {
		pg := *m.current.PG(j.PG)
		if pg.Target != r.Device || pg.TargetEpoch != j.Epoch {
			refused = append(refused, j.PG)
			continue
		}
		pg.InSync = append(pg.InSync[:len(pg.InSync):len(pg.InSync)], r.Device)
		pg.Target, pg.TargetEpoch = 0, 0
		pg.Epoch++
		m.publish(func(next *cluster.Map) { next.PGs[1] = []*cluster.PG{&pg} })
	}
	return refused, nil, nil
}

func (m *fakeManager) setAway(away bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away = away
}

func (m *fakeManager) WatchMap(ctx context.Context, _ []cluster.VolumeID, deliver func(*cluster.Map)) error {
	var seen uint64
	for {
		m.mu.Lock()
		current, change, away := m.current, m.change, m.away
		m.mu.Unlock()
		if !away && current.Version != seen {
			seen = current.Version
			deliver(current)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-change:
		}
	}
}

// report returns what the manager was last told about a device.
func (m *fakeManager) report(id cluster.UUID) client.DeviceReport {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, r := range m.reports {
		if r.UUID == id {
			return r
		}
	}
	return client.DeviceReport{}
}

// rig is a server under test with its manager.
type rig struct {
	t       testing.TB
	engine  loop.Engine
	manager *fakeManager
	srv     *Server
	uuids   []cluster.UUID
}

// start serves the backings, which must be formatted.
func startRig(t testing.TB, e loop.Engine, m *fakeManager, backings ...disk.Backing) *rig {
	t.Helper()
	r := &rig{t: t, engine: e, manager: m}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var disks []Disk
	for i, b := range backings {
		id, err := store.ReadIdentity(b)
		if err != nil {
			t.Fatal(err)
		}
		r.uuids = append(r.uuids, id.Device)
		disks = append(disks, Disk{Path: fmt.Sprintf("disk%d", i), Backing: b})
	}
	r.srv, err = Start(Config{Engine: e, Name: "sds", poison: true, Store: store.Config{LocalResolve: true},
		Log: slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug}))},
		ln, disks, m)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// stop closes the server and checks that nothing is left.
func (r *rig) stop() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := r.srv.Close(ctx); err != nil {
		r.t.Errorf("close: %v", err)
	}
}

// kill ends the server without any of what a clean stop does.
func (r *rig) kill() {
	r.t.Helper()
	r.srv.mu.Lock()
	r.srv.closing = true
	r.srv.mu.Unlock()
	_ = r.srv.accept.Close()
	for _, d := range r.srv.devices {
		if err := d.abort(); err != nil {
			r.t.Errorf("abort: %v", err)
		}
	}
	r.srv.stop()
	r.srv.tasks.Wait()
}

// format makes a store on a backing.
func format(t testing.TB, b store.Disk) {
	t.Helper()
	if _, err := store.Format(b, newUUID(), cluster.UUID{}, nil); err != nil {
		t.Fatal(err)
	}
}

// eventually waits until ok returns true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline.C:
			t.Fatalf("gave up waiting: %s", what)
		}
	}
}

// peer is a client that sends one frame after the other, or many at once.
type peer struct {
	t       testing.TB
	loop    *loop.Loop
	conn    *transport.Conn
	replies chan reply
	ended   chan error
	nextID  uint64
	session uint32
	payload []byte
}

type reply struct {
	transport.Header
	sums, data []byte
}

// Incoming, Frame and Closed make a peer a transport.Handler.
func (p *peer) Incoming(_ *transport.Conn, h *transport.Header) ([][]byte, bool) {
	p.payload = make([]byte, h.Payload)
	return [][]byte{p.payload}, true
}

func (p *peer) Frame(_ *transport.Conn, h *transport.Header, sums []byte) {
	p.replies <- reply{*h, append([]byte(nil), sums...), p.payload}
}

func (p *peer) Closed(_ *transport.Conn, err error) { p.ended <- err }

// dial connects to the i-th device, waiting until it has joined the cluster.
func (r *rig) dial(i int) *peer {
	r.t.Helper()
	return r.dialLink(i, 0)
}

// dialLink is dial for one of several connections of a client.
func (r *rig) dialLink(i int, link uint8) *peer {
	r.t.Helper()
	return r.dialAs(i, link, transport.Client)
}

func (r *rig) dialAs(i int, link uint8, role transport.Role) *peer {
	r.t.Helper()
	l, err := loop.New(loop.Options{Engine: r.engine, Name: "client"})
	if err != nil {
		r.t.Fatal(err)
	}
	l.Start()
	p := &peer{t: r.t, loop: l, replies: make(chan reply, 1<<14), ended: make(chan error, 1)}
	hello := transport.Hello{Cluster: r.manager.cluster, Device: r.uuids[i], Role: role, Flags: link}
	_, _ = rand.Read(hello.Client[:])
	eventually(r.t, "dial", func() bool {
		p.conn, _, err = transport.Dial(r.t.Context(), l, r.srv.Addr().String(), hello,
			func(transport.HelloReply) transport.Handler { return p })
		if err != nil && !errors.Is(err, transport.ErrStarting) {
			r.t.Fatal(err)
		}
		return err == nil
	})
	return p
}

// close ends the connection and the loop.
func (p *peer) close() {
	p.loop.Call(func() { p.conn.Close(nil) })
	<-p.ended
	_ = p.loop.Close()
}

// send queues a request and returns its id. It blocks for the loop only.
func (p *peer) send(h transport.Header, data []byte) uint64 {
	p.nextID++
	h.ID = p.nextID
	if h.Session == 0 {
		h.Session = p.session
	}
	m := &transport.Msg{Header: h}
	if len(data) > 0 {
		m.Payload = [][]byte{data}
		if h.Op == transport.OpWrite {
			m.Sums = transport.BlockSums(make([]byte, 8*transport.Blocks(len(data))), data)
		}
	}
	p.loop.Call(func() { p.conn.Send(m) })
	return h.ID
}

// receive waits for the next reply, or fails the test.
func (p *peer) receive() reply {
	p.t.Helper()
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	select {
	case r := <-p.replies:
		return r
	case err := <-p.ended:
		p.ended <- err
		p.t.Fatalf("the connection ended: %v", err)
	case <-deadline.C:
		p.t.Fatal("no reply")
	}
	return reply{}
}

// call sends one request and waits for its reply. It does it again while the
// server asks for that.
func (p *peer) call(h transport.Header, data []byte) reply {
	p.t.Helper()
	var r reply
	eventually(p.t, "an answer other than retry", func() bool {
		id := p.send(h, data)
		r = p.receive()
		if r.ID != id || r.Op != h.Op || r.Flags&transport.FlagReply == 0 {
			p.t.Fatalf("reply %+v to request %d", r.Header, id)
		}
		return r.Status != transport.StatusRetry
	})
	return r
}

// want is call and a check of the status.
func (p *peer) want(status transport.Status, h transport.Header, data []byte) reply {
	p.t.Helper()
	r := p.call(h, data)
	if r.Status != status {
		p.t.Fatalf("op %d: status %v, want %v", h.Op, r.Status, status)
	}
	return r
}

// open opens testVolume under a generation.
func (p *peer) open(gen uint64) transport.Status {
	p.t.Helper()
	req := transport.OpenRequest{Volume: uint64(testVolume), Generation: gen}
	r := p.call(transport.Header{Op: transport.OpOpen}, req.Encode(make([]byte, transport.OpenRequestSize)))
	if r.Status == transport.StatusOK {
		p.session = r.Session
	}
	return r.Status
}

// epoch is that of testPG with n devices registered one after the other: the
// fake manager leaves it alone.
const epoch = 1

func writeHeader(chunk uint64, off, length int, flags uint8) transport.Header {
	return transport.Header{Op: transport.OpWrite, Flags: flags, PG: uint32(testPG), Epoch: epoch,
		Chunk: chunk, Offset: uint32(off), Length: uint32(length), Interval: 1}
}

func readHeader(chunk uint64, off, length int) transport.Header {
	return transport.Header{Op: transport.OpRead, PG: uint32(testPG), Epoch: epoch,
		Chunk: chunk, Offset: uint32(off), Length: uint32(length)}
}

func (p *peer) write(chunk uint64, off int, data []byte) {
	p.t.Helper()
	p.want(transport.StatusOK, writeHeader(chunk, off, len(data), 0), data)
}

func (p *peer) flush() {
	p.t.Helper()
	p.want(transport.StatusOK, transport.Header{Op: transport.OpFlush, Interval: 1}, nil)
}

// read returns a range, zeroes where nothing is stored, after checking the sums.
func (p *peer) read(chunk uint64, off, length int) []byte {
	p.t.Helper()
	r := p.want(transport.StatusOK, readHeader(chunk, off, length), nil)
	if r.Flags&transport.FlagHole != 0 {
		if len(r.data) != 0 || len(r.sums) != 0 {
			p.t.Fatalf("a hole with %d bytes and %d of sums", len(r.data), len(r.sums))
		}
		return make([]byte, length)
	}
	if len(r.data) != length || transport.VerifySums(r.data, r.sums) >= 0 {
		p.t.Fatalf("read of %d bytes: got %d, first bad block %d", length, len(r.data),
			transport.VerifySums(r.data, r.sums))
	}
	return r.data
}

// pattern is a recognisable content.
func pattern(seed, length int) []byte {
	b := make([]byte, length)
	for i := range b {
		b[i] = byte(seed + i*7 + i>>8*13)
	}
	return b
}
