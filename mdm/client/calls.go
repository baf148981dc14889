// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/rand"
	"fmt"
	"slices"
	"time"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
)

// ServerReport is what a data server tells about itself when it registers.
type ServerReport struct {
	Name     string
	Addr     string // HOST:PORT where clients reach it
	FaultSet string
	Version  string
	Cluster  cluster.UUID // what its devices say; zero: fresh ones only
	Devices  []DeviceReport
	Spare    bool // devices that join now take no copies yet
	Drills   bool // it takes part in drills
}

// DeviceReport is the state of one device, sent with each renewal.
type DeviceReport struct {
	UUID         cluster.UUID
	Path         string
	Size         uint64 // bytes usable for chunks
	Used         uint64 // bytes in allocated chunks
	Incarnation  cluster.Incarnation
	StartCounter uint64
	StartID      uint64                                  // drawn at the newest start; 0: not known
	Failed       string                                  // why it does not serve; empty: it serves
	Volumes      map[cluster.VolumeID]cluster.Generation // persisted generations
	Freed        []cluster.VolumeID                      // deleted volumes of which nothing is left
	// Adopted is the map version that the device has learned: nothing that was
	// admitted under an older one is in flight, and sessions older than that map's
	// generations are fenced.
	Adopted uint64
	Resync  *ResyncReport // nil: it is the target of no group
	Scrub   *ScrubReport  // of the newest run; nil: there was none
	// Blocks that did not match their checksums, and those of them that were written
	// again from another copy, since the server started.
	RotFound, RotMended uint64
}

// ResyncReport is how far a target has come.
type ResyncReport struct {
	Groups, Compared int
	ChunksLeft       uint64
	BytesCopied      uint64
	BytesPerSecond   uint64 // that the pace allows; 0: all that goes
	CopiedPerSecond  uint64 // measured: written here
	SettledPerSecond uint64 // measured: by so much ChunksLeft falls, in bytes
	Stuck            string // why some chunk cannot be copied, or empty
}

// ScrubReport is how far a scrub has come.
type ScrubReport struct {
	Run                      uint64
	State                    string // running | done | stopped
	BytesDone, BytesTotal    uint64
	Started, Ended           time.Time // Ended zero: not yet
	Rotten, Mended, Unmended uint64
	Rate                     uint64
	Volume                   cluster.VolumeID // that alone; 0: everything
}

// Registration is mdm's answer to a server that registered.
type Registration struct {
	Cluster cluster.UUID
	LeaseID uint64
	Lease   time.Duration      // renew every third of it
	Devices []cluster.DeviceID // in the order of the report; 0: refused
	Refused []string           // why, in the same order; empty: accepted
}

// RegisterServer makes the server and its devices known and starts its lease.
func (c *Client) RegisterServer(ctx context.Context, r ServerReport) (Registration, error) {
	req := &pb.RegisterServerRequest{Name: r.Name, Addr: r.Addr, FaultSet: r.FaultSet,
		Version: r.Version, Cluster: pb.FromUUID(r.Cluster), Devices: fromReports(r.Devices), Spare: r.Spare,
		AllowDrills: r.Drills}
	op := "register server " + r.Name
	c.mu.Lock()
	c.server = r.Name
	c.mu.Unlock()
	resp, err := call(ctx, c, op, req, pbconnect.MdmClient.RegisterServer)
	if err != nil {
		return Registration{}, err
	}
	reg := Registration{LeaseID: resp.LeaseId, Refused: resp.Refused,
		Lease: time.Duration(resp.LeaseMs) * time.Millisecond}
	if reg.Cluster, err = pb.ToUUID(resp.Cluster); err != nil {
		return Registration{}, &OpError{Op: op, Err: err}
	}
	if len(resp.DeviceIds) != len(r.Devices) {
		return Registration{}, &OpError{Op: op, Err: fmt.Errorf("mdm answered for %d of %d devices; "+
			"do mdm and sds have the same version?", len(resp.DeviceIds), len(r.Devices))}
	}
	for _, id := range resp.DeviceIds {
		reg.Devices = append(reg.Devices, cluster.DeviceID(id))
	}
	for len(reg.Refused) < len(reg.Devices) {
		reg.Refused = append(reg.Refused, "")
	}
	return reg, nil
}

// RenewServer keeps the server's lease and reports its devices. known = false
// means that the lease is gone: register again.
func (c *Client) RenewServer(ctx context.Context, name string, lease uint64, devices []DeviceReport,
) (known bool, err error) {
	r, err := c.Renew(ctx, name, lease, devices)
	return r.Known, err
}

// Renewal is mdm's answer to a server that renewed its lease.
type Renewal struct {
	Known      bool // false: register again
	Scrubs     []ScrubOrder
	ResyncRate uint64        // bytes per second and device at most; 0: no bound but the pace
	ResyncP99  time.Duration // of clients' reads and writes, at which copying slows down; 0: the server's own
	Reserve    uint32        // percent of each device that clients' writes leave to copies
	Drill      *DrillOrder
}

// DrillOrder has a server take part in a drill.
type DrillOrder struct {
	ID     uint64 // later ones are greater
	Kind   string
	For    time.Duration
	Delay  time.Duration
	Volume cluster.VolumeID
}

// ScrubOrder has a device scrubbed.
type ScrubOrder struct {
	Device cluster.UUID
	Run    uint64 // a run newer than the device's begins
	Rate   uint64 // bytes per second; 0: the server's own
	Stop   bool
	Volume cluster.VolumeID // that alone; 0: everything
}

// Renew is RenewServer with all that mdm answers.
func (c *Client) Renew(ctx context.Context, name string, lease uint64, devices []DeviceReport) (Renewal, error) {
	op := "renew the lease of server " + name
	req := &pb.RenewServerRequest{Name: name, LeaseId: lease, Devices: fromReports(devices)}
	resp, err := call(ctx, c, op, req, pbconnect.MdmClient.RenewServer)
	if err != nil {
		return Renewal{}, err
	}
	r := Renewal{Known: resp.Known, ResyncRate: resp.ResyncRate, Reserve: resp.Reserve,
		ResyncP99: time.Duration(min(resp.ResyncP99Us, 1<<40)) * time.Microsecond}
	if o := resp.Drill; o != nil {
		r.Drill = &DrillOrder{ID: o.Id, Kind: o.Kind, For: time.Duration(min(o.ForMs, 1<<30)) * time.Millisecond,
			Delay: time.Duration(o.DelayMs) * time.Millisecond, Volume: cluster.VolumeID(o.Volume)}
	}
	for _, o := range resp.Scrubs {
		uuid, err := pb.ToUUID(o.Uuid)
		if err != nil {
			return Renewal{}, &OpError{Op: op, Err: err}
		}
		r.Scrubs = append(r.Scrubs, ScrubOrder{Device: uuid, Run: o.Run, Rate: o.Rate, Stop: o.Stop,
			Volume: cluster.VolumeID(o.Volume)})
	}
	return r, nil
}

func fromReports(reports []DeviceReport) []*pb.DeviceReport {
	out := make([]*pb.DeviceReport, len(reports))
	for i, r := range reports {
		m := &pb.DeviceReport{Uuid: pb.FromUUID(r.UUID), Path: r.Path, Size: r.Size, Used: r.Used,
			Incarnation: uint64(r.Incarnation), StartCounter: r.StartCounter, StartId: r.StartID, Failed: r.Failed,
			AdoptedVersion: r.Adopted, RotFound: r.RotFound, RotMended: r.RotMended}
		if p := r.Resync; p != nil {
			m.Resync = &pb.ResyncReport{Groups: uint32(p.Groups), Compared: uint32(p.Compared),
				ChunksLeft: p.ChunksLeft, BytesCopied: p.BytesCopied, BytesPerSecond: p.BytesPerSecond,
				Stuck: p.Stuck, CopiedPerSecond: p.CopiedPerSecond, SettledPerSecond: p.SettledPerSecond}
		}
		if p := r.Scrub; p != nil {
			m.Scrub = &pb.ScrubReport{Run: p.Run, State: p.State, BytesDone: p.BytesDone,
				BytesTotal: p.BytesTotal, StartedMs: p.Started.UnixMilli(), Rotten: p.Rotten, Mended: p.Mended,
				Unmended: p.Unmended, Rate: p.Rate, Volume: uint64(p.Volume)}
			if !p.Ended.IsZero() {
				m.Scrub.EndedMs = p.Ended.UnixMilli()
			}
		}
		if len(r.Volumes) > 0 {
			m.Volumes = make(map[uint64]uint64, len(r.Volumes))
			for v, gen := range r.Volumes {
				m.Volumes[uint64(v)] = uint64(gen)
			}
		}
		for _, v := range r.Freed {
			m.Freed = append(m.Freed, uint64(v))
		}
		out[i] = m
	}
	return out
}

// AttachRequest asks for a volume's one session.
type AttachRequest struct {
	Volume     string             // name; empty: the only volume
	ID         cluster.VolumeID   // which, whatever it is called by now; 0: the name says it
	Client     string             // unique id of this process
	Host       string             // for people
	Force      bool               // fence whoever holds it
	GuestAlive bool               // the same kernel device goes on: not a fresh attach
	Continues  cluster.Generation // with GuestAlive: of the session that the guest had; 0: not known
	ReadOnly   bool
}

// Session is an attached volume.
type Session struct {
	ID         uint64
	Volume     *cluster.Volume
	Generation cluster.Generation
	Lease      time.Duration // renew every third of it
	Map        *cluster.Map
	Before     Before
}

// Before is what the session before left, where it was not detached cleanly.
// The zero value but for ResumePossible: it was, or there was none.
type Before struct {
	// Incarnations under which in-sync copies may be sources (rule 6). A device
	// that is missing, or answers with another one, has no source for it.
	Incarnations map[cluster.DeviceID]cluster.Incarnation
	Broken       map[cluster.PGID][]cluster.DeviceID // no sources there all the same
	// ResumePossible: no acked write is known to be lost. Only then may a guest go
	// on; else only a fresh attach is right.
	ResumePossible bool
	// Fence are the devices to fence besides those in sync and the targets: the
	// old client may read from them (rule 26).
	Fence []cluster.DeviceID
	// Wait is how long to wait, from the answer on, when one device of all these
	// cannot be fenced (rule 15). 0: no need.
	Wait time.Duration
}

// Source reports whether the device, which answered in that incarnation, may be
// the source of the group's chunks.
func (b *Before) Source(pg cluster.PGID, id cluster.DeviceID, inc cluster.Incarnation) bool {
	want, known := b.Incarnations[id]
	return known && want == inc && !slices.Contains(b.Broken[pg], id)
}

// Attach takes the volume's session under a new generation. ErrRefused: someone
// else holds it; the message says who.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (*Session, error) {
	req := &pb.AttachRequest{Volume: r.Volume, VolumeId: uint64(r.ID), Client: r.Client, Host: r.Host, Force: r.Force,
		GuestAlive: r.GuestAlive, Continues: uint64(r.Continues), ReadOnly: r.ReadOnly, Request: rand.Text()}
	op := "attach volume " + r.Volume
	if r.Volume == "" {
		op = "attach the only volume"
	}
	resp, err := call(ctx, c, op, req, pbconnect.MdmClient.Attach)
	if err != nil {
		return nil, err
	}
	delta, err := pb.ToDelta(resp.Map)
	if err != nil {
		return nil, &OpError{Op: op, Err: err}
	}
	m, err := cluster.NewMap().Apply(delta)
	if err != nil {
		return nil, &OpError{Op: op, Err: err}
	}
	return &Session{ID: resp.Session, Volume: pb.ToVolume(resp.Volume), Map: m,
		Generation: cluster.Generation(resp.Generation),
		Lease:      time.Duration(resp.LeaseMs) * time.Millisecond, Before: before(resp)}, nil
}

func before(r *pb.AttachResponse) Before {
	b := Before{ResumePossible: r.ResumePossible, Wait: time.Duration(r.WaitMs) * time.Millisecond,
		Incarnations: make(map[cluster.DeviceID]cluster.Incarnation, len(r.Previous))}
	for _, p := range r.Previous {
		b.Incarnations[cluster.DeviceID(p.Device)] = cluster.Incarnation(p.Incarnation)
	}
	for _, x := range r.Broken {
		if b.Broken == nil {
			b.Broken = map[cluster.PGID][]cluster.DeviceID{}
		}
		b.Broken[cluster.PGID(x.Pg)] = append(b.Broken[cluster.PGID(x.Pg)], cluster.DeviceID(x.Device))
	}
	for _, id := range r.Fence {
		b.Fence = append(b.Fence, cluster.DeviceID(id))
	}
	return b
}

// Abandon ends the session as a client's death does, at once: acked writes may
// not be flushed, and a later attach has to resolve what is left.
func (c *Client) Abandon(ctx context.Context, h Held) error {
	_, err := call(ctx, c, "abandon volume "+h.Name, h.request(true), pbconnect.MdmClient.Detach)
	return err
}

// Held is a session, as its holder knows it.
type Held struct {
	Volume     cluster.VolumeID // 0: the name says which
	Name       string           // as it was at the attach
	Client     string
	Generation cluster.Generation
}

func (h Held) request(unflushed bool) *pb.DetachRequest {
	return &pb.DetachRequest{Volume: h.Name, VolumeId: uint64(h.Volume), Client: h.Client,
		Generation: uint64(h.Generation), Unflushed: unflushed}
}

// Detach ends the session of a client that has flushed everything; else see
// Abandon. It is no error when the session is gone already.
func (c *Client) Detach(ctx context.Context, h Held) error {
	_, err := call(ctx, c, "detach volume "+h.Name, h.request(false), pbconnect.MdmClient.Detach)
	return err
}

// SessionState is what a client reports about a volume that it has attached.
type SessionState struct {
	Volume     cluster.VolumeID
	Generation cluster.Generation
	// AdoptedVersion is a map version under which every device in sync was opened
	// (fenced), and no write or flush issued under an older one is outstanding.
	// 0: not yet attached.
	AdoptedVersion uint64
	// SoundVersion is a map version at whose incarnations the client holds every
	// device in sync without having lost an acked write: the guest may resume even
	// though copies lost their caches before. 0: says nothing.
	SoundVersion uint64
	// Roomless are devices on which writes have found no room; they wait for it.
	Roomless []cluster.DeviceID
}

// RenewSession keeps the leases of all sessions of one client. lost names the
// volumes whose session is no longer the client's.
func (c *Client) RenewSession(ctx context.Context, client string, sessions []SessionState,
) (lost []cluster.VolumeID, err error) {
	req := &pb.RenewSessionRequest{Client: client}
	for _, s := range sessions {
		x := &pb.SessionState{Volume: uint64(s.Volume), Generation: uint64(s.Generation),
			AdoptedVersion: s.AdoptedVersion, SoundVersion: s.SoundVersion}
		for _, id := range s.Roomless {
			x.Roomless = append(x.Roomless, uint32(id))
		}
		req.Sessions = append(req.Sessions, x)
	}
	resp, err := call(ctx, c, "renew the leases of attached volumes", req,
		pbconnect.MdmClient.RenewSession)
	if err != nil {
		return nil, err
	}
	for _, id := range resp.Lost {
		lost = append(lost, cluster.VolumeID(id))
	}
	return lost, nil
}

// DropRequest reports that a device's copies cannot be taken as in sync.
type DropRequest struct {
	Volume     cluster.VolumeID
	Generation cluster.Generation
	Device     cluster.DeviceID
	Reason     string // for people: events and status show it
}

// DropReplica takes the device out of the in-sync sets of the volume's groups.
// last names the groups that keep it because it is their last in-sync copy.
func (c *Client) DropReplica(ctx context.Context, r DropRequest,
) (dropped, last []cluster.PGID, err error) {
	req := &pb.DropReplicaRequest{Volume: uint64(r.Volume), Generation: uint64(r.Generation),
		Device: uint32(r.Device), Reason: r.Reason}
	resp, err := call(ctx, c, fmt.Sprintf("drop device %d from its groups", r.Device), req,
		pbconnect.MdmClient.DropReplica)
	if err != nil {
		return nil, nil, err
	}
	for _, id := range resp.Dropped {
		dropped = append(dropped, cluster.PGID(id))
	}
	for _, id := range resp.Last {
		last = append(last, cluster.PGID(id))
	}
	return dropped, last, nil
}
