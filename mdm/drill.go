// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"time"

	"connectrpc.com/connect"

	"braid/mdm/pb"
	"braid/mdm/state"
)

// drillMost bounds a drill.
const drillMost = 10 * time.Minute

// drill is an order to a server.
type drill struct {
	order *pb.DrillOrder
	ends  time.Time
}

// drill is what a server that renews its lease is told.
func (l *leases) drill(server string, now time.Time) *pb.DrillOrder {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d, is := l.drills[server]; is && now.Before(d.ends) {
		return d.order
	}
	return nil
}

// drilling is the server at which a drill goes on.
func (l *leases) drilling(now time.Time) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for server, d := range l.drills {
		if now.Before(d.ends) {
			return server
		}
	}
	return ""
}

// restarted forgets that a server was to be killed, or its next process would be, too.
func (l *leases) restarted(server string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if d, is := l.drills[server]; is && d.order.Kind == state.DrillKill {
		delete(l.drills, server)
	}
}

// Drill orders a fault, where the cluster can stand it.
func (a *api) Drill(ctx context.Context, r *connect.Request[pb.DrillRequest],
) (*connect.Response[pb.DrillResponse], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	if !a.m.config.AllowDrills {
		return nil, connect.NewError(connect.CodeFailedPrecondition, errNoDrills)
	}
	now, during := l.now(), time.Duration(min(r.Msg.ForMs, uint64(drillMost.Milliseconds())))*time.Millisecond
	var volume uint64
	a.m.store.read(func(st *state.State) {
		if err = st.CheckDrill(r.Msg.Kind, r.Msg.Server, l.leases.drilling(now)); err == nil && r.Msg.Volume != "" {
			volume, err = st.DrillVolume(r.Msg.Volume)
		}
	})
	if err != nil {
		return nil, a.coded(ctx, err)
	}
	within := 2 * l.leases.serverTerm / 3 // servers renew their leases more often
	resp := &pb.DrillResponse{WithinMs: uint64(within.Milliseconds())}
	if r.Msg.DryRun || r.Msg.Kind == state.DrillFull {
		return connect.NewResponse(resp), nil
	}
	if err := l.change(decided(ctx), func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.TellDrill(r.Msg.Kind, r.Msg.Server, during, now), nil
	}); err != nil {
		return nil, a.coded(ctx, err)
	}
	if r.Msg.Kind == state.DrillLeader {
		time.AfterFunc(100*time.Millisecond, l.end) // after the answer
		return connect.NewResponse(resp), nil
	}
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	l.leases.drills[r.Msg.Server] = drill{ends: now.Add(during + within), order: &pb.DrillOrder{
		Id: uint64(now.UnixNano()), Kind: r.Msg.Kind, ForMs: uint64(during.Milliseconds()), DelayMs: r.Msg.DelayMs,
		Volume: volume}}
	return connect.NewResponse(resp), nil
}

var errNoDrills = errors.New("this metadata manager does not allow drills; start it with --allow-drills")
