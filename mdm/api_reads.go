// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"time"

	"connectrpc.com/connect"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
	"braid/mdm/state"
)

// catchUpTimeout is how long a member that is behind waits to see what another
// one has shown already.
const catchUpTimeout = 2 * time.Second

// used returns what the devices reported, where this member leads.
func (a *api) used() map[cluster.DeviceID]uint64 {
	if l := a.m.leads(); l != nil {
		return l.leases.usage()
	}
	return nil
}

func (a *api) Status(ctx context.Context, r *connect.Request[pb.StatusRequest],
) (*connect.Response[pb.StatusResponse], error) {
	if resp := askLeader(ctx, a.m, r, pbconnect.MdmClient.Status); resp != nil {
		return resp, nil
	}
	resp := &pb.StatusResponse{Leader: a.m.addr}
	leads := a.m.leads() != nil
	if !leads {
		resp.Leader = a.m.leaderAddr(ctx)
	}
	a.m.store.read(func(st *state.State) {
		s := st.Status(a.used())
		resp.Cluster, resp.MapVersion = pb.FromUUID(st.Cluster()), st.MapVersion()
		resp.Health, resp.Reasons = s.Health, s.Reasons
		if l := a.m.leads(); l != nil && s.GroupsDegraded > s.GroupsRebuilding {
			resp.Reasons = append(resp.Reasons, l.care.waits(st, l.now())...)
		}
		if l := a.m.leads(); l != nil {
			resp.Reasons = append(resp.Reasons, l.pilot.stuck(st)...)
		}
		if text := heldText(st); text != "" {
			resp.Health, resp.Reasons = state.Degraded, []string{text}
		}
		resp.Servers, resp.ServersUp = uint32(s.Servers), uint32(s.ServersUp)
		resp.Devices, resp.DevicesUp = uint32(s.Devices), uint32(s.DevicesUp)
		resp.Capacity, resp.Used = s.Capacity, s.Used
		resp.Volumes, resp.Attached = uint32(s.Volumes), uint32(s.Attached)
		resp.Pgs, resp.PgsDegraded = uint32(s.Groups), uint32(s.GroupsDegraded)
		resp.VolumesWaiting = uint32(s.Waiting)
		resp.PgsRebuilding = uint32(s.GroupsRebuilding)
		a.putProgress(resp, st)
		putSettings(resp, st)
		for _, m := range st.Members() {
			resp.Members = append(resp.Members, m.Name+" "+m.Addr)
		}
	})
	if !leads {
		resp.Reasons = append(resp.Reasons, "told by a member that does not lead and cannot reach the "+
			"leader: usage is not known, the rest may be old")
		if resp.Leader == "" {
			resp.Reasons = append(resp.Reasons, "no metadata manager leads: I/O goes on, changes wait until "+
				"most members are up")
		}
	}
	return connect.NewResponse(resp), nil
}

func (a *api) ListServers(ctx context.Context, r *connect.Request[pb.ListServersRequest],
) (*connect.Response[pb.ListServersResponse], error) {
	if resp := askLeader(ctx, a.m, r, pbconnect.MdmClient.ListServers); resp != nil {
		return resp, nil
	}
	resp, used := &pb.ListServersResponse{}, a.used()
	a.m.store.read(func(st *state.State) {
		devices, _ := st.Devices()
		for _, s := range st.Servers() {
			m := &pb.Server{Name: s.Name, Addr: s.Addr, FaultSet: s.FaultSet, Up: s.Up, Version: s.Version}
			for _, d := range devices {
				if d.Server == s.Name {
					m.Devices = append(m.Devices, uint32(d.ID))
					m.Capacity += d.Size
					m.Used += used[d.ID]
				}
			}
			resp.Servers = append(resp.Servers, m)
		}
	})
	return connect.NewResponse(resp), nil
}

func (a *api) ListDevices(ctx context.Context, r *connect.Request[pb.ListDevicesRequest],
) (*connect.Response[pb.ListDevicesResponse], error) {
	if resp := askLeader(ctx, a.m, r, pbconnect.MdmClient.ListDevices); resp != nil {
		return resp, nil
	}
	resp, used := &pb.ListDevicesResponse{}, a.used()
	a.m.store.read(func(st *state.State) {
		devices, records := st.Devices()
		for i, d := range devices {
			m := pb.FromDevice(d)
			m.Used, m.StartCounter, m.Failed = used[d.ID], records[i].StartCounter, records[i].Failed
			m.Spare = records[i].Spare
			resp.Devices = append(resp.Devices, m)
		}
	})
	return connect.NewResponse(resp), nil
}

// WatchMap sends the whole map or what is new, and then each change. A slow
// receiver blocks Send only for itself, and what happens meanwhile comes as one
// delta.
func (a *api) WatchMap(ctx context.Context, r *connect.Request[pb.WatchMapRequest],
	stream *connect.ServerStream[pb.MapDelta]) error {
	volumes := make([]cluster.VolumeID, len(r.Msg.Volumes))
	for i, id := range r.Msg.Volumes {
		volumes[i] = cluster.VolumeID(id)
	}
	for {
		changed, text := a.m.store.next(), a.m.held()
		if text == "" {
			break
		}
		if r.Msg.HaveVersion > 0 {
			return a.heldWatch(text)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return connect.NewError(connect.CodeUnavailable, ctx.Err())
		}
	}
	sent, first := a.catchUp(ctx, r.Msg.HaveVersion), true
	if sent < r.Msg.HaveVersion && ctx.Err() == nil {
		a.m.config.Log.Error("a receiver has a newer map than this cluster ever had, and will ignore what it is "+
			"sent; was etcd's data put back by hand? Use scli backup and mdm serve --restore",
			"receiver", r.Peer().Addr, "version", r.Msg.HaveVersion)
	}
	for ctx.Err() == nil {
		changed := a.m.store.next()
		var delta *cluster.Delta
		a.m.store.read(func(st *state.State) {
			if !st.Cluster().IsZero() {
				delta = st.Delta(sent, volumes)
			}
		})
		// Who gets everything gets every version, too: a server must not stay behind a
		// client that got the whole map a moment later (rule 24).
		if delta != nil && (first || !emptyDelta(delta) || len(volumes) == 0 && delta.Version > sent) {
			if err := stream.Send(pb.FromDelta(delta)); err != nil {
				return err
			}
			sent, first = delta.Version, false
		}
		select {
		case <-changed:
		case <-ctx.Done():
		}
	}
	return connect.NewError(connect.CodeUnavailable, ctx.Err())
}

func emptyDelta(d *cluster.Delta) bool {
	return d.From != 0 && len(d.Devices)+len(d.RemovedDevices)+len(d.Sets)+len(d.PGs)+
		len(d.Volumes)+len(d.RemovedVolumes) == 0
}

// catchUp waits until this member has seen the version that the receiver has.
// 0: it does not come, so the receiver's version is of another history (etcd was
// restored from a backup) and only a whole map helps.
func (a *api) catchUp(ctx context.Context, have uint64) uint64 {
	ctx, cancel := context.WithTimeout(ctx, catchUpTimeout)
	defer cancel()
	if err := a.m.store.reach(ctx, int64(have), true); err != nil {
		return 0
	}
	return have
}

func (a *api) Events(ctx context.Context, r *connect.Request[pb.EventsRequest],
	stream *connect.ServerStream[pb.Event]) error {
	after, limit := r.Msg.After, int(r.Msg.Limit)
	for {
		changed := a.m.store.next()
		var events []state.Event
		a.m.store.read(func(st *state.State) { events = st.Events(after, limit) })
		limit = 0 // what is still to come is not limited
		for _, e := range events {
			after = e.Seq
			if err := stream.Send(&pb.Event{Seq: e.Seq, Time: e.Time.Format(time.RFC3339Nano),
				Severity: e.Severity, Kind: e.Kind, Subject: e.Subject, Text: e.Text}); err != nil {
				return err
			}
		}
		if !r.Msg.Follow {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return connect.NewError(connect.CodeUnavailable, ctx.Err())
		}
	}
}
