// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"cmp"
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
		what := "all that it holds"
		if is.Volume != 0 {
			what += fmt.Sprintf(" of the volume with number %d", is.Volume)
		}
		out = append(out, mending{id, state.Info, "scrub-started", what + " is read and compared"})
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
	return append(to, &pb.ScrubOrder{Uuid: r.Uuid, Run: order.Run, Rate: order.Rate, Stop: order.Stop,
		Volume: order.Volume})
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
	rate := r.Msg.Rate
	a.m.store.read(func(st *state.State) {
		devices, _ = st.Devices()
		rate = cmp.Or(rate, st.Settings().ScrubRate)
	})
	known := map[uint32]bool{}
	var all []uint32
	for _, d := range devices {
		known[uint32(d.ID)] = true
		all = append(all, uint32(d.ID))
	}
	wanted, volume := r.Msg.Devices, uint64(0)
	switch {
	case r.Msg.Volume != "" && len(wanted) > 0:
		return nil, connect.NewError(connect.CodeInvalidArgument, fmt.Errorf("scrub volume %s: devices are named, "+
			"too; give one or the other", r.Msg.Volume))
	case r.Msg.Volume != "":
		if volume, wanted = a.partsOf(r.Msg.Volume); volume == 0 {
			return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("scrub volume %s: there is none; "+
				"`scli volume list` shows them", r.Msg.Volume))
		}
	case len(wanted) == 0:
		wanted = all
	}
	for _, id := range wanted {
		if !known[id] {
			return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("scrub device %d: there is none; "+
				"`scli device list` shows them", id))
		}
	}
	l.leases.scrub(wanted, &pb.ScrubOrder{Rate: rate, Stop: r.Msg.Stop, Volume: volume}, l.now())
	resp, err := a.ScrubStatus(ctx, connect.NewRequest(&pb.ScrubStatusRequest{}))
	if err == nil {
		resp.Msg.Ordered = wanted
	}
	return resp, err
}

// partsOf finds a volume by name, and the devices of its groups; 0: there is none.
func (a *api) partsOf(name string) (volume uint64, devices []uint32) {
	a.m.store.read(func(st *state.State) {
		for _, v := range st.Volumes() {
			if v.Name != name {
				continue
			}
			volume = uint64(v.ID)
			for _, id := range st.DevicesOf(v) {
				devices = append(devices, uint32(id))
			}
		}
	})
	return volume, devices
}

// scrub notes an order for devices. A run's number is the time, so that it exceeds
// those that an earlier leader gave.
func (l *leases) scrub(ids []uint32, o *pb.ScrubOrder, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		device := cluster.DeviceID(id)
		run := uint64(now.UnixNano())
		if o.Stop {
			run = max(l.reports[device].GetScrub().GetRun(), l.scrubs[device].GetRun())
			l.rests[device] = now.Add(scrubRest)
		}
		l.scrubs[device] = &pb.ScrubOrder{Run: run, Rate: o.Rate, Stop: o.Stop, Volume: o.Volume}
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
	var records []*state.Device
	names := map[uint64]string{}
	a.m.store.read(func(st *state.State) {
		devices, records = st.Devices()
		for _, v := range st.Volumes() {
			names[uint64(v.ID)] = v.Name
		}
	})
	l.leases.mu.Lock()
	defer l.leases.mu.Unlock()
	for i, d := range devices {
		r, order := l.leases.reports[d.ID], l.leases.scrubs[d.ID]
		waiting := order.GetRun() > r.GetScrub().GetRun() && !order.GetStop()
		volume := r.GetScrub().GetVolume()
		if waiting {
			volume = order.Volume
		}
		x := &pb.DeviceScrub{Device: uint32(d.ID), Name: d.Server + ":" + d.Path,
			Waiting: waiting, Report: r.GetScrub(), Volume: names[volume],
			RotFound: r.GetRotFound(), RotMended: r.GetRotMended()}
		if at := records[i].Scrubbed; !at.IsZero() {
			x.ScrubbedMs = at.UnixMilli()
		}
		resp.Devices = append(resp.Devices, x)
	}
	return connect.NewResponse(resp), nil
}
