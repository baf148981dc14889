// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"context"
	"net"
	"sync"
	"testing"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/transport"
	"braid/transport/buf"
	"braid/transport/loop"
)

const patience = 20 * time.Second

// fakeMdm keeps one volume on one group of all fake servers' devices.
type fakeMdm struct {
	mu      sync.Mutex // guards what follows
	current *cluster.Map
	changed chan struct{}
	lost    bool
	drops   []client.DropRequest
	reports []client.DeviceTrouble
	gen     cluster.Generation
	lease   time.Duration
	calls   []string
}

const volumeSize = 64 << 20

func newFakeMdm(servers []*fakeServer, replicas int) *fakeMdm {
	m := cluster.NewMap()
	m.Version, m.Cluster = 1, cluster.UUID{1}
	m.Volumes[9] = &cluster.Volume{ID: 9, Name: "vol", Size: volumeSize, Replicas: replicas,
		StripeUnit: 65536, StripeWidth: 4, BlockSize: 4096, PGSet: 1}
	m.Sets[1] = &cluster.PGSet{Number: 1, Replicas: replicas, Count: 4}
	for _, s := range servers {
		m.Devices[s.id] = &cluster.Device{ID: s.id, UUID: cluster.UUID{byte(s.id)}, Server: s.name,
			Addr: s.ln.Addr().String(), Up: true}
	}
	for g := range 4 {
		pg := &cluster.PG{ID: cluster.MakePGID(1, uint32(g)), Epoch: 1}
		for r := range replicas {
			pg.InSync = append(pg.InSync, servers[(g+r)%len(servers)].id)
		}
		m.PGs[1] = append(m.PGs[1], pg)
	}
	return &fakeMdm{current: m, changed: make(chan struct{}), gen: 4,
		lease: 60 * time.Millisecond}
}

func (m *fakeMdm) Attach(_ context.Context, r client.AttachRequest) (*client.Session, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, "attach")
	m.gen++
	return &client.Session{ID: 1, Volume: m.current.Volumes[9], Generation: m.gen,
		Lease: m.lease, Map: m.current}, nil
}

func (m *fakeMdm) Detach(context.Context, client.Held) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.calls = append(m.calls, "detach")
	return nil
}

func (m *fakeMdm) RenewSession(_ context.Context, _ string, s []client.SessionState) ([]cluster.VolumeID, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lost {
		return []cluster.VolumeID{9}, nil
	}
	return nil, nil
}

// DropReplica takes the device out of each group that has another.
func (m *fakeMdm) DropReplica(_ context.Context, r client.DropRequest) (dropped, last []cluster.PGID, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.drops = append(m.drops, r)
	next := *m.current
	next.Version++
	next.PGs = map[uint32][]*cluster.PG{}
	for _, pg := range m.current.PGs[1] {
		n := *pg
		if pg.Has(r.Device) {
			if len(pg.InSync) == 1 {
				last = append(last, pg.ID)
			} else {
				dropped = append(dropped, pg.ID)
				n.Epoch++
				n.InSync = nil
				for _, d := range pg.InSync {
					if d != r.Device {
						n.InSync = append(n.InSync, d)
					}
				}
			}
		}
		next.PGs[1] = append(next.PGs[1], &n)
	}
	m.publish(&next)
	return dropped, last, nil
}

func (m *fakeMdm) ReportDevice(_ context.Context, t client.DeviceTrouble) (client.Verdict, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reports = append(m.reports, t)
	return client.Verdict{}, nil
}

// publish tells watchers. The caller holds mu.
func (m *fakeMdm) publish(next *cluster.Map) {
	m.current = next
	close(m.changed)
	m.changed = make(chan struct{})
}

func (m *fakeMdm) WatchMap(ctx context.Context, _ []cluster.VolumeID, deliver func(*cluster.Map)) error {
	for {
		m.mu.Lock()
		current, changed := m.current, m.changed
		m.mu.Unlock()
		deliver(current)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		}
	}
}

// fakeServer serves one device from memory and allocates nothing per frame once
// its chunks exist. What is behind knobs belongs to its loop.
type fakeServer struct {
	id     cluster.DeviceID
	name   string
	loop   *loop.Loop
	ln     net.Listener
	accept transport.Listener
	served sync.WaitGroup

	chunks   map[uint64][]byte
	slots    []*slot
	conns    map[*transport.Conn]bool
	knobs    knobs
	frames   [32]int
	sessions uint32
}

type knobs struct {
	inc       uint64
	hold      bool             // requests but OpOpen get no answer
	open      transport.Status // of OpOpen
	refuse    string           // of Hello
	spoilOnce bool             // one read goes out with a wrong byte
}

// slot is a request being received or answered.
type slot struct {
	msg  transport.Msg
	s    *fakeServer
	buf  []byte
	dst  [1][]byte
	out  [1][]byte
	sums []byte
}

func (k *slot) MsgSent(*transport.Msg, error) { k.s.slots = append(k.s.slots, k) }

func newFakeServer(t *testing.T, id cluster.DeviceID) *fakeServer {
	t.Helper()
	s := &fakeServer{id: id, name: "fake" + string('0'+rune(id)), chunks: map[uint64][]byte{},
		conns: map[*transport.Conn]bool{}, knobs: knobs{inc: 100 + uint64(id)}}
	var err error
	if s.loop, err = loop.New(loop.Options{Name: s.name}); err != nil {
		t.Fatal(err)
	}
	s.loop.Start()
	if s.ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	for range 128 {
		s.slots = append(s.slots, &slot{s: s, buf: make([]byte, 1<<20), sums: make([]byte, 2048)})
	}
	s.served.Go(func() { _ = s.accept.Serve(s.ln, s.greet) })
	t.Cleanup(func() {
		_ = s.accept.Close()
		s.served.Wait()
		s.kick()
		_ = s.loop.Close()
	})
	return s
}

func (s *fakeServer) set(edit func(*knobs)) { s.loop.Call(func() { edit(&s.knobs) }) }

// kick closes all connections.
func (s *fakeServer) kick() {
	s.loop.Call(func() {
		for c := range s.conns {
			c.Close(nil)
		}
	})
}

func (s *fakeServer) count(op transport.Op) (n int) {
	s.loop.Call(func() { n = s.frames[op] })
	return n
}

func (s *fakeServer) greet(h transport.Hello) (*loop.Loop, transport.Handler, transport.HelloReply) {
	var r transport.HelloReply
	s.loop.Call(func() {
		if s.knobs.refuse != "" {
			r = transport.HelloReply{Status: transport.HelloRefused, Text: s.knobs.refuse}
			return
		}
		r = transport.HelloReply{Status: transport.HelloOK, Incarnation: s.knobs.inc}
	})
	if r.Status != transport.HelloOK {
		return nil, nil, r
	}
	return s.loop, &serverConn{s: s}, r
}

// serverConn is the server's side of a connection.
type serverConn struct {
	s    *fakeServer
	slot *slot
}

func (h *serverConn) Opened(c *transport.Conn) { h.s.conns[c] = true }

func (h *serverConn) Closed(c *transport.Conn, _ error) { delete(h.s.conns, c) }

func (h *serverConn) Incoming(_ *transport.Conn, head *transport.Header) ([][]byte, bool) {
	s := h.s
	k := s.slots[len(s.slots)-1]
	s.slots = s.slots[:len(s.slots)-1]
	h.slot = k
	if head.Payload == 0 {
		return nil, true
	}
	k.dst[0] = k.buf[:head.Payload]
	return k.dst[:], true
}

func (h *serverConn) Frame(c *transport.Conn, head *transport.Header, sums []byte) {
	s, k := h.s, h.slot
	s.frames[head.Op&31]++
	r := *head
	r.Flags |= transport.FlagReply
	r.Interval, r.Offset = s.knobs.inc, 0
	k.msg.Sums, k.msg.Payload, k.msg.Sent = nil, nil, k
	if s.knobs.hold && head.Op != transport.OpOpen && head.Op != transport.OpALList {
		s.slots = append(s.slots, k)
		return
	}
	switch head.Op {
	case transport.OpOpen:
		s.sessions++
		r.Session, r.Status = s.sessions, s.knobs.open
	case transport.OpRead:
		k.out[0] = s.chunk(head.Chunk)[head.Offset : head.Offset+head.Length]
		k.msg.Sums = transport.BlockSums(k.sums, k.out[0])
		if s.knobs.spoilOnce {
			s.knobs.spoilOnce = false
			copy(k.buf, k.out[0])
			k.out[0] = k.buf[:head.Length]
			k.out[0][7] ^= 1
		}
		k.msg.Payload = k.out[:]
	case transport.OpWrite:
		if transport.VerifySums(k.dst[0], sums) >= 0 {
			r.Status = transport.StatusBadSum
			break
		}
		copy(s.chunk(head.Chunk)[head.Offset:], k.dst[0])
	case transport.OpALList: // nothing is suspect
		k.out[0] = transport.BeginList(k.buf[:0], 0, 0)
		k.msg.Payload = k.out[:]
	case transport.OpTrim, transport.OpZero:
		clear(s.chunk(head.Chunk)[head.Offset : head.Offset+head.Length])
	}
	k.msg.Header = r
	c.Send(&k.msg)
}

func (s *fakeServer) chunk(i uint64) []byte {
	b := s.chunks[i]
	if b == nil {
		b = make([]byte, cluster.ChunkSize)
		s.chunks[i] = b
	}
	return b
}

// rig is a volume on fake servers.
type rig struct {
	servers []*fakeServer
	mdm     *fakeMdm
	loop    *loop.Loop
	pool    *buf.Pool
	v       *Volume
	lost    chan error
}

func newRig(t *testing.T, servers, replicas int) *rig {
	t.Helper()
	return newRigWith(t, servers, replicas, func(*fakeMdm) {})
}

func newRigWith(t *testing.T, servers, replicas int, edit func(*fakeMdm)) *rig {
	t.Helper()
	r := &rig{lost: make(chan error, 1)}
	for i := range servers {
		r.servers = append(r.servers, newFakeServer(t, cluster.DeviceID(i+1)))
	}
	r.mdm = newFakeMdm(r.servers, replicas)
	edit(r.mdm)
	var err error
	if r.loop, err = loop.New(loop.Options{Name: "client"}); err != nil {
		t.Fatal(err)
	}
	r.loop.Start()
	t.Cleanup(func() { _ = r.loop.Close() })
	r.v, err = Attach(context.Background(), Config{Mdm: r.mdm, Loop: r.loop, Volume: "vol", Host: "test",
		Lost: func(err error) { r.lost <- err }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_ = r.v.Detach(ctx)
	})
	return r
}
