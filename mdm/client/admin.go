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

// unlessGone takes "not found" for success where an earlier try of the same
// call may have done the work.
func unlessGone(err error) error {
	var op *OpError
	if errors.As(err, &op) && op.Repeated && errors.Is(err, ErrNotFound) {
		return nil
	}
	return err
}
