// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"connectrpc.com/connect"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
	"braid/mdm/state"
)

// planAgain is how long a plan that was refused is left alone: space and devices
// may have come meanwhile.
const planAgain = 10 * time.Second

// mover is what the leader remembers of the moves.
type mover struct {
	mu      sync.Mutex // guards what follows; never held across a call
	layout  uint64     // fingerprint of what was planned last; 0: nothing yet
	refused string     // why that plan was not carried out
	again   time.Time
}

// place plans moves when what decides about places has changed: devices came,
// went for good, or are to be removed. The moves themselves are the care's.
func (l *leader) place(ctx context.Context) error {
	var layout uint64
	moves := false
	l.store.read(func(st *state.State) { layout, moves = st.Layout(l.now()), st.Policy.Resync })
	l.mover.mu.Lock()
	same := l.mover.layout == layout && (l.mover.refused == "" || l.now().Before(l.mover.again))
	l.mover.mu.Unlock()
	if same || !moves {
		return nil
	}
	used := l.leases.usage()
	err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		plan, err := st.PlanMoves(state.Membership{Used: used}, now)
		if err == nil {
			err = plan.Room()
		}
		if err != nil {
			return nil, err
		}
		return st.Move(plan, "devices changed", now), nil
	})
	var refusal *state.Refusal
	if err != nil && !errors.As(err, &refusal) {
		return fmt.Errorf("plan where data is to lie: %w", err)
	}
	l.mover.mu.Lock()
	defer l.mover.mu.Unlock()
	l.mover.layout, l.mover.refused = layout, ""
	if refusal != nil {
		if l.mover.refused != refusal.Text {
			l.log.Warn("data stays where it is", "reason", refusal.Text)
		}
		l.mover.refused, l.mover.again = refusal.Text, l.now().Add(planAgain)
	}
	return nil
}

// why says why data does not move where it should.
func (m *mover) why() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.refused
}

// toPlan translates a plan, and says how long it takes.
func (a *api) toPlan(p state.MovePlan) *pb.MovePlan {
	out := &pb.MovePlan{Groups: uint32(len(p.Moves)), Copies: uint32(p.Copies), Least: uint32(p.Least),
		Rebuilt: uint32(p.Rebuilt), Bytes: p.Bytes, Warnings: p.Warnings,
		Rate: assumedRate}
	a.m.store.read(func(st *state.State) {
		if bound := st.Settings().ResyncRate; bound > 0 {
			out.Rate = min(out.Rate, bound)
		}
	})
	for _, f := range p.Fill {
		out.Fill = append(out.Fill, &pb.Fill{Device: uint32(f.Device), Name: f.Name, Size: f.Size, Used: f.Used,
			After: f.After, Comes: f.Comes, Goes: f.Goes})
		out.Seconds = max(out.Seconds, (f.Comes+out.Rate-1)/out.Rate)
	}
	for _, f := range p.Flows {
		out.Flows = append(out.Flows, &pb.Flow{From: uint32(f.From), To: uint32(f.To), Bytes: f.Bytes})
	}
	return out
}

// assumedRate is how many bytes a second a device is assumed to take, for plans.
const assumedRate = 64 << 20

func toDevices(ids []uint32) []cluster.DeviceID {
	out := make([]cluster.DeviceID, len(ids))
	for i, id := range ids {
		out[i] = cluster.DeviceID(id)
	}
	return out
}

// PlanMoves shows what would move and changes nothing.
func (a *api) PlanMoves(ctx context.Context, r *connect.Request[pb.PlanMovesRequest],
) (*connect.Response[pb.MovePlan], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	m := state.Membership{Used: l.leases.usage(), Without: map[cluster.DeviceID]bool{}}
	for _, id := range toDevices(r.Msg.Without) {
		m.Without[id] = true
	}
	var plan state.MovePlan
	a.m.store.read(func(st *state.State) { plan, err = st.PlanMoves(m, l.now()) })
	if err != nil {
		return nil, a.coded(ctx, err)
	}
	return connect.NewResponse(a.toPlan(plan)), nil
}

// Evacuate empties devices, which are then removed, or takes that back.
func (a *api) Evacuate(ctx context.Context, r *connect.Request[pb.EvacuateRequest],
) (*connect.Response[pb.MovePlan], error) {
	var plan state.MovePlan
	err := a.change(ctx, func(st *state.State, l *leader, now time.Time) (*state.Tx, error) {
		ids := toDevices(r.Msg.Devices)
		if r.Msg.Server != "" {
			ids = append(ids, st.DevicesOn(r.Msg.Server)...)
		}
		tx, p, err := st.PlanRemoval(ids, !r.Msg.Cancel, state.Membership{Used: l.leases.usage()}, now)
		if plan = p; err == nil && r.Msg.DryRun {
			tx = st.Begin(now)
		}
		return tx, err
	})
	if err != nil {
		return nil, err
	}
	if l := a.m.leads(); l != nil && !r.Msg.DryRun {
		l.tendNow(decided(ctx))
	}
	return connect.NewResponse(a.toPlan(plan)), nil
}

// Moves tells what is still to move.
func (a *api) Moves(ctx context.Context, r *connect.Request[pb.MovesRequest],
) (*connect.Response[pb.MovesResponse], error) {
	if resp := askLeader(ctx, a.m, r, pbconnect.MdmClient.Moves); resp != nil {
		return resp, nil
	}
	resp := &pb.MovesResponse{}
	if l := a.m.leads(); l != nil {
		resp.Refused = l.mover.why()
	}
	a.m.store.read(func(st *state.State) {
		left := st.MovesLeft(a.used())
		resp.Groups, resp.Running, resp.Bytes = uint32(left.Groups), uint32(left.Running), left.Bytes
		resp.Paused, resp.GraceMs = st.Settings().Paused, uint64(st.Settings().Grace.Milliseconds())
		resp.Maintenance = left.Maintenance
		for _, id := range left.Leaving {
			resp.Leaving = append(resp.Leaving, uint32(id))
		}
	})
	return connect.NewResponse(resp), nil
}

// SetMoves pauses or resumes moves, or sets the grace time.
func (a *api) SetMoves(ctx context.Context, r *connect.Request[pb.SetMovesRequest],
) (*connect.Response[pb.MovesResponse], error) {
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		next := st.Settings()
		if r.Msg.Paused != nil {
			next.Paused = *r.Msg.Paused
		}
		if r.Msg.GraceMs != nil {
			next.Grace = time.Duration(min(*r.Msg.GraceMs, 1<<40)) * time.Millisecond
		}
		return st.Set(next, now)
	})
	if err != nil {
		return nil, err
	}
	if l := a.m.leads(); l != nil {
		l.tendNow(decided(ctx))
	}
	return a.Moves(ctx, connect.NewRequest(&pb.MovesRequest{}))
}

// Maintain begins or ends a server's maintenance.
func (a *api) Maintain(ctx context.Context, r *connect.Request[pb.MaintainRequest],
) (*connect.Response[pb.MaintainResponse], error) {
	err := a.change(ctx, func(st *state.State, l *leader, now time.Time) (*state.Tx, error) {
		return st.Maintain(r.Msg.Server, r.Msg.Enter, r.Msg.Protected, state.Membership{Used: l.leases.usage()}, now)
	})
	if err != nil {
		return nil, err
	}
	if l := a.m.leads(); l != nil {
		l.tendNow(decided(ctx))
	}
	resp := &pb.MaintainResponse{}
	a.m.store.read(func(st *state.State) { resp.GroupsLeft = uint32(st.GroupsOn(r.Msg.Server)) })
	return connect.NewResponse(resp), nil
}
