// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
	"braid/mdm/state"
)

// api serves the calls; see mdm.proto.
type api struct{ m *Member }

var _ pbconnect.MdmHandler = (*api)(nil)

// leader returns this member's term, or the refusal that names who leads.
func (a *api) leader(ctx context.Context) (*leader, error) {
	if text := a.m.held(); text != "" {
		return nil, connect.NewError(connect.CodeUnavailable, errors.New(text))
	}
	if l := a.m.leads(); l != nil {
		return l, nil
	}
	return nil, a.notLeading(ctx)
}

func (a *api) notLeading(ctx context.Context) error {
	addr := a.m.leaderAddr(ctx)
	text := "this member does not lead, and no other does: an election is going on, or a majority of " +
		"the members is down"
	if addr != "" {
		text = "this member does not lead; ask " + addr
	}
	err := connect.NewError(connect.CodeUnavailable, errors.New(text))
	if addr != "" {
		err.Meta().Set(client.LeaderKey, addr)
	}
	return err
}

// change plans and commits at the leader and gives errors the API's codes.
func (a *api) change(ctx context.Context,
	plan func(*state.State, *leader, time.Time) (*state.Tx, error)) error {
	l, err := a.leader(ctx)
	if err != nil {
		return err
	}
	err = l.change(decided(ctx), func(st *state.State, now time.Time) (*state.Tx, error) {
		return plan(st, l, now)
	})
	return a.coded(ctx, err)
}

// decided keeps a change going when its caller gives up: it will ask again, and
// then the work is done. Commits have a time limit of their own.
func decided(ctx context.Context) context.Context { return context.WithoutCancel(ctx) }

func (a *api) coded(ctx context.Context, err error) error {
	var refusal *state.Refusal
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refusal):
		return connect.NewError(refusalCode(refusal.Kind), errors.New(refusal.Text))
	case errors.Is(err, errDeposed):
		return a.notLeading(ctx)
	}
	// Aborted: what became of it is unknown. Callers repeat what can be repeated.
	return connect.NewError(connect.CodeAborted, fmt.Errorf("the metadata manager could not make the "+
		"change: %w; are most of its members up, and does the disk below --data-dir work?", err))
}

func refusalCode(kind error) connect.Code {
	switch kind {
	case state.ErrInvalid:
		return connect.CodeInvalidArgument
	case state.ErrNotFound:
		return connect.CodeNotFound
	case state.ErrExists:
		return connect.CodeAlreadyExists
	}
	return connect.CodeFailedPrecondition
}

func invalid(err error) error { return connect.NewError(connect.CodeInvalidArgument, err) }

// RegisterServer: the lease's id is the revision of the state it was planned
// on, which no other registration of that server can have.
func (a *api) RegisterServer(ctx context.Context, r *connect.Request[pb.RegisterServerRequest],
) (*connect.Response[pb.RegisterServerResponse], error) {
	report, err := serverReport(r.Msg)
	if err != nil {
		return nil, invalid(err)
	}
	resp := &pb.RegisterServerResponse{}
	var answer state.Registered
	err = a.change(ctx, func(st *state.State, l *leader, now time.Time) (tx *state.Tx, err error) {
		resp.LeaseId = uint64(st.Revision)
		resp.LeaseMs = uint32(l.leases.serverTerm.Milliseconds())
		resp.Cluster = pb.FromUUID(st.Cluster())
		if tx, answer, err = st.Register(report, resp.LeaseId, now); err == nil {
			l.leases.renewServer(report.Name, now)
			l.leases.restarted(report.Name)
		}
		return tx, err
	})
	if err != nil {
		return nil, err
	}
	resp.Refused = answer.Refused
	for i, id := range answer.Devices {
		resp.DeviceIds = append(resp.DeviceIds, uint32(id))
		if l := a.m.leads(); l != nil && id != 0 {
			d := r.Msg.Devices[i]
			l.leases.report(id, d)
		}
	}
	if l := a.m.leads(); l != nil {
		l.tendNow(decided(ctx))
	}
	return connect.NewResponse(resp), nil
}

func serverReport(r *pb.RegisterServerRequest) (state.ServerReport, error) {
	uuid, err := pb.ToUUID(r.Cluster)
	if err != nil {
		return state.ServerReport{}, err
	}
	devices, err := deviceReports(r.Devices)
	return state.ServerReport{Name: r.Name, Addr: r.Addr, FaultSet: r.FaultSet, Version: r.Version,
		Cluster: uuid, Devices: devices, Spare: r.Spare, Drills: r.AllowDrills}, err
}

func deviceReports(reports []*pb.DeviceReport) ([]state.DeviceReport, error) {
	out := make([]state.DeviceReport, len(reports))
	for i, r := range reports {
		uuid, err := pb.ToUUID(r.Uuid)
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", r.Path, err)
		}
		out[i] = state.DeviceReport{UUID: uuid, Path: r.Path, Size: r.Size, StartCounter: r.StartCounter,
			StartID:     r.StartId,
			Incarnation: cluster.Incarnation(r.Incarnation), Failed: r.Failed}
	}
	return out, nil
}

// RenewServer writes to etcd only when a device changed. A renewal without any
// device is a server's farewell.
func (a *api) RenewServer(ctx context.Context, r *connect.Request[pb.RenewServerRequest],
) (*connect.Response[pb.RenewServerResponse], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	reports, err := deviceReports(r.Msg.Devices)
	if err != nil {
		return nil, invalid(err)
	}
	var tx *state.Tx
	var known bool
	var news []mending
	resp := &pb.RenewServerResponse{}
	ids := map[cluster.UUID]cluster.DeviceID{}
	a.m.store.read(func(st *state.State) {
		tx, known = st.Renew(r.Msg.Name, r.Msg.LeaseId, reports, l.now())
		set := st.Settings()
		resp.ResyncRate, resp.Reserve = set.ResyncRate, set.Reserve
		resp.ResyncP99Us = uint64(set.ResyncP99.Microseconds())
		devices, _ := st.Devices()
		for _, d := range devices {
			ids[d.UUID] = d.ID
		}
	})
	switch {
	case !known:
		return connect.NewResponse(&pb.RenewServerResponse{}), nil
	case len(reports) == 0:
		l.leases.endServer(r.Msg.Name)
		err = l.expire(decided(ctx))
	default:
		l.leases.renewServer(r.Msg.Name, l.now())
		resp.Drill = l.leases.drill(r.Msg.Name, l.now())
		for i, d := range r.Msg.Devices {
			if id := ids[reports[i].UUID]; id != 0 {
				news = append(news, mended(id, l.leases.report(id, d), d)...)
				resp.Scrubs = l.leases.order(resp.Scrubs, id, d)
			}
		}
		if !tx.Empty() {
			err = l.change(decided(ctx), func(st *state.State, now time.Time) (*state.Tx, error) {
				tx, known = st.Renew(r.Msg.Name, r.Msg.LeaseId, reports, now)
				return tx, nil
			})
		}
	}
	if err != nil {
		return nil, a.coded(ctx, err)
	}
	if len(reports) == 0 || !tx.Empty() {
		l.tendNow(decided(ctx))
	}
	l.tell(decided(ctx), news)
	resp.Known = known
	return connect.NewResponse(resp), nil
}

func (a *api) RemoveDevice(ctx context.Context, r *connect.Request[pb.RemoveDeviceRequest],
) (*connect.Response[pb.RemoveDeviceResponse], error) {
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		return st.RemoveDevice(cluster.DeviceID(r.Msg.Id), r.Msg.Force, now)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.RemoveDeviceResponse{}), nil
}

func (a *api) DropReplica(ctx context.Context, r *connect.Request[pb.DropReplicaRequest],
) (*connect.Response[pb.DropReplicaResponse], error) {
	resp := &pb.DropReplicaResponse{}
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		tx, dropped, last, err := st.DropReplica(cluster.VolumeID(r.Msg.Volume),
			cluster.Generation(r.Msg.Generation), cluster.DeviceID(r.Msg.Device), r.Msg.Reason, now)
		resp.Dropped, resp.Last = groupIDs(dropped), groupIDs(last)
		return tx, err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

func groupIDs(ids []cluster.PGID) []uint32 {
	out := make([]uint32, len(ids))
	for i, id := range ids {
		out[i] = uint32(id)
	}
	return out
}
