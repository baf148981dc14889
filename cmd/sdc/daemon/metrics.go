// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"braid/transport/meter/expose"
)

// collector shows the volumes of a process as Prometheus metrics.
type collector struct{ volumes func() []*watched }

// NewCollector asks the loops of the volumes whenever it is scraped.
func NewCollector(volumes func() []*watched) prometheus.Collector { return collector{volumes} }

// Describe sends nothing: the series depend on the volumes.
func (collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends each volume's series.
func (c collector) Collect(out chan<- prometheus.Metric) {
	for _, w := range c.volumes() {
		s := w.stats()
		s.collect(out)
	}
}

type series struct {
	out    chan<- prometheus.Metric
	labels []string
	values []string
}

func (s series) send(kind prometheus.ValueType, name, help string, v float64) {
	desc := prometheus.NewDesc("braid_sdc_"+name, help, s.labels, nil)
	s.out <- prometheus.MustNewConstMetric(desc, kind, v, s.values...)
}

// with adds a label.
func (s series) with(label, value string) series {
	return series{s.out, append(append([]string{}, s.labels...), label),
		append(append([]string{}, s.values...), value)}
}

func truth(b bool) float64 {
	if b {
		return 1
	}
	return 0
}

func (s *VolumeStats) collect(out chan<- prometheus.Metric) {
	const c, g = prometheus.CounterValue, prometheus.GaugeValue
	to := series{out, []string{"volume"}, []string{s.Volume}}
	for kind, n := range map[string]uint64{"read": s.Reads, "write": s.Writes, "flush": s.Flushes, "other": s.Others} {
		to.with("op", kind).send(c, "requests_total", "NBD requests.", float64(n))
	}
	to.with("op", "read").send(c, "bytes_total", "Payload of NBD requests.", float64(s.ReadBytes))
	to.with("op", "write").send(c, "bytes_total", "Payload of NBD requests.", float64(s.WriteBytes))
	to.send(c, "errors_total", "Requests answered with an error.", float64(s.Errors))
	to.send(c, "retries_total", "Frames sent again to a device.", float64(s.Retries))
	to.send(c, "hedged_reads_total", "Reads for which a second copy was asked.", float64(s.Hedges))
	to.send(c, "checksum_errors_total", "Answers whose bytes did not match their checksums.", float64(s.BadSums))
	to.send(c, "drained_flushes_total", "Flushes sent to devices.", float64(s.DeviceFlushes))
	to.send(g, "requests_in_flight", "Requests that are not answered.", float64(s.InFlight))
	to.send(g, "oldest_request_seconds", "Age of the oldest of them.", float64(s.OldestMS)/1000)
	to.send(g, "requests_waiting_for_space", "Requests that wait because a device is full.",
		float64(s.Roomless))
	to.send(g, "connections", "NBD connections.", float64(s.Connections))
	to.send(g, "pressure", "Highest pressure of an activity log since the last flush, 0 to 1000.", float64(s.Pressure))
	to.send(g, "map_version", "Version of the newest map.", float64(s.MapVersion))
	to.send(g, "adopted_map_version", "Version of the map that all requests under way know.", float64(s.AdoptedMap))
	refused := 0.0
	if s.MapRefused != "" {
		refused = 1
	}
	to.send(g, "map_refused", "1 where a newer map cannot be taken: see sdc why.", refused)
	to.send(g, "resolve_chunks", "Chunks that an older session left and that are not resolved.",
		float64(s.ResolveChunks))
	for kind, h := range s.Latency {
		out <- expose.Histogram(prometheus.NewDesc("braid_sdc_request_seconds",
			"From an NBD request's header to its answer.", []string{"volume", "op"}, nil), &h, s.Volume, kind)
	}
	for step, h := range s.Steps {
		out <- expose.Histogram(prometheus.NewDesc("braid_sdc_step_seconds", "Of it, by step: receive, lock, "+
			"wait, cluster, reply.", []string{"volume", "step"}, nil), &h, s.Volume, step)
	}
	for i := range s.Devices {
		d := &s.Devices[i]
		d.collect(series{out, []string{"volume", "device", "server"},
			[]string{s.Volume, strconv.FormatUint(uint64(d.ID), 10), d.Server}})
	}
}

func (d *VolumeDevice) collect(to series) {
	const c, g = prometheus.CounterValue, prometheus.GaugeValue
	to.send(g, "device_connected", "1 while the device can be reached.", truth(d.State == "connected"))
	to.send(g, "device_away_seconds", "Since when it cannot.", float64(d.AwayMS)/1000)
	to.send(g, "device_in_sync", "1 while some group of the volume counts on it.", truth(d.InSync))
	to.send(g, "device_frames_in_flight", "Frames that it has not answered.", float64(d.InFlight))
	to.send(g, "device_frames_queued", "Frames that wait for a connection to it.", float64(d.Queued))
	to.with("op", "read").send(c, "device_bytes_total", "Payload from and to it.", float64(d.ReadBytes))
	to.with("op", "write").send(c, "device_bytes_total", "Payload from and to it.", float64(d.WriteBytes))
	to.send(c, "device_refusals_total", "Answers other than OK.", float64(d.Failed))
	for op, h := range d.Latency {
		one := to.with("op", op)
		to.out <- expose.Histogram(prometheus.NewDesc("braid_sdc_device_answer_seconds",
			"From a frame to its answer.", one.labels, nil), &h, one.values...)
	}
	for step, h := range d.Steps {
		one := to.with("step", step)
		to.out <- expose.Histogram(prometheus.NewDesc("braid_sdc_device_step_seconds",
			"Of it, by step: network, server, store.", one.labels, nil), &h, one.values...)
	}
}
