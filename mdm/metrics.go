// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"net/http"
	"strings"

	"connectrpc.com/connect"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"braid/cluster"
	"braid/mdm/state"
)

// metrics shows the state when it is asked: nothing is counted in between
// except calls.
type metrics struct {
	member   *Member
	registry *prometheus.Registry
	calls    *prometheus.CounterVec
	gauges   []gauge
}

type gauge struct {
	desc  *prometheus.Desc
	value func(*state.State, state.Status) float64
}

func newMetrics(m *Member) *metrics {
	x := &metrics{member: m, registry: prometheus.NewRegistry(),
		calls: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "braid_mdm_calls_total",
			Help: "Calls of the API, by method and outcome."}, []string{"method", "code"})}
	add := func(name, help string, value func(*state.State, state.Status) float64) {
		x.gauges = append(x.gauges, gauge{prometheus.NewDesc("braid_"+name, help, nil, nil), value})
	}
	add("map_version", "Version of the cluster's map.",
		func(s *state.State, _ state.Status) float64 { return float64(s.MapVersion()) })
	add("servers", "Data servers.", func(_ *state.State, s state.Status) float64 { return float64(s.Servers) })
	add("servers_up", "Data servers that are up.",
		func(_ *state.State, s state.Status) float64 { return float64(s.ServersUp) })
	add("devices", "Devices.", func(_ *state.State, s state.Status) float64 { return float64(s.Devices) })
	add("devices_up", "Devices that serve.",
		func(_ *state.State, s state.Status) float64 { return float64(s.DevicesUp) })
	add("devices_spare", "Devices that take no copies yet.",
		func(_ *state.State, s state.Status) float64 { return float64(s.Spares) })
	add("capacity_bytes", "Space for chunks on all devices but the spare ones.",
		func(_ *state.State, s state.Status) float64 { return float64(s.Capacity) })
	add("used_bytes", "Space in allocated chunks; known to the leader only.",
		func(_ *state.State, s state.Status) float64 { return float64(s.Used) })
	add("volumes", "Volumes.", func(_ *state.State, s state.Status) float64 { return float64(s.Volumes) })
	add("volumes_attached", "Volumes that are attached.",
		func(_ *state.State, s state.Status) float64 { return float64(s.Attached) })
	add("pgs", "Placement groups in use.",
		func(_ *state.State, s state.Status) float64 { return float64(s.Groups) })
	add("pgs_degraded", "Placement groups with fewer in-sync copies up than replicas.",
		func(_ *state.State, s state.Status) float64 { return float64(s.GroupsDegraded) })
	add("pgs_rebuilding", "Placement groups of which a copy is being brought in sync.",
		func(_ *state.State, s state.Status) float64 { return float64(s.GroupsRebuilding) })
	add("volumes_waiting_for_space", "Attached volumes whose writes wait because devices are full.",
		func(_ *state.State, s state.Status) float64 { return float64(s.Waiting) })
	add("mdm_leader", "1 where this member leads.", func(*state.State, state.Status) float64 {
		if m.leads() != nil {
			return 1
		}
		return 0
	})
	x.registry.MustRegister(x, x.calls, collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return x
}

func (x *metrics) handler() http.Handler {
	return promhttp.HandlerFor(x.registry, promhttp.HandlerOpts{})
}

// Describe and Collect make x a prometheus.Collector.
func (x *metrics) Describe(out chan<- *prometheus.Desc) {
	for _, g := range x.gauges {
		out <- g.desc
	}
}

func (x *metrics) Collect(out chan<- prometheus.Metric) {
	values := make([]float64, len(x.gauges))
	used := map[cluster.DeviceID]uint64{}
	if l := x.member.leads(); l != nil {
		used = l.leases.usage()
	}
	x.member.store.read(func(st *state.State) {
		status := st.Status(used)
		for i, g := range x.gauges {
			values[i] = g.value(st, status)
		}
	})
	for i, g := range x.gauges {
		out <- prometheus.MustNewConstMetric(g.desc, prometheus.GaugeValue, values[i])
	}
}

// interceptor counts calls that have one answer.
func (x *metrics) interceptor() connect.Interceptor {
	return connect.UnaryInterceptorFunc(func(next connect.UnaryFunc) connect.UnaryFunc {
		return func(ctx context.Context, req connect.AnyRequest) (connect.AnyResponse, error) {
			resp, err := next(ctx, req)
			code := "ok"
			if err != nil {
				code = connect.CodeOf(err).String()
			}
			method := req.Spec().Procedure
			x.calls.WithLabelValues(method[strings.LastIndexByte(method, '/')+1:], code).Inc()
			return resp, err
		}
	})
}
