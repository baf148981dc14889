// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/pb/pbconnect"
)

// The administrator's calls speak the API's own messages: they are printed, not
// worked with.

// CreateVolume makes a volume. The warnings are for people.
func (c *Client) CreateVolume(ctx context.Context, r *pb.CreateVolumeRequest) (*pb.VolumeResponse, error) {
	if r.Request == "" {
		r.Request = rand.Text()
	}
	return call(ctx, c, "create volume "+r.Name, r, pbconnect.MdmClient.CreateVolume)
}

// ListVolumes returns all volumes, by name.
func (c *Client) ListVolumes(ctx context.Context) ([]*pb.Volume, error) {
	resp, err := call(ctx, c, "list volumes", &pb.ListVolumesRequest{}, pbconnect.MdmClient.ListVolumes)
	return resp.GetVolumes(), err
}

// ResizeVolume changes a volume's size, in bytes.
func (c *Client) ResizeVolume(ctx context.Context, name string, size uint64, shrink bool,
) (*pb.VolumeResponse, error) {
	return call(ctx, c, "resize volume "+name,
		&pb.ResizeVolumeRequest{Name: name, Size: size, Shrink: shrink}, pbconnect.MdmClient.ResizeVolume)
}

// RenameVolume gives a volume another name.
func (c *Client) RenameVolume(ctx context.Context, name, to string) (*pb.VolumeResponse, error) {
	volumes, err := c.ListVolumes(ctx)
	if err != nil {
		return nil, err
	}
	r := &pb.RenameVolumeRequest{Name: name, To: to}
	for _, v := range volumes {
		if v.Name == name {
			r.Id = v.Id
		}
	}
	return call(ctx, c, "rename volume "+name, r, pbconnect.MdmClient.RenameVolume)
}

// Settings returns what is set for the whole cluster.
func (c *Client) Settings(ctx context.Context) (*pb.Settings, error) {
	return call(ctx, c, "ask for the settings", &pb.SettingsRequest{}, pbconnect.MdmClient.GetSettings)
}

// Drill orders a fault, or with DryRun only asks whether it may be.
func (c *Client) Drill(ctx context.Context, r *pb.DrillRequest) (*pb.DrillResponse, error) {
	return call(ctx, c, "order a drill", r, pbconnect.MdmClient.Drill)
}

// SpareDevices makes devices spare, or puts spares to use, and returns what moves.
func (c *Client) SpareDevices(ctx context.Context, r *pb.SpareDevicesRequest) (*pb.MovePlan, error) {
	return call(ctx, c, "change which devices are spare", r, pbconnect.MdmClient.SpareDevices)
}

// Autopilot returns what is set for the autopilot and what it has done.
func (c *Client) Autopilot(ctx context.Context) (*pb.Autopilot, error) {
	return call(ctx, c, "ask for the autopilot", &pb.AutopilotRequest{}, pbconnect.MdmClient.GetAutopilot)
}

// SetAutopilot sets what the request names, and returns all.
func (c *Client) SetAutopilot(ctx context.Context, r *pb.SetAutopilotRequest) (*pb.Autopilot, error) {
	return call(ctx, c, "change the autopilot", r, pbconnect.MdmClient.SetAutopilot)
}

// SetSettings sets what the request names, and returns all.
func (c *Client) SetSettings(ctx context.Context, r *pb.SetSettingsRequest) (*pb.Settings, error) {
	return call(ctx, c, "change the settings", r, pbconnect.MdmClient.SetSettings)
}

// DeleteVolume deletes a volume and everything on it.
func (c *Client) DeleteVolume(ctx context.Context, name string, force bool) error {
	_, err := call(ctx, c, "delete volume "+name, &pb.DeleteVolumeRequest{Name: name, Force: force},
		pbconnect.MdmClient.DeleteVolume)
	return unlessGone(err)
}

// Status returns the state of the cluster.
func (c *Client) Status(ctx context.Context) (*pb.StatusResponse, error) {
	return call(ctx, c, "ask for the cluster's status", &pb.StatusRequest{}, pbconnect.MdmClient.Status)
}

// ListServers returns the data servers, by name.
func (c *Client) ListServers(ctx context.Context) ([]*pb.Server, error) {
	resp, err := call(ctx, c, "list servers", &pb.ListServersRequest{}, pbconnect.MdmClient.ListServers)
	return resp.GetServers(), err
}

// ListDevices returns the devices, by number.
func (c *Client) ListDevices(ctx context.Context) ([]*pb.Device, error) {
	resp, err := call(ctx, c, "list devices", &pb.ListDevicesRequest{}, pbconnect.MdmClient.ListDevices)
	return resp.GetDevices(), err
}

// RemoveDevice takes a device out of the cluster.
func (c *Client) RemoveDevice(ctx context.Context, id cluster.DeviceID, force bool) error {
	_, err := call(ctx, c, fmt.Sprintf("remove device %d", id),
		&pb.RemoveDeviceRequest{Id: uint32(id), Force: force}, pbconnect.MdmClient.RemoveDevice)
	return unlessGone(err)
}

// Scrub has devices read and compare everything that they hold, or stops that.
func (c *Client) Scrub(ctx context.Context, r *pb.ScrubRequest) (*pb.ScrubStatusResponse, error) {
	return call(ctx, c, "scrub devices", r, pbconnect.MdmClient.Scrub)
}

// ScrubStatus returns how far each device has come.
func (c *Client) ScrubStatus(ctx context.Context) (*pb.ScrubStatusResponse, error) {
	return call(ctx, c, "ask how far scrubs have come", &pb.ScrubStatusRequest{}, pbconnect.MdmClient.ScrubStatus)
}

// PlanMoves tells what would move if these devices were removed; none: what would
// move as things are.
func (c *Client) PlanMoves(ctx context.Context, without ...uint32) (*pb.MovePlan, error) {
	return call(ctx, c, "plan moves", &pb.PlanMovesRequest{Without: without}, pbconnect.MdmClient.PlanMoves)
}

// Evacuate empties devices, which are then removed, or takes that back.
func (c *Client) Evacuate(ctx context.Context, r *pb.EvacuateRequest) (*pb.MovePlan, error) {
	return call(ctx, c, "remove devices", r, pbconnect.MdmClient.Evacuate)
}

// Moves tells what is still to move.
func (c *Client) Moves(ctx context.Context) (*pb.MovesResponse, error) {
	return call(ctx, c, "ask what moves", &pb.MovesRequest{}, pbconnect.MdmClient.Moves)
}

// SetMoves pauses or resumes moves, or sets the grace time.
func (c *Client) SetMoves(ctx context.Context, r *pb.SetMovesRequest) (*pb.MovesResponse, error) {
	return call(ctx, c, "set how data moves", r, pbconnect.MdmClient.SetMoves)
}

// Maintain begins or ends a server's maintenance; it may be repeated, and returns of
// how many groups the server has copies.
func (c *Client) Maintain(ctx context.Context, r *pb.MaintainRequest) (groups uint32, err error) {
	resp, err := call(ctx, c, "maintenance of "+r.Server, r, pbconnect.MdmClient.Maintain)
	if err != nil {
		return 0, err
	}
	return resp.GroupsLeft, nil
}

// unlessGone takes "not found" for success where an earlier try of the same
// call may have done the work.
func unlessGone(err error) error {
	var op *OpError
	if errors.As(err, &op) && op.Repeated && errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
