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

// Terms of scheduled scrubs.
const (
	scrubLook = 10 * time.Second // between two looks whether one is due
	scrubRest = 24 * time.Hour   // after somebody has stopped one
)

// schedule writes down which scrubs have ended, and begins those that are due. It
// belongs to the leader's tick.
func (l *leader) schedule(ctx context.Context) error {
	now := l.now()
	if now.Sub(l.scrubLook) < scrubLook {
		return nil
	}
	l.scrubLook = now
	began, busy, ready := l.leases.scrubbing(now)
	empty := true
	l.store.read(func(st *state.State) { empty = st.Scrubbed(began, now).Empty() })
	if !empty {
		if err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
			return st.Scrubbed(began, now), nil
		}); err != nil {
			return err
		}
	}
	var due []uint32
	var rate uint64
	has := func(of map[cluster.DeviceID]bool) func(cluster.DeviceID) bool {
		return func(id cluster.DeviceID) bool { return of[id] }
	}
	l.store.read(func(st *state.State) {
		for _, id := range st.ScrubsDue(has(ready), has(busy), now) {
			due = append(due, uint32(id))
		}
		rate = st.Settings().ScrubRate
	})
	if len(due) > 0 {
		l.log.Info("scrubs are due", "devices", due)
		l.leases.scrub(due, &pb.ScrubOrder{Rate: rate}, now)
	}
	return nil
}

// scrubbing returns when the runs over everything began that have ended, which
// devices are being scrubbed or told to be, and which may be told.
func (l *leases) scrubbing(now time.Time) (began map[cluster.DeviceID]time.Time,
	busy, ready map[cluster.DeviceID]bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	began = map[cluster.DeviceID]time.Time{}
	busy, ready = map[cluster.DeviceID]bool{}, map[cluster.DeviceID]bool{}
	for id, r := range l.reports {
		run, order := r.GetScrub(), l.scrubs[id]
		if run.GetState() == "done" && run.GetVolume() == 0 {
			began[id] = time.Unix(0, int64(run.Run)) // see scrub
		}
		busy[id] = run.GetState() == "running" || order.GetRun() > run.GetRun() && !order.GetStop()
		ready[id] = !now.Before(l.rests[id])
	}
	return began, busy, ready
}

func toSettings(s state.Settings) *pb.Settings {
	return &pb.Settings{ScrubEveryMs: uint64(s.ScrubEvery.Milliseconds()), ScrubRate: s.ScrubRate,
		ResyncRate: s.ResyncRate, Reserve: s.Reserve, ResyncP99Us: uint64(s.ResyncP99.Microseconds())}
}

// GetSettings tells what is set.
func (a *api) GetSettings(ctx context.Context, r *connect.Request[pb.SettingsRequest],
) (*connect.Response[pb.Settings], error) {
	if resp := askLeader(ctx, a.m, r, pbconnect.MdmClient.GetSettings); resp != nil {
		return resp, nil
	}
	var now state.Settings
	a.m.store.read(func(st *state.State) { now = st.Settings() })
	return connect.NewResponse(toSettings(now)), nil
}

// SetSettings sets what the request names.
func (a *api) SetSettings(ctx context.Context, r *connect.Request[pb.SetSettingsRequest],
) (*connect.Response[pb.Settings], error) {
	var next state.Settings
	err := a.change(ctx, func(st *state.State, _ *leader, now time.Time) (*state.Tx, error) {
		next = st.Settings()
		if r.Msg.ScrubEveryMs != nil {
			next.ScrubEvery = time.Duration(min(*r.Msg.ScrubEveryMs, 1<<40)) * time.Millisecond
		}
		if r.Msg.ScrubRate != nil {
			next.ScrubRate = *r.Msg.ScrubRate
		}
		if r.Msg.ResyncRate != nil {
			next.ResyncRate = *r.Msg.ResyncRate
		}
		if r.Msg.ResyncP99Us != nil {
			next.ResyncP99 = time.Duration(min(*r.Msg.ResyncP99Us, 1<<40)) * time.Microsecond
		}
		if r.Msg.Reserve != nil {
			next.Reserve = *r.Msg.Reserve
		}
		return st.Set(next, now)
	})
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(toSettings(next)), nil
}

// putSettings adds what is set, and how long ago the device was scrubbed that has
// waited longest.
func putSettings(resp *pb.StatusResponse, st *state.State) {
	resp.Settings = toSettings(st.Settings())
	if d := st.LongestUnscrubbed(); d != nil {
		resp.ScrubDevice = uint32(d.ID)
		if !d.Scrubbed.IsZero() {
			resp.ScrubbedMs = d.Scrubbed.UnixMilli()
		}
	}
}
