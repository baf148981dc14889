// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/rand"
	"fmt"
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
}

// DeviceReport is the state of one device, sent with each renewal.
type DeviceReport struct {
	UUID         cluster.UUID
	Path         string
	Size         uint64 // bytes usable for chunks
	Used         uint64 // bytes in allocated chunks
	Incarnation  cluster.Incarnation
	StartCounter uint64
	Failed       string                                  // why it does not serve; empty: it serves
	Volumes      map[cluster.VolumeID]cluster.Generation // persisted generations
	Freed        []cluster.VolumeID                      // deleted volumes of which nothing is left
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
		Version: r.Version, Cluster: pb.FromUUID(r.Cluster), Devices: fromReports(r.Devices)}
	op := "register server " + r.Name
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
	req := &pb.RenewServerRequest{Name: name, LeaseId: lease, Devices: fromReports(devices)}
	resp, err := call(ctx, c, "renew the lease of server "+name, req, pbconnect.MdmClient.RenewServer)
	if err != nil {
		return false, err
	}
	return resp.Known, nil
}

func fromReports(reports []DeviceReport) []*pb.DeviceReport {
	out := make([]*pb.DeviceReport, len(reports))
	for i, r := range reports {
		m := &pb.DeviceReport{Uuid: pb.FromUUID(r.UUID), Path: r.Path, Size: r.Size, Used: r.Used,
			Incarnation: uint64(r.Incarnation), StartCounter: r.StartCounter, Failed: r.Failed}
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
	Volume     string // name; empty: the only volume
	Client     string // unique id of this process
	Host       string // for people
	Force      bool   // fence whoever holds it
	GuestAlive bool   // the same kernel device goes on: not a fresh attach
	ReadOnly   bool
}

// Session is an attached volume.
type Session struct {
	ID         uint64
	Volume     *cluster.Volume
	Generation cluster.Generation
	Lease      time.Duration // renew every third of it
	Map        *cluster.Map
}

// Attach takes the volume's session under a new generation. ErrRefused: someone
// else holds it; the message says who.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (*Session, error) {
	req := &pb.AttachRequest{Volume: r.Volume, Client: r.Client, Host: r.Host, Force: r.Force,
		GuestAlive: r.GuestAlive, ReadOnly: r.ReadOnly, Request: rand.Text()}
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
		Lease:      time.Duration(resp.LeaseMs) * time.Millisecond}, nil
}

// Detach ends the session. It is no error when the session is gone already.
func (c *Client) Detach(ctx context.Context, volume, client string, gen cluster.Generation) error {
	req := &pb.DetachRequest{Volume: volume, Client: client, Generation: uint64(gen)}
	_, err := call(ctx, c, "detach volume "+volume, req, pbconnect.MdmClient.Detach)
	return err
}

// SessionState is what a client reports about a volume that it has attached.
type SessionState struct {
	Volume         cluster.VolumeID
	Generation     cluster.Generation
	AdoptedVersion uint64 // no write issued under an older map is outstanding
}

// RenewSession keeps the leases of all sessions of one client. lost names the
// volumes whose session is no longer the client's.
func (c *Client) RenewSession(ctx context.Context, client string, sessions []SessionState,
) (lost []cluster.VolumeID, err error) {
	req := &pb.RenewSessionRequest{Client: client}
	for _, s := range sessions {
		req.Sessions = append(req.Sessions, &pb.SessionState{Volume: uint64(s.Volume),
			Generation: uint64(s.Generation), AdoptedVersion: s.AdoptedVersion})
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
