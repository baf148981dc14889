// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"fmt"
	"time"

	"connectrpc.com/connect"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/state"
)

// mending is something that happened to a device's bytes, for the events.
type mending struct {
	device     cluster.DeviceID
	severity   string
	kind, text string
}

// mended compares a device's report with the one before.
func mended(id cluster.DeviceID, before, now *pb.DeviceReport) (out []mending) {
	switch {
	case before == nil:
		return nil // this member leads since a moment ago: it is no news
	case before.RotFound > now.RotFound || before.RotMended > now.RotMended:
		before = &pb.DeviceReport{Scrub: before.Scrub} // counters begin anew with the server
	}
	found, again := now.RotFound-before.RotFound, now.RotMended-before.RotMended
	if found > 0 {
		out = append(out, mending{id, state.Warning, "rot-found", fmt.Sprintf("%d blocks did not match their "+
			"checksums, %d since the server started", found, now.RotFound)})
	}
	if again > 0 {
		out = append(out, mending{id, state.Info, "rot-mended", fmt.Sprintf("%d blocks that did not match their "+
			"checksums were written again from another copy", again)})
	}
	is, was := now.GetScrub(), before.GetScrub()
	if is == nil || is.Run == was.GetRun() && is.State == was.GetState() {
		return out
	}
	switch is.State {
	case "running":
		out = append(out, mending{id, state.Info, "scrub-started", "all that it holds is read and compared"})
	default:
		severity := state.Info
		if is.Unmended > 0 {
			severity = state.Error
		}
		out = append(out, mending{id, severity, "scrub-" + is.State, fmt.Sprintf("%s read, %d blocks did not match, "+
			"%d of them were mended, %d could not be", cluster.FormatSize(is.BytesDone), is.Rotten, is.Mended,
			is.Unmended)})
	}
	return out
}

// tell writes down what happened. That it fails is no matter for the server whose
// report it came with: the log has it then.
func (l *leader) tell(ctx context.Context, news []mending) {
	if len(news) == 0 {
		return
	}
	err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		tx := st.Begin(now)
		for _, n := range news {
			tx.DeviceEvent(n.severity, n.kind, n.device, n.text)
		}
		return tx, nil
	})
	if err != nil {
		l.log.Warn("what happened to a device is not among the events", "first", news[0].text, "error", err)
	}
}

// order adds the scrub that a device is to begin or to stop, if there is one.
func (l *leases) order(to []*pb.ScrubOrder, id cluster.DeviceID, r *pb.DeviceReport) []*pb.ScrubOrder {
	l.mu.Lock()
	defer l.mu.Unlock()
	order, is := l.scrubs[id], r.GetScrub()
	switch {
	case order == nil, is.GetRun() > order.Run:
		return to
	case is.GetRun() == order.Run && (!order.Stop || is.GetState() != "running"):
		return to // it has it
	}
	return append(to, &pb.ScrubOrder{Uuid: r.Uuid, Run: order.Run, Rate: order.Rate, Stop: order.Stop})
}

// putProgress adds how exposed groups are and how far targets have come.
func (a *api) putProgress(resp *pb.StatusResponse, st *state.State) {
	for _, e := range st.Exposures() {
		x := &pb.Exposure{Copies: uint32(e.Copies), Wanted: uint32(e.Wanted), Groups: uint32(e.Groups)}
		if !e.Since.IsZero() {
			x.SinceMs = e.Since.UnixMilli()
		}
		resp.Exposures = append(resp.Exposures, x)
	}
	l := a.m.leads()
	if l == nil {
		return
	}
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	devices, _ := st.Devices()
	for _, d := range devices {
		if r := l.leases.reports[d.ID]; d.Up && r.GetResync() != nil {
			resp.Resyncs = append(resp.Resyncs, &pb.DeviceResync{Device: uint32(d.ID), Name: d.Server + ":" + d.Path,
				Report: r.Resync})
		}
	}
}

// Scrub gives orders, which servers take with their next renewal.
func (a *api) Scrub(ctx context.Context, r *connect.Request[pb.ScrubRequest],
) (*connect.Response[pb.ScrubStatusResponse], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	var devices []*cluster.Device
	a.m.store.read(func(st *state.State) { devices, _ = st.Devices() })
	known := map[uint32]bool{}
	var all []uint32
	for _, d := range devices {
		known[uint32(d.ID)] = true
		all = append(all, uint32(d.ID))
	}
	wanted := r.Msg.Devices
	if len(wanted) == 0 {
		wanted = all
	}
	for _, id := range wanted {
		if !known[id] {
			return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("scrub device %d: there is none; "+
				"`scli device list` shows them", id))
		}
	}
	l.leases.scrub(wanted, r.Msg.Rate, r.Msg.Stop, l.now())
	return a.ScrubStatus(ctx, connect.NewRequest(&pb.ScrubStatusRequest{}))
}

// scrub notes an order for devices. A run's number is the time, so that it exceeds
// those that an earlier leader gave.
func (l *leases) scrub(ids []uint32, rate uint64, stop bool, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		device := cluster.DeviceID(id)
		run := uint64(now.UnixNano())
		if stop {
			run = max(l.reports[device].GetScrub().GetRun(), l.scrubs[device].GetRun())
		}
		l.scrubs[device] = &pb.ScrubOrder{Run: run, Rate: rate, Stop: stop}
	}
}

// ScrubStatus tells how far each device has come.
func (a *api) ScrubStatus(ctx context.Context, _ *connect.Request[pb.ScrubStatusRequest],
) (*connect.Response[pb.ScrubStatusResponse], error) {
	l, err := a.leader(ctx)
	if err != nil {
		return nil, err
	}
	resp := &pb.ScrubStatusResponse{}
	var devices []*cluster.Device
	a.m.store.read(func(st *state.State) { devices, _ = st.Devices() })
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	for _, d := range devices {
		r, order := l.leases.reports[d.ID], l.leases.scrubs[d.ID]
		resp.Devices = append(resp.Devices, &pb.DeviceScrub{Device: uint32(d.ID), Name: d.Server + ":" + d.Path,
			Waiting: order.GetRun() > r.GetScrub().GetRun() && !order.GetStop(), Report: r.GetScrub(),
			RotFound: r.GetRotFound(), RotMended: r.GetRotMended()})
	}
	return connect.NewResponse(resp), nil
}
