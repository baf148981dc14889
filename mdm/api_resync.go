// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"

	"connectrpc.com/connect"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/state"
)

// ReportDevice decides about a device that a client cannot reach: mdm's own
// look at it counts for more than the client's word.
func (a *api) ReportDevice(ctx context.Context, r *connect.Request[pb.ReportDeviceRequest],
) (*connect.Response[pb.ReportDeviceResponse], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	t := trouble{volume: cluster.VolumeID(r.Msg.Volume), generation: cluster.Generation(r.Msg.Generation),
		device: cluster.DeviceID(r.Msg.Device), reason: r.Msg.Reason, faultSets: int(r.Msg.FaultSets),
		attaching: r.Msg.Attaching}
	verdict, last, err := l.judge(decided(ctx), t)
	if err != nil {
		return nil, a.coded(ctx, err)
	}
	return connect.NewResponse(&pb.ReportDeviceResponse{Evicted: verdict.evicted, Verdict: verdict.text,
		Last: groupIDs(last)}), nil
}

// ResyncReady writes nothing: whether a barrier is met follows from reports.
func (a *api) ResyncReady(ctx context.Context, r *connect.Request[pb.ResyncReadyRequest],
) (*connect.Response[pb.ResyncReadyResponse], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	resp, progress := &pb.ResyncReadyResponse{}, l.leases.progress()
	a.m.store.read(func(st *state.State) {
		for _, ready := range st.ResyncReady(cluster.DeviceID(r.Msg.Device), progress) {
			g := &pb.ReadyGroup{Pg: uint32(ready.PG), Epoch: ready.Epoch, Broken: ready.Broken}
			for _, s := range ready.Sources {
				g.Sources = append(g.Sources, incarnation(s))
			}
			resp.Groups = append(resp.Groups, g)
		}
	})
	return connect.NewResponse(resp), nil
}

func incarnation(s state.Source) *pb.DeviceIncarnation {
	return &pb.DeviceIncarnation{Device: uint32(s.Device), Incarnation: uint64(s.Incarnation)}
}

func (a *api) JoinInSync(ctx context.Context, r *connect.Request[pb.JoinInSyncRequest],
) (*connect.Response[pb.JoinInSyncResponse], error) {
	groups := make([]state.JoinGroup, len(r.Msg.Groups))
	for i, g := range r.Msg.Groups {
		groups[i] = state.JoinGroup{PG: cluster.PGID(g.Pg), Epoch: g.Epoch}
	}
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.JoinInSyncResponse{}
	if err := l.change(decided(ctx), l.planJoin(r.Msg, groups, resp)); err != nil {
		return nil, a.coded(ctx, err)
	}
	return connect.NewResponse(resp), nil
}

// putBefore tells what the session before left.
func putBefore(resp *pb.AttachResponse, b state.Before) {
	resp.ResumePossible, resp.WaitMs = b.Resume, uint32(b.Wait.Milliseconds())
	resp.Previous, resp.Broken, resp.Fence = nil, nil, nil
	for _, s := range b.Sources {
		resp.Previous = append(resp.Previous, incarnation(s))
	}
	for _, x := range b.Broken {
		resp.Broken = append(resp.Broken, &pb.BrokenCopy{Pg: uint32(x.PG), Device: uint32(x.Device)})
	}
	for _, id := range b.Fence {
		resp.Fence = append(resp.Fence, uint32(id))
	}
}
