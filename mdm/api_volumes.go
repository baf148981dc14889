// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/state"
)

func (a *api) CreateVolume(ctx context.Context, r *connect.Request[pb.CreateVolumeRequest],
) (*connect.Response[pb.VolumeResponse], error) {
	q := r.Msg
	spec := state.VolumeSpec{Name: q.Name, Size: q.Size, Replicas: int(q.Replicas),
		StripeUnit: q.StripeUnit, StripeWidth: q.StripeWidth, BlockSize: q.BlockSize,
		Request: q.Request}
	resp := &pb.VolumeResponse{}
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		tx, v, warnings, err := st.CreateVolume(spec, now)
		if err == nil {
			resp.Volume, resp.Warnings = volumeMessage(v, nil), warnings
		}
		return tx, err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

func (a *api) ListVolumes(context.Context, *connect.Request[pb.ListVolumesRequest],
) (*connect.Response[pb.ListVolumesResponse], error) {
	resp := &pb.ListVolumesResponse{}
	a.m.store.read(func(st *state.State) {
		for _, v := range st.Volumes() {
			resp.Volumes = append(resp.Volumes, volumeMessage(v, st.Session(v.ID)))
		}
	})
	return connect.NewResponse(resp), nil
}

func volumeMessage(v *state.Volume, s *state.Session) *pb.Volume {
	m := &pb.Volume{Id: uint64(v.ID), Name: v.Name, Size: v.Size, Replicas: uint32(v.Replicas),
		StripeUnit: v.StripeUnit, StripeWidth: v.StripeWidth, BlockSize: v.BlockSize, PgSet: v.PGSet,
		Generation: uint64(v.Generation), Attached: v.Attached}
	if s != nil {
		m.AttachedBy = s.Host + " (" + s.Client + ")"
		m.AttachedSince = s.Since.Format(time.RFC3339)
	}
	return m
}

func (a *api) ResizeVolume(ctx context.Context, r *connect.Request[pb.ResizeVolumeRequest],
) (*connect.Response[pb.VolumeResponse], error) {
	resp := &pb.VolumeResponse{}
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		tx, v, warnings, err := st.ResizeVolume(r.Msg.Name, r.Msg.Size, r.Msg.Shrink, now)
		if err == nil {
			resp.Volume, resp.Warnings = volumeMessage(v, st.Session(v.ID)), warnings
		}
		return tx, err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

// RenameVolume gives a volume another name, also while it is attached.
func (a *api) RenameVolume(ctx context.Context, r *connect.Request[pb.RenameVolumeRequest],
) (*connect.Response[pb.VolumeResponse], error) {
	resp := &pb.VolumeResponse{}
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		tx, v, err := st.RenameVolume(cluster.VolumeID(r.Msg.Id), r.Msg.Name, r.Msg.To, now)
		if err == nil {
			resp.Volume = volumeMessage(v, st.Session(v.ID))
		}
		return tx, err
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(resp), nil
}

func (a *api) DeleteVolume(ctx context.Context, r *connect.Request[pb.DeleteVolumeRequest],
) (*connect.Response[pb.DeleteVolumeResponse], error) {
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		return st.DeleteVolume(r.Msg.Name, r.Msg.Force, now)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.DeleteVolumeResponse{}), nil
}

func (a *api) Attach(ctx context.Context, r *connect.Request[pb.AttachRequest],
) (*connect.Response[pb.AttachResponse], error) {
	q := r.Msg
	request := state.AttachRequest{Volume: q.Volume, Client: q.Client, Host: q.Host, Request: q.Request,
		Force: q.Force, GuestAlive: q.GuestAlive, Continues: cluster.Generation(q.Continues),
		ReadOnly: q.ReadOnly}
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	// A session whose lease ran out must not be in the way until the next tick, and
	// what the copies are worth has to be known.
	if err := errors.Join(l.expire(decided(ctx)), l.tend(decided(ctx))); err != nil {
		return nil, a.coded(ctx, err)
	}
	resp := &pb.AttachResponse{LeaseMs: uint32(l.leases.sessionTerm.Milliseconds())}
	var volume cluster.VolumeID
	err = l.change(decided(ctx), func(st *state.State, now time.Time) (*state.Tx, error) {
		request.Progress = l.leases.progress()
		name, err := st.NameOf(cluster.VolumeID(q.VolumeId), q.Volume)
		if err != nil {
			return nil, err
		}
		request.Volume = name
		tx, v, session, err := st.Attach(request, l.leases.persisted, now)
		if err != nil {
			return nil, err
		}
		volume = v.ID
		putBefore(resp, st.Before(v, request.Progress))
		resp.Volume = volumeMessage(v, session)
		resp.Generation, resp.Session = uint64(session.Generation), uint64(session.Generation)
		l.leases.renewSession(v.ID, session.Generation, 0, now)
		return tx, nil
	})
	if err != nil {
		return nil, a.coded(ctx, err)
	}
	a.m.store.read(func(st *state.State) {
		resp.Map = pb.FromDelta(st.Delta(0, []cluster.VolumeID{volume}))
	})
	return connect.NewResponse(resp), nil
}

func (a *api) Detach(ctx context.Context, r *connect.Request[pb.DetachRequest],
) (*connect.Response[pb.DetachResponse], error) {
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		end := st.Detach
		if r.Msg.Unflushed {
			end = st.Abandon
		}
		name, err := st.NameOf(cluster.VolumeID(r.Msg.VolumeId), r.Msg.Volume)
		if err != nil {
			return nil, err
		}
		return end(name, r.Msg.Client, cluster.Generation(r.Msg.Generation), now)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&pb.DetachResponse{}), nil
}

// devicesOf are the devices on which writes of a session find no room.
func devicesOf(s *pb.SessionState) (out []cluster.DeviceID) {
	for _, id := range s.Roomless {
		out = append(out, cluster.DeviceID(id))
	}
	return out
}

// RenewSession writes to etcd only when a client says that it survived the loss of all
// caches, or when its writes begin or end to wait for room.
func (a *api) RenewSession(ctx context.Context, r *connect.Request[pb.RenewSessionRequest],
) (*connect.Response[pb.RenewSessionResponse], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.RenewSessionResponse{}
	var sound, adopt, roomless []*pb.SessionState
	a.m.store.read(func(st *state.State) {
		for _, s := range r.Msg.Sessions {
			id, gen := cluster.VolumeID(s.Volume), cluster.Generation(s.Generation)
			adopts := !st.Adopt(id, r.Msg.Client, gen, l.now()).Empty()
			if adopts {
				adopt = append(adopt, s)
			}
			if adopts || st.Holds(id, r.Msg.Client, gen) {
				l.leases.renewSession(id, gen, s.AdoptedVersion, l.now())
				if s.SoundVersion > 0 && !st.Sound(id, gen, s.SoundVersion, l.now()).Empty() {
					sound = append(sound, s)
				}
				if !st.TellRoomless(id, gen, devicesOf(s), l.now()).Empty() {
					roomless = append(roomless, s)
				}
			} else {
				resp.Lost = append(resp.Lost, s.Volume)
			}
		}
	})
	for _, s := range adopt {
		if err := l.change(decided(ctx), func(st *state.State, now time.Time) (*state.Tx, error) {
			return st.Adopt(cluster.VolumeID(s.Volume), r.Msg.Client, cluster.Generation(s.Generation), now), nil
		}); err != nil {
			return nil, a.coded(ctx, err)
		}
	}
	for _, s := range sound {
		if err := l.change(decided(ctx), func(st *state.State, now time.Time) (*state.Tx, error) {
			return st.Sound(cluster.VolumeID(s.Volume), cluster.Generation(s.Generation), s.SoundVersion, now), nil
		}); err != nil {
			return nil, a.coded(ctx, err)
		}
	}
	for _, s := range roomless {
		if err := l.change(decided(ctx), func(st *state.State, now time.Time) (*state.Tx, error) {
			return st.TellRoomless(cluster.VolumeID(s.Volume), cluster.Generation(s.Generation), devicesOf(s), now), nil
		}); err != nil {
			return nil, a.coded(ctx, err)
		}
	}
	return connect.NewResponse(resp), nil
}
