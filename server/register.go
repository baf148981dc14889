// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"braid/cluster"
	"braid/mdm/client"
)

// Manager is what a server needs of the metadata manager; *client.Client
// implements it. It may be away for any time: what is served goes on.
type Manager interface {
	RegisterServer(context.Context, client.ServerReport) (client.Registration, error)
	Renew(ctx context.Context, name string, lease uint64, devices []client.DeviceReport) (client.Renewal, error)
	WatchMap(ctx context.Context, volumes []cluster.VolumeID, deliver func(*cluster.Map)) error
	ResyncReady(context.Context, cluster.DeviceID) ([]client.ReadyGroup, error)
	JoinInSync(context.Context, client.JoinRequest) (refused, later []cluster.PGID, err error)
}

// registrar keeps the server known to the metadata manager. It has two
// goroutines: one registers and renews, one follows the map.
type registrar struct {
	server  *Server
	manager Manager
	log     *slog.Logger
	kick    chan struct{} // holds one: a report is due before the next renewal
	lease   uint64        // of the last registration; 0: none. Owned by keep, then by leave
}

func newRegistrar(s *Server, m Manager) *registrar {
	return &registrar{server: s, manager: m, log: s.log, kick: make(chan struct{}, 1)}
}

// report asks for a renewal soon, with the devices' new state. It never blocks.
func (r *registrar) report() {
	select {
	case r.kick <- struct{}{}:
	default:
	}
}

// keep registers and renews until ctx ends. It returns an error only when going
// on makes no sense: the manager runs another cluster.
func (r *registrar) keep(ctx context.Context) error {
	var quiet string // the error logged last: an outage is one line, not one a second
	backOff := registerBackOffMin
	for ctx.Err() == nil {
		lease, id, err := r.register(ctx)
		var foreign *ForeignClusterError
		switch {
		case errors.Is(err, errAgain):
			continue
		case errors.As(err, &foreign):
			return err
		case err != nil && ctx.Err() == nil && err.Error() != quiet:
			quiet = err.Error()
			r.log.Warn("not registered; trying on, what is served goes on", "error", err)
		}
		if err != nil {
			r.pause(ctx, backOff)
			backOff = min(2*backOff, registerBackOffMax)
			continue
		}
		quiet, backOff = "", registerBackOffMin
		r.log.Info("registered", "name", r.server.cfg.Name, "lease", lease)
		r.renew(ctx, id, lease)
	}
	return nil
}

func (r *registrar) register(ctx context.Context) (lease time.Duration, id uint64, err error) {
	s := r.server
	reports := s.deviceReports()
	reg, err := r.manager.RegisterServer(ctx, client.ServerReport{Name: s.cfg.Name, Addr: s.cfg.Advertise,
		FaultSet: s.cfg.FaultSet, Version: cluster.Version, Cluster: s.clusterID(), Devices: reports,
		Spare: s.cfg.Spare, Drills: s.cfg.Drills})
	if err != nil {
		return 0, 0, err
	}
	if err := s.adopt(reg); err != nil {
		return 0, 0, err
	}
	if reg.Lease <= 0 {
		return 0, 0, fmt.Errorf("register server %s: the manager grants a lease of %v", s.cfg.Name, reg.Lease)
	}
	r.lease = reg.LeaseID
	return reg.Lease, reg.LeaseID, nil
}

// leave tells the manager that the server has stopped: a report without devices.
// Should it not arrive, the lease runs out.
func (r *registrar) leave(ctx context.Context) {
	if r.lease == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, leaveTimeout)
	defer cancel()
	if _, err := r.manager.Renew(ctx, r.server.cfg.Name, r.lease, nil); err != nil {
		r.log.Warn("the manager was not told of the stop; it will notice when the lease runs out", "error", err)
	}
}

// renew keeps the lease until the manager no longer knows it.
func (r *registrar) renew(ctx context.Context, id uint64, lease time.Duration) {
	wait := lease / 3
	var quiet string
	for {
		r.pause(ctx, wait)
		if ctx.Err() != nil {
			return
		}
		renewal, err := r.manager.Renew(ctx, r.server.cfg.Name, id, r.server.deviceReports())
		switch {
		case err != nil && ctx.Err() == nil:
			wait = min(lease/3, registerBackOffMax)
			if err.Error() != quiet {
				quiet = err.Error()
				r.log.Warn("lease not renewed; trying on, what is served goes on", "error", err)
			}
		case err == nil && !renewal.Known:
			r.log.Info("the manager no longer knows the lease; registering again")
			return
		case err == nil:
			if quiet != "" {
				r.log.Info("lease renewed again")
			}
			wait, quiet = lease/3, ""
			r.server.scrub(renewal.Scrubs)
			r.server.limitResync(renewal.ResyncRate, renewal.ResyncP99)
			r.server.setReserve(renewal.Reserve)
			if pause := r.server.drill(renewal.Drill); pause > 0 {
				r.pauseFor(ctx, pause)
			}
		}
	}
}

// pauseFor waits for d, whatever is to be reported: the server is cut off.
func (r *registrar) pauseFor(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}

// pause waits for d, for a report that is due, or for the end of ctx.
func (r *registrar) pause(ctx context.Context, d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-r.kick:
	case <-ctx.Done():
	}
}

// follow hands each new map to the devices until ctx ends.
func (r *registrar) follow(ctx context.Context) {
	for ctx.Err() == nil {
		err := r.manager.WatchMap(ctx, nil, r.server.learn)
		if ctx.Err() != nil {
			return
		}
		r.log.Warn("the watch of the map ended; starting another", "error", err)
		t := time.NewTimer(registerBackOffMax)
		select {
		case <-t.C:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// ForeignClusterError says that a device belongs to another cluster than the
// metadata manager's.
type ForeignClusterError struct {
	Path            string
	Device, Manager cluster.UUID
}

func (e *ForeignClusterError) Error() string {
	return fmt.Sprintf("device %s belongs to cluster %v, but the metadata manager runs cluster %v: "+
		"give --mdm of its own cluster, or, if what is on it is not needed, `sds format --force %s`",
		e.Path, e.Device, e.Manager, e.Path)
}
