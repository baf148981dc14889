// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"braid/cmd/internal/observe"
	"braid/nbd"
	"braid/transport/loop"
)

// How long the end of an export may take.
const (
	drainTime  = 10 * time.Second // until unanswered requests are given up
	detachTime = 10 * time.Second // until the volume's flush is given up
)

// ExportOptions describe an export without the kernel.
type ExportOptions struct {
	Opener   Opener
	Volume   string // empty: the only one
	ReadOnly bool
	Force    bool
	OnFull   OnFull
	Listener net.Listener // taken over
	TLS      *tls.Config  // required of clients when set
	Engine   loop.Engine
	Loops    int
	// Dir is the run directory, where sdc top, trace and why find the export; empty:
	// they do not.
	Dir     string
	Where   string // what they call it
	Metrics string // serve Prometheus metrics on HOST:PORT
	Pprof   bool   // and profiles
	// Report is told what a person should know. It may be called from anywhere.
	Report func(text string)
}

// Export is a volume on an NBD socket, in a process of its own.
type Export struct {
	o      ExportOptions
	host   *Host
	loop   *loop.Loop
	volume Volume
	port   *nbd.Port
	server *nbd.Server
	lost   chan error
	failed atomic.Pointer[string] // why it can serve no longer
	// What can be watched.
	watched watched
	monitor *monitor
	metrics func() // ends the listener
}

// OpenExport attaches the volume. Run serves it.
func OpenExport(ctx context.Context, o ExportOptions) (*Export, error) {
	host, err := NewHost(HostOptions{Loops: 1, Engine: o.Engine})
	if err != nil {
		return nil, err
	}
	e := &Export{o: o, host: host, loop: host.Take(), lost: make(chan error, 1)}
	e.volume, err = o.Opener.Open(ctx, OpenRequest{
		Volume: o.Volume, Force: o.Force, ReadOnly: o.ReadOnly, OnFull: o.OnFull, Loop: e.loop, Pool: host.Pool,
		Lost: func(reason error) {
			text := reason.Error()
			e.failed.Store(&text)
			select {
			case e.lost <- reason:
			default:
			}
		},
	})
	if err != nil {
		return nil, errors.Join(err, host.Close())
	}
	e.port = nbd.NewPort(e.loop, host.Arena, e.volume)
	e.server = nbd.NewServer(nbd.ServerOptions{
		TLS: o.TLS, RequireTLS: o.TLS != nil,
		Ended: func(remote string, err error) {
			o.Report(fmt.Sprintf("connection from %s ended: %v", remote, err))
		},
	})
	e.watched = watched{where: o.Where, volume: e.volume, port: e.port, loop: e.loop, failed: &e.failed}
	e.watch()
	return e, e.server.Add(&nbd.Export{Name: e.volume.Name(), Description: "Braid volume",
		Port: e.port, ReadOnly: o.ReadOnly})
}

// watch lets others look at the export. That it cannot be watched is no reason not
// to serve.
func (e *Export) watch() {
	e.metrics = func() {}
	if e.o.Dir != "" {
		var err error
		if e.monitor, err = startMonitor(e.o.Dir, &e.watched); err != nil {
			e.o.Report(fmt.Sprintf("sdc top and trace will not see this export: %v", err))
		}
	}
	collector := NewCollector(func() []*watched { return []*watched{&e.watched} })
	url, stop, err := observe.Serve(e.o.Metrics, e.o.Pprof, collector)
	if err != nil {
		e.o.Report(err.Error())
		return
	}
	e.metrics = stop
	if url != "" {
		e.o.Report("metrics: " + url)
	}
}

// Name is the volume's name.
func (e *Export) Name() string { return e.volume.Name() }

// Size is the volume's size in bytes.
func (e *Export) Size() (size uint64) {
	e.loop.Call(func() { size = e.volume.Size() })
	return size
}

// Engine is what the export's loop runs on.
func (e *Export) Engine() loop.Engine { return e.loop.Engine() }

// Run serves until ctx ends, then drains and detaches; when hard ends, it does so
// without waiting for anything.
func (e *Export) Run(ctx, hard context.Context) error {
	served := make(chan error, 1)
	go func() { served <- e.server.Serve(e.o.Listener) }()
	var err error
	running := true
	for running {
		select {
		case <-ctx.Done():
			running = false
		case err = <-served:
			served = nil
			running = false
		case reason := <-e.lost:
			// Clients get errors from now on; the process stays, so that they learn
			// of it from their requests and not from a refused connection.
			e.o.Report(fmt.Sprintf("volume %s can serve no longer: %v", e.Name(), reason))
		}
	}
	return errors.Join(err, e.end(hard, served))
}

// end answers what was received, detaches the volume and stops everything. Each
// step has a time limit.
func (e *Export) end(hard context.Context, served chan error) error {
	e.server.Stop()
	drained := make(chan struct{})
	e.loop.Call(func() { e.port.Drain(func() { close(drained) }) })
	limit, cancel := context.WithTimeout(hard, drainTime)
	defer cancel()
	select {
	case <-drained:
	case <-limit.Done():
		e.o.Report("requests are unanswered: giving them up")
		e.loop.Call(e.port.Abort)
	}
	ctx, cancelDetach := context.WithTimeout(hard, detachTime)
	defer cancelDetach()
	err := errors.Join(e.volume.Detach(ctx), e.server.Close())
	if served != nil {
		err = errors.Join(err, <-served)
	}
	e.metrics()
	e.monitor.close()
	e.loop.Call(e.port.Close)
	return errors.Join(err, e.host.Close())
}
