// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"strconv"
	"sync"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/server/disk"
	"braid/server/resync"
	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

// Config says what a server is and what it serves.
type Config struct {
	Name      string // unique in the cluster; empty: HOSTNAME:PORT
	FaultSet  string // empty: the name
	Spare     bool   // devices that join the cluster now take no copies yet
	Advertise string // HOST:PORT that others reach it by; empty: the listener's address
	Engine    loop.Engine
	Store     store.Config
	Resync    resync.Config
	Drills    bool         // it takes part in drills
	Die       func()       // ends the process at once, for a drill; nil: SIGKILL
	TestIOPS  int          // answers to reads and writes in a second and device at most, for tests; 0: all
	Touch     func([]byte) // called for each payload buffer at the start, to have its memory; may be nil
	Log       *slog.Logger

	poison bool // tests: see buf.Pool.Poison
}

// Disk is an opened device to be served.
type Disk struct {
	Path    string
	Backing disk.Backing
}

// Server serves devices until Close.
type Server struct {
	cfg     Config
	log     *slog.Logger
	ln      net.Listener
	accept  transport.Listener
	devices []*device
	traffic transport.Counters // of all connections
	reg     *registrar
	stop    context.CancelFunc // of the registrar's goroutines
	tasks   sync.WaitGroup
	cut     cutOff
	fatal   chan error // holds one: why going on makes no sense

	// mu guards what follows and the start of devices. It is never held across a
	// call to the manager.
	mu      sync.Mutex
	byUUID  map[cluster.UUID]*device // those that clients may reach
	cluster cluster.UUID             // zero: not claimed yet
	current *cluster.Map             // nil: none yet
	refused map[cluster.UUID]string  // devices that the manager refused, and why
	closing bool
}

// Start opens the stores, serves clients of ln and registers in the background.
// It takes over ln and the disks, also when it fails.
func Start(cfg Config, ln net.Listener, disks []Disk, manager Manager) (*Server, error) {
	s := &Server{cfg: cfg, log: cfg.Log, ln: ln, byUUID: map[cluster.UUID]*device{},
		refused: map[cluster.UUID]string{}, fatal: make(chan error, 1)}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	s.name()
	s.reg = newRegistrar(s, manager)
	if err := s.open(disks, manager); err != nil {
		return nil, errors.Join(err, s.abandon(disks))
	}
	ctx, stop := context.WithCancel(context.Background())
	s.stop = stop
	s.accept.Counters = &s.traffic
	local := transport.ListenLocal(ln, s.cfg.Advertise)
	s.log.Info("listening", "addr", ln.Addr().String(), "advertise", s.cfg.Advertise,
		"name", s.cfg.Name, "fault-set", s.cfg.FaultSet, "local-clients-by-unix-socket", local != nil)
	s.tasks.Go(func() {
		if err := s.accept.Serve(ln, s.greet); err != nil {
			s.fail(err)
		}
	})
	if local != nil {
		s.tasks.Go(func() {
			if err := s.accept.Serve(local, s.greet); err != nil {
				s.log.Warn("clients of this host have to come by TCP", "error", err)
			}
		})
	}
	s.tasks.Go(func() {
		if err := s.reg.keep(ctx); err != nil {
			s.fail(err)
		}
	})
	s.tasks.Go(func() { s.reg.follow(ctx) })
	return s, nil
}

// name fills in what the configuration left open.
func (s *Server) name() {
	addr := s.ln.Addr().String()
	here := addr
	tcp, isTCP := s.ln.Addr().(*net.TCPAddr)
	if host, err := os.Hostname(); err == nil && isTCP {
		here = net.JoinHostPort(host, strconv.Itoa(tcp.Port))
	}
	if s.cfg.Advertise == "" {
		s.cfg.Advertise = addr
		if isTCP && tcp.IP.IsUnspecified() {
			s.cfg.Advertise = here // nobody can dial 0.0.0.0
		}
	}
	if s.cfg.Name == "" {
		s.cfg.Name = here
	}
	if s.cfg.FaultSet == "" {
		s.cfg.FaultSet = s.cfg.Name
	}
}

// open reads who the disks are, and starts those that a cluster has claimed.
func (s *Server) open(disks []Disk, manager Manager) error {
	if len(disks) == 0 {
		return errors.New("no device to serve")
	}
	for _, k := range disks {
		id, err := store.ReadIdentity(k.Backing)
		if err != nil {
			return fmt.Errorf("device %s: %w", k.Path, err)
		}
		if other := s.byUUID[id.Device]; other != nil {
			return fmt.Errorf("devices %s and %s are the same one, or copies of it (UUID %v): serve one of them",
				other.path, k.Path, id.Device)
		}
		if first := s.firstClaimed(); first != nil && !id.Cluster.IsZero() && first.id.Cluster != id.Cluster {
			return fmt.Errorf("device %s belongs to cluster %v, but %s to cluster %v: serve them by two sds",
				k.Path, id.Cluster, first.path, first.id.Cluster)
		}
		d := newDevice(k.Path, k.Backing, id, s.cfg.Engine, s.log)
		d.changed, d.touch, d.poison = s.reg.report, s.cfg.Touch, s.cfg.poison
		d.manager, d.resync = manager, s.cfg.Resync
		d.limit.each = perSecond(s.cfg.TestIOPS)
		s.devices = append(s.devices, d)
		s.byUUID[id.Device] = d
	}
	if d := s.firstClaimed(); d != nil {
		s.cluster = d.id.Cluster
	}
	return s.startDevices()
}

// startDevices recovers all claimed devices side by side. One that cannot be
// started is out of service; with none left that is an error.
func (s *Server) startDevices() error {
	errs := make([]error, len(s.devices))
	var wg sync.WaitGroup
	for i, d := range s.devices {
		if d.id.Cluster.IsZero() {
			s.log.Info("waiting for a cluster to join", "device", d.path, "uuid", d.uuid.String())
			continue
		}
		wg.Go(func() {
			if errs[i] = s.startDevice(d); errs[i] != nil {
				d.breakDown(errs[i])
			}
		})
	}
	wg.Wait()
	if slices.Contains(errs, nil) {
		return nil
	}
	return errors.Join(errs...)
}

func (s *Server) firstClaimed() *device {
	for _, d := range s.devices {
		if !d.id.Cluster.IsZero() {
			return d
		}
	}
	return nil
}

func (s *Server) startDevice(d *device) error {
	begin := time.Now()
	cfg := s.cfg.Store
	cfg.StartID = startID()
	if err := d.start(cfg); err != nil {
		return err
	}
	s.log.Info("serving", "device", d.path, "uuid", d.id.Device.String(), "cluster", d.id.Cluster.String(),
		"size", cluster.FormatSize(uint64(d.id.Capacity)), "engine", d.loop.Engine().String(),
		"clean", d.wasClean, "starts", d.id.Starts, "recovery", time.Since(begin).Truncate(time.Millisecond))
	return nil
}

// abandon gives back everything after a failed start.
func (s *Server) abandon(disks []Disk) error {
	err := s.ln.Close()
	for _, d := range s.devices {
		if d.started() {
			err = errors.Join(err, d.abort())
		}
	}
	for _, k := range disks {
		err = errors.Join(err, k.Backing.Close())
	}
	return err
}

// greet answers a client's Hello.
func (s *Server) greet(h transport.Hello) (*loop.Loop, transport.Handler, transport.HelloReply) {
	refuse := func(status transport.HelloStatus, format string, args ...any) (
		*loop.Loop, transport.Handler, transport.HelloReply) {
		return nil, nil, transport.HelloReply{Status: status, Text: fmt.Sprintf(format, args...)}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	d := s.byUUID[h.Device]
	switch {
	case s.closing:
		return refuse(transport.HelloStarting, "the server is stopping")
	case s.cut.active():
		return refuse(transport.HelloStarting, "the server is cut off by a drill")
	case d == nil:
		return refuse(transport.HelloWrongDevice, "server %s has no device %v", s.cfg.Name, cluster.UUID(h.Device))
	case !d.started():
		return refuse(transport.HelloStarting, "the device has joined no cluster yet")
	case h.Cluster != d.id.Cluster:
		return refuse(transport.HelloWrongCluster, "the device is of cluster %v", d.id.Cluster)
	}
	if failed := d.currentReport().Failed; failed != "" && d.dead.Load() {
		return refuse(transport.HelloRefused, "the device failed: %s", failed)
	}
	return d.loop, &conn{dev: d, client: h.Client}, transport.HelloReply{Incarnation: d.incarnation.Load()}
}

// Addr is where the server listens; Name what it is called.
func (s *Server) Addr() net.Addr { return s.ln.Addr() }

// Name is the server's name in the cluster.
func (s *Server) Name() string { return s.cfg.Name }

// Failed delivers an error that makes going on pointless. The server still has
// to be closed.
func (s *Server) Failed() <-chan error { return s.fatal }

func (s *Server) fail(err error) {
	select {
	case s.fatal <- err:
	default:
	}
}

func (s *Server) clusterID() cluster.UUID {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.cluster
}

func (s *Server) deviceReports() []client.DeviceReport {
	reports := make([]client.DeviceReport, len(s.devices))
	for i, d := range s.devices {
		reports[i] = d.currentReport()
	}
	return reports
}

// errAgain makes the registrar register once more at once.
var errAgain = errors.New("devices have joined the cluster; registering them again")

// adopt takes the manager's answer: devices that belong to no cluster join its
// own and begin to serve.
func (s *Server) adopt(reg client.Registration) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.firstClaimed(); d != nil && d.id.Cluster != reg.Cluster {
		return &ForeignClusterError{Path: d.path, Device: d.id.Cluster, Manager: reg.Cluster}
	}
	if s.closing {
		return context.Canceled
	}
	s.cluster = reg.Cluster
	joined := false
	for i, d := range s.devices {
		if reg.Devices[i] == 0 {
			if s.refused[d.id.Device] != reg.Refused[i] {
				s.log.Error("the manager refuses the device", "device", d.path, "reason", reg.Refused[i])
			}
			s.refused[d.id.Device] = reg.Refused[i]
			continue
		}
		delete(s.refused, d.id.Device)
		if d.started() || d.broken != nil {
			continue
		}
		joined = true
		if err := s.join(d, reg.Cluster); err != nil {
			d.breakDown(err)
		}
	}
	if joined {
		return errAgain
	}
	return nil
}

func (s *Server) join(d *device, id cluster.UUID) error {
	if err := store.Claim(d.backing, id); err != nil {
		return fmt.Errorf("device %s: join cluster %v: %w", d.path, id, err)
	}
	if err := s.startDevice(d); err != nil {
		return err
	}
	if m := s.current; m != nil {
		d.loop.Post(func() { d.learn(m) })
	}
	return nil
}

// learn hands a new map to the devices.
func (s *Server) learn(m *cluster.Map) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if d := s.firstClaimed(); d != nil && !m.Cluster.IsZero() && d.id.Cluster != m.Cluster {
		s.fail(&ForeignClusterError{Path: d.path, Device: d.id.Cluster, Manager: m.Cluster})
		return
	}
	if s.current != nil && m.Version < s.current.Version {
		s.log.Warn("ignored a map that is older than the known one; was etcd's data put back by hand? "+
			"Use scli backup and mdm serve --restore", "version", m.Version, "known", s.current.Version)
		return
	}
	s.current = m
	for _, d := range s.devices {
		if d.started() {
			d.loop.Post(func() { d.learn(m) })
		}
	}
}

// scrub hands orders to the devices that they name.
func (s *Server) scrub(orders []client.ScrubOrder) {
	for _, o := range orders {
		s.mu.Lock()
		d := s.byUUID[o.Device]
		s.mu.Unlock()
		if d != nil && d.live.Load() {
			d.loop.Post(func() { d.scrub.order(o) })
		}
	}
}

// limitResync bounds the rate at which each device compares and copies, and says what
// clients may notice of it; 0 each: what the device finds right.
func (s *Server) limitResync(rate uint64, p99 time.Duration) {
	for _, d := range s.devices {
		if !d.live.Load() {
			continue
		}
		if d.resyncRate.Swap(rate) != rate {
			d.loop.Post(func() { d.target.core.Limit(int64(min(rate, 1<<62))) })
		}
		if d.resyncP99.Swap(int64(p99)) != int64(p99) {
			d.loop.Post(func() { d.target.core.Aim(p99) })
		}
	}
}

// setReserve has each device keep a share of its room for copies.
func (s *Server) setReserve(percent uint32) {
	for _, d := range s.devices {
		if d.live.Load() && d.reserve.Swap(percent) != percent {
			d.loop.Post(func() { d.core.SetReserve(percent) })
		}
	}
}

// Close stops cleanly: no new connections, what is in flight ends, the devices
// are flushed and marked clean, the manager is told. When ctx ends first, what
// is left is left: the next start recovers. Call it once.
func (s *Server) Close(ctx context.Context) error {
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.log.Info("stopping", "name", s.cfg.Name)
	err := s.accept.Close()
	errs := make([]error, len(s.devices))
	var wg sync.WaitGroup
	for i, d := range s.devices {
		wg.Go(func() { errs[i] = d.stop(ctx) })
	}
	wg.Wait()
	s.stop()
	s.tasks.Wait()
	s.reg.leave(ctx)
	s.log.Info("stopped", "name", s.cfg.Name)
	return errors.Join(append(errs, err)...)
}

// startID draws the number that tells this start of a device from every other,
// also where an older image of its disk counts the same starts again (rule 21).
func startID() uint64 {
	var b [8]byte
	_, _ = rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])
}
