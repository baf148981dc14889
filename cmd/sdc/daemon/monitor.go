// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// watchRoutes adds what looks at volumes without changing anything.
func watchRoutes(m *http.ServeMux, list func() []*watched) {
	m.HandleFunc("GET /stats", func(w http.ResponseWriter, _ *http.Request) {
		all := []VolumeStats{}
		for _, x := range list() {
			all = append(all, x.stats())
		}
		reply(w, all)
	})
	m.HandleFunc("GET /trace", func(w http.ResponseWriter, _ *http.Request) {
		all := []SlowRequest{}
		for _, x := range list() {
			all = append(all, x.slowest()...)
		}
		reply(w, all)
	})
	m.HandleFunc("GET /waits", func(w http.ResponseWriter, _ *http.Request) {
		all := []WhyReply{}
		for _, x := range list() {
			all = append(all, x.why())
		}
		reply(w, all)
	})
}

// why is for a volume that is not a kernel device.
func (w *watched) why() WhyReply {
	s := w.stats()
	return WhyReply{Attachment: Attachment{Device: w.where, Volume: s.Volume, State: s.State, Reason: s.Reason,
		Size: s.Size, Connections: s.Connections, InFlight: s.InFlight, OldestMS: s.OldestMS, Reads: s.Reads,
		Writes: s.Writes, Flushes: s.Flushes, ReadBytes: s.ReadBytes, WriteBytes: s.WriteBytes, Errors: s.Errors},
		Waits: waitsOf(w.volume), MapRefused: s.MapRefused}
}

// volumes are those of the daemon that can be watched.
func (d *Daemon) volumes() []*watched {
	var out []*watched
	for _, a := range d.attachments() {
		if w := a.watched(); w != nil {
			out = append(out, w)
		}
	}
	return out
}

// exportPattern is how the control sockets of exports are called: they can only be
// watched.
const exportPattern = "serve-*.sock"

// monitor answers questions about an export on a socket of its own, so that it can
// be watched as attached volumes can.
type monitor struct {
	server *http.Server
	path   string
	done   chan struct{}
}

// startMonitor needs the run directory; without it the export is not watched that
// way, which is no reason not to serve.
func startMonitor(dir string, w *watched) (*monitor, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the run directory: %w", err)
	}
	path := filepath.Join(dir, fmt.Sprintf("serve-%d-%d.sock", os.Getpid(), time.Now().UnixNano()%1e6))
	ln, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the export's control socket: %w", err)
	}
	mux := http.NewServeMux()
	watchRoutes(mux, func() []*watched { return []*watched{w} })
	m := &monitor{path: path, done: make(chan struct{}),
		server: &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}}
	go func() {
		defer close(m.done)
		_ = m.server.Serve(ln) // ends with Close
	}()
	return m, nil
}

// close waits for the questions that are being answered: they use the loop.
func (m *monitor) close() {
	if m == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	if m.server.Shutdown(ctx) != nil {
		_ = m.server.Close()
	}
	<-m.done
	_ = os.Remove(m.path)
}

// sources are the sockets of all processes of this machine that use volumes. Those
// that a process which was killed has left are removed.
func (c *Client) sources() []string {
	out := []string{socketPath(c.dir)}
	exports, _ := filepath.Glob(filepath.Join(c.dir, exportPattern))
	for _, path := range exports {
		if conn, err := net.Dial("unix", path); err == nil {
			_ = conn.Close()
			out = append(out, path)
		} else if strings.Contains(err.Error(), "connection refused") {
			_ = os.Remove(path)
		}
	}
	return out
}

// gather asks every process. None running is no error: then nothing is used here.
func gather[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	all := []T{}
	for _, socket := range c.sources() {
		var list []T
		one := newClient(c.dir, socket)
		err := one.call(ctx, http.MethodGet, path, nil, &list)
		if err != nil && !errors.Is(err, ErrNotRunning) {
			return nil, err
		}
		all = append(all, list...)
	}
	return all, nil
}

// Stats of all volumes that are used on this machine: attached ones by device,
// then exports.
func (c *Client) Stats(ctx context.Context) ([]VolumeStats, error) {
	return gather[VolumeStats](ctx, c, "/stats")
}

// Trace returns the slowest requests of late, the slowest first.
func (c *Client) Trace(ctx context.Context) ([]SlowRequest, error) {
	list, err := gather[SlowRequest](ctx, c, "/trace")
	slices.SortStableFunc(list, func(a, b SlowRequest) int { return int(b.TotalUS - a.TotalUS) })
	return list, err
}

// WhyVolume is Why by the name of a volume, attached or exported.
func (c *Client) WhyVolume(ctx context.Context, volume string) (WhyReply, error) {
	list, err := gather[WhyReply](ctx, c, "/waits?volume="+url.QueryEscape(volume))
	if err != nil {
		return WhyReply{}, err
	}
	names := []string{}
	for _, r := range list {
		if r.Attachment.Volume == volume {
			return r, nil
		}
		names = append(names, r.Attachment.Volume)
	}
	if len(names) == 0 {
		return WhyReply{}, fmt.Errorf("volume %s is not used on this machine, nor is any other", volume)
	}
	return WhyReply{}, fmt.Errorf("volume %s is not used on this machine; these are: %s", volume,
		strings.Join(names, ", "))
}
