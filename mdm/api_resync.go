// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"

	"connectrpc.com/connect"

	"braid/mdm/pb"
)

func (a *api) ReportDevice(ctx context.Context, r *connect.Request[pb.ReportDeviceRequest],
) (*connect.Response[pb.ReportDeviceResponse], error) {
	return connect.NewResponse(&pb.ReportDeviceResponse{}), nil
}

func (a *api) ResyncReady(ctx context.Context, r *connect.Request[pb.ResyncReadyRequest],
) (*connect.Response[pb.ResyncReadyResponse], error) {
	return connect.NewResponse(&pb.ResyncReadyResponse{}), nil
}

func (a *api) JoinInSync(ctx context.Context, r *connect.Request[pb.JoinInSyncRequest],
) (*connect.Response[pb.JoinInSyncResponse], error) {
	return connect.NewResponse(&pb.JoinInSyncResponse{}), nil
}
