// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"context"
	"sync"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/stripe/core"
	"braid/transport"
	"braid/transport/bio"
	"braid/transport/buf"
	"braid/transport/loop"
)

// MaxRequest is the longest Read or Write in bytes. Other operations may be as
// long as the volume.
const MaxRequest = core.MaxRequest

// Metadata is what a volume needs of the metadata manager. *client.Client is
// one.
type Metadata interface {
	Attach(ctx context.Context, r client.AttachRequest) (*client.Session, error)
	Detach(ctx context.Context, h client.Held) error
	RenewSession(ctx context.Context, client string, sessions []client.SessionState) (
		lost []cluster.VolumeID, err error)
	DropReplica(ctx context.Context, r client.DropRequest) (dropped, last []cluster.PGID, err error)
	ReportDevice(ctx context.Context, t client.DeviceTrouble) (client.Verdict, error)
	WatchMap(ctx context.Context, volumes []cluster.VolumeID, deliver func(*cluster.Map)) error
}

// Config says what to attach, and where it lives.
type Config struct {
	Mdm            Metadata
	Loop           *loop.Loop         // started; everything of the volume runs on it
	Pool           *buf.Pool          // not used so far
	Volume         string             // name; empty: the cluster's only volume
	ID             cluster.VolumeID   // which, whatever it is called by now; 0: the name says it
	ClientID       [16]byte           // unique to this process
	Host           string             // for people, and to find out which servers are local
	Force          bool               // fence whoever holds the volume
	GuestAlive     bool               // the same kernel device goes on: not a fresh attach
	Continues      cluster.Generation // with GuestAlive: of the session that the guest had
	ReadOnly       bool
	FailFull       bool // writes that find no room on a device fail, instead of waiting
	ConnsPerDevice int  // 0: 1
	// Resized is called on the loop when the volume's size has changed.
	Resized func(size uint64)
	// Lost is called once on the loop when the volume can serve no longer: fenced
	// by another client, the session lost, the last copy broken.
	Lost func(reason error)
	// Counters, if set, count what its connections carry.
	Counters *transport.Counters
}

// Volume is an attached volume. Submit, Size, BlockSize and ReadOnly are for its
// loop; the other methods are for any other goroutine.
type Volume struct {
	cfg     Config
	loop    *loop.Loop
	volume  *cluster.Volume // as it was at attach
	gen     cluster.Generation
	lease   time.Duration
	client  string // ClientID for the metadata manager
	dialer  transport.Dialer
	isLocal func(*cluster.Device) bool

	// Owned by the loop.
	core     *core.Core
	current  *cluster.Map
	refused  error     // why a newer map is not taken, if so
	msgs     []message // by frame
	links    []*peer   // by link
	peers    map[peerKey]*peer
	timer    loop.Timer
	armed    int64 // the deadline that timer is set to; 0: none
	draining bool
	deferred bool   // a drain is due at the end of this turn
	adopting bool   // mdm waits to hear that the newest map is adopted
	told     uint64 // what it has heard last
	// mdm has heard that writes wait for room, or is about to; on which devices; and when
	// they did so last.
	toldRoomless  bool
	roomless      []cluster.DeviceID
	roomlessUntil int64
	reports       map[cluster.DeviceID]bool // that are on their way
	closing       bool                      // Detach has begun: nothing new is let in
	ended         bool                      // nothing is dialled any more
	idle          chan struct{}             // closed when the core is idle, if somebody waits
	quiet         chan struct{}             // closed when no connection is left, if somebody waits
	scratch       []byte                    // where unwanted payload goes

	ctx    context.Context // ends with the volume
	cancel context.CancelFunc
	soon   chan struct{}  // renew the session before its time
	work   sync.WaitGroup // all goroutines of the volume
	once   sync.Once      // of Detach
	result error          // of Detach
}

// message is a frame's place in the transport.
type message struct {
	transport.Msg
	v     *Volume
	frame int32
}

// MsgSent tells the core that the transport has let go of the frame's bytes.
func (m *message) MsgSent(*transport.Msg, error) {
	v := m.v
	v.core.Sent(v.loop.Now(), m.frame)
	v.drain()
}

// Submit starts a request, which never ends inside the call. What all requests
// of one turn of the loop lead to is carried out at its end. It is part of
// nbd.Device.
func (v *Volume) Submit(r *bio.Request) {
	if v.closing {
		v.core.Refuse(r, bio.ErrShutdown)
	} else {
		v.core.Submit(v.loop.Now(), r)
	}
	if !v.draining && !v.deferred {
		v.deferred = true
		v.loop.Defer((*deferredVolume)(v))
	}
}

// deferredVolume keeps RunDeferred out of Volume's methods.
type deferredVolume Volume

func (d *deferredVolume) RunDeferred() {
	v := (*Volume)(d)
	v.deferred = false
	v.drain()
}

// Size is the volume's size in bytes.
func (v *Volume) Size() uint64 { return v.core.Size() }

// BlockSize is the logical block size shown to the kernel: 512 or 4096.
func (v *Volume) BlockSize() int { return int(v.volume.BlockSize) }

// ReadOnly reports whether writes are refused.
func (v *Volume) ReadOnly() bool { return v.cfg.ReadOnly }

// Roomless reports whether writes wait for space. It is part of nbd.Roomless.
func (v *Volume) Roomless() bool { return v.core.IsRoomless() }

// Name of the attached volume.
func (v *Volume) Name() string { return v.volume.Name }

// ID of the attached volume.
func (v *Volume) ID() cluster.VolumeID { return v.volume.ID }

// Generation is what this attach was given.
func (v *Volume) Generation() cluster.Generation { return v.gen }

// Loop is where the volume lives.
func (v *Volume) Loop() *loop.Loop { return v.loop }

// drain carries out the core's effects. A request's owner may submit the next
// one from inside: that only adds effects, which the outermost drain sees.
func (v *Volume) drain() {
	if v.draining {
		return
	}
	v.draining = true
	for {
		effects := v.core.Effects()
		if len(effects) == 0 {
			break
		}
		for i := range effects {
			v.do(&effects[i])
			effects[i] = core.Effect{}
		}
	}
	v.draining = false
	if d := v.core.Deadline(); d != v.armed {
		v.arm(d)
	}
	if v.adopting {
		v.tellAdopted()
	}
	if v.idle != nil && v.core.Idle() {
		close(v.idle)
		v.idle = nil
	}
}

func (v *Volume) do(e *core.Effect) {
	switch e.Kind {
	case core.Send:
		m := &v.msgs[e.Frame]
		f := v.core.Frame(e.Frame)
		m.Header, m.Sums, m.Payload = f.Header, f.Sums, f.Payload
		v.links[e.Link].conn.Send(&m.Msg)
	case core.Complete:
		e.Request.Done.RequestDone(e.Request)
	case core.CloseLink:
		v.links[e.Link].close(e.Text)
	case core.DropReplica:
		v.dropReplica(e.Device, e.Text)
	case core.Report:
		v.report(e)
	case core.Room:
		v.tellRoomless()
	case core.NeedMap:
		// The watch delivers it; the core tries again when it has come.
	case core.Lost:
		v.lost(e.Err)
	}
}

func (v *Volume) arm(deadline int64) {
	v.armed = deadline
	if deadline == 0 {
		v.loop.Disarm(&v.timer)
		return
	}
	v.loop.Arm(&v.timer, time.Duration(deadline-v.loop.Now()))
}

func (v *Volume) fire(*loop.Timer) {
	v.armed = 0
	v.core.Tick(v.loop.Now())
	v.drain()
}

// adopt takes a map, on the loop.
func (v *Volume) adopt(m *cluster.Map) {
	if v.ended || v.current != nil && m.Version <= v.current.Version {
		return
	}
	before := v.core.Size()
	if err := v.core.SetMap(v.loop.Now(), m, v.isLocal); err != nil {
		// A map without the volume: it is being deleted, or mdm has just been
		// restored. The old one goes on; the lease decides.
		v.refused = err
		return
	}
	v.current, v.refused = m, nil
	v.adopting = true
	v.drain()
	v.connect()
	if size := v.core.Size(); size != before && v.cfg.Resized != nil {
		v.cfg.Resized(size)
	}
}

// Stats are the counters of a volume since its attach.
type Stats = core.Stats

// Stats may be called from any goroutine but the loop's. They are zero when the
// loop has ended.
func (v *Volume) Stats() (s Stats) {
	v.loop.Call(func() { s = v.core.Stats() })
	return s
}
