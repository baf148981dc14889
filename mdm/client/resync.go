// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"fmt"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
)

// DeviceTrouble is a client's report of a device that it cannot reach. It is
// repeated while that lasts, about twice a second.
type DeviceTrouble struct {
	Volume     cluster.VolumeID
	Generation cluster.Generation
	Device     cluster.DeviceID
	Reason     string // for people: events and status show it
	FaultSets  int    // how many fault sets the client fails to reach, this one included
	// Attaching: the wait for the old client's lease is over, and the device could
	// not be fenced (rule 15).
	Attaching bool
}

// Verdict is what mdm made of a report.
type Verdict struct {
	Evicted bool           // it is out of every group where that is possible
	Text    string         // what mdm found, for people
	Last    []cluster.PGID // groups that keep it: no other copy may stand for it
}

// ReportDevice tells mdm that a device cannot be reached. mdm looks for itself
// and decides; what it changes comes with the map.
func (c *Client) ReportDevice(ctx context.Context, t DeviceTrouble) (Verdict, error) {
	req := &pb.ReportDeviceRequest{Volume: uint64(t.Volume), Generation: uint64(t.Generation),
		Device: uint32(t.Device), Reason: t.Reason, FaultSets: uint32(t.FaultSets),
		Attaching: t.Attaching}
	resp, err := call(ctx, c, fmt.Sprintf("report device %d", t.Device), req,
		pbconnect.MdmClient.ReportDevice)
	if err != nil {
		return Verdict{}, err
	}
	return Verdict{Evicted: resp.Evicted, Text: resp.Verdict, Last: toGroups(resp.Last)}, nil
}

// Source is a copy that a target may copy from, as long as the device is in
// that incarnation.
type Source struct {
	Device      cluster.DeviceID
	Incarnation cluster.Incarnation
}

// ReadyGroup is a group whose target may compare and copy.
type ReadyGroup struct {
	PG      cluster.PGID
	Epoch   uint32 // that announced the target: the attempt
	Sources []Source
	// Broken: every copy lost its cache since the oldest session began, so that no
	// source holds all that was acked. Guests of that time cannot resume.
	Broken bool
}

// ResyncReady returns the groups for which the device is the target and the
// adoption barrier is met.
func (c *Client) ResyncReady(ctx context.Context, device cluster.DeviceID) ([]ReadyGroup, error) {
	resp, err := call(ctx, c, fmt.Sprintf("ask what device %d may resync", device),
		&pb.ResyncReadyRequest{Device: uint32(device)}, pbconnect.MdmClient.ResyncReady)
	if err != nil {
		return nil, err
	}
	out := make([]ReadyGroup, 0, len(resp.Groups))
	for _, g := range resp.Groups {
		ready := ReadyGroup{PG: cluster.PGID(g.Pg), Epoch: g.Epoch, Broken: g.Broken}
		for _, s := range g.Sources {
			ready.Sources = append(ready.Sources, Source{Device: cluster.DeviceID(s.Device),
				Incarnation: cluster.Incarnation(s.Incarnation)})
		}
		out = append(out, ready)
	}
	return out, nil
}

// JoinGroup names a group of which a target has copied everything.
type JoinGroup struct {
	PG    cluster.PGID
	Epoch uint32 // that announced the target
}

// JoinRequest asks that a target be in sync.
type JoinRequest struct {
	Device      cluster.DeviceID
	Incarnation cluster.Incarnation
	Version     uint64 // map version that the device has learned, drained
	Groups      []JoinGroup
}

// JoinInSync puts the device into the in-sync sets; the map tells. refused: not
// the running target, or of another attempt; give up. later: ask again with a
// newer map version. When the outcome is unknown (an error), ask again: groups
// in which the device is in sync already are in neither list.
func (c *Client) JoinInSync(ctx context.Context, r JoinRequest) (refused, later []cluster.PGID, err error) {
	req := &pb.JoinInSyncRequest{Device: uint32(r.Device), Incarnation: uint64(r.Incarnation),
		Version: r.Version}
	for _, g := range r.Groups {
		req.Groups = append(req.Groups, &pb.JoinGroup{Pg: uint32(g.PG), Epoch: g.Epoch})
	}
	resp, err := call(ctx, c, fmt.Sprintf("put device %d in sync", r.Device), req,
		pbconnect.MdmClient.JoinInSync)
	if err != nil {
		return nil, nil, err
	}
	return toGroups(resp.Refused), toGroups(resp.Later), nil
}

func toGroups(ids []uint32) []cluster.PGID {
	var out []cluster.PGID
	for _, id := range ids {
		out = append(out, cluster.PGID(id))
	}
	return out
}
