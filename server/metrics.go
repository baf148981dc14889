// SPDX-License-Identifier: Apache-2.0

package server

import (
	"strconv"

	"github.com/prometheus/client_golang/prometheus"

	"braid/server/store"
	"braid/transport"
	"braid/transport/meter/expose"
)

// Collector exposes the server's counters. It reads what loops publish and
// never waits for one.
func (s *Server) Collector() prometheus.Collector { return &collector{server: s} }

type collector struct{ server *Server }

// metric is one series of a device, by the store's own counters.
type metric struct {
	name, help string
	kind       prometheus.ValueType
	value      func(*store.Stats) uint64
}

func storeMetrics() []metric {
	const c, g = prometheus.CounterValue, prometheus.GaugeValue
	type stats = store.Stats
	return []metric{
		{"reads_total", "Read requests.", c, func(s *stats) uint64 { return s.Reads }},
		{"writes_total", "Write requests.", c, func(s *stats) uint64 { return s.Writes }},
		{"trims_total", "Trim and zero requests.", c, func(s *stats) uint64 { return s.Trims }},
		{"flushes_total", "Flush requests.", c, func(s *stats) uint64 { return s.Flushes }},
		{"device_flushes_total", "Cache flushes of the disk.", c,
			func(s *stats) uint64 { return s.DeviceFlushes }},
		{"log_pages_total", "Pages written to the log ring.", c,
			func(s *stats) uint64 { return s.LogPages }},
		{"fold_pages_total", "Checksum pages written.", c,
			func(s *stats) uint64 { return s.FoldPages }},
		{"rot_blocks_total", "Blocks that did not match their checksum.", c,
			func(s *stats) uint64 { return s.Rot }},
		{"mended_blocks_total", "Of these, blocks that were written again from another copy.", c,
			func(s *stats) uint64 { return s.Mended }},
		{"scrubbed_bytes_total", "Bytes read and verified by scrubs.", c,
			func(s *stats) uint64 { return s.ScrubBytes }},
		{"log_pages_in_use", "Pages of the log ring that are in use.", g,
			func(s *stats) uint64 { return s.RingUsed }},
		{"store_errors_total", "Requests that the store failed.", c,
			func(s *stats) uint64 { return s.Errors }},
		{"chunks", "Chunks that fit on the device.", g, func(s *stats) uint64 { return s.Chunks }},
		{"chunks_free", "Chunks of them that are free.", g,
			func(s *stats) uint64 { return s.ChunksFree }},
		{"activity_log_entries", "Regions in the activity log.", g,
			func(s *stats) uint64 { return s.AL }},
	}
}

// Describe sends nothing: the series depend on the devices.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends each device's series.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	for _, d := range c.server.devices {
		d.collect(out)
	}
	send := sender(out, nil)
	tr := c.server.traffic.Read()
	send(prometheus.CounterValue, "received_bytes_total", "Bytes received.", float64(tr.BytesIn))
	send(prometheus.CounterValue, "sent_bytes_total", "Bytes sent.", float64(tr.BytesOut))
	for i, n := range tr.Closed {
		if n > 0 {
			send(prometheus.CounterValue, "connections_closed_total", "Connections that ended, by reason.",
				float64(n), "reason", transport.Reason(i).String())
		}
	}
}

// sendFunc sends one value; more are pairs of label and value.
type sendFunc func(kind prometheus.ValueType, name, help string, v float64, more ...string)

func sender(out chan<- prometheus.Metric, labels prometheus.Labels) sendFunc {
	return func(kind prometheus.ValueType, name, help string, v float64, more ...string) {
		keys, values := []string{}, []string{}
		for i := 0; i+1 < len(more); i += 2 {
			keys, values = append(keys, more[i]), append(values, more[i+1])
		}
		desc := prometheus.NewDesc("braid_sds_"+name, help, keys, labels)
		out <- prometheus.MustNewConstMetric(desc, kind, v, values...)
	}
}

func (d *device) collect(out chan<- prometheus.Metric) {
	send := sender(out, prometheus.Labels{"device": d.path, "uuid": d.uuid.String()})
	up := 0.0
	report := d.currentReport()
	if report.Failed == "" {
		up = 1
	}
	send(prometheus.GaugeValue, "device_up", "1 while the device is in service.", up)
	if r := report.Resync; r != nil {
		send(prometheus.GaugeValue, "resync_groups", "Groups that are being brought in sync.", float64(r.Groups))
		send(prometheus.GaugeValue, "resync_chunks_left", "Chunks left to copy, at most.", float64(r.ChunksLeft))
		send(prometheus.GaugeValue, "resync_copied_bytes_per_second", "Copied of what differed, measured.",
			float64(r.CopiedPerSecond))
		send(prometheus.GaugeValue, "resync_settled_bytes_per_second", "By which chunks left become fewer, measured.",
			float64(r.SettledPerSecond))
	}
	if !d.live.Load() {
		return
	}
	d.collectMeters(out)
	const c, g = prometheus.CounterValue, prometheus.GaugeValue
	st, ls := &d.stats, d.loop.Stats()
	send(c, "frames_total", "Requests received.", float64(st.frames.Load()))
	send(c, "resync_bytes_total", "Bytes copied to bring groups in sync.", float64(st.resynced.Load()))
	send(c, "resync_skipped_bytes_total", "Written by clients to chunks still to be copied, and left to that.",
		float64(st.skipped.Load()))
	send(c, "resync_repeated_chunks_total", "Chunks whose copy had to begin anew.", float64(st.repeated.Load()))
	send(c, "paced_writes_total", "Writes of new chunks that were slowed, as the device is nearly full.",
		float64(st.paced.Load()))
	send(c, "disk_operations_total", "Operations given to the disk.", float64(st.diskOps.Load()))
	send(c, "disk_errors_total", "Operations that the disk failed.", float64(st.diskErrors.Load()))
	send(c, "pauses_total", "Times a connection waited for memory.", float64(st.pauses.Load()))
	send(g, "connections", "Open connections.", float64(st.conns.Load()))
	send(g, "pressure", "Pressure of the activity log, 0 to 1000.", float64(st.pressure.Load()))
	send(g, "buffers_out", "Payload buffers in use.", float64(d.pool.Outstanding()))
	send(c, "loop_enters_total", "System calls that submit and wait.", float64(ls.Enters))
	send(g, "loop_batching", "Whether the thread waits until a core is free, 0 or 1.", float64(ls.Batching))
	send(c, "loop_operations_total", "Operations that the loop completed.", float64(ls.Ops))
	send(c, "loop_ring_operations_total", "Of these, by io_uring.", float64(ls.RingOps))
	for i := range st.refusals {
		if n := st.refusals[i].Load(); n > 0 {
			send(c, "refusals_total", "Replies other than OK.", float64(n), "status", strconv.Itoa(i))
		}
	}
	if s := st.store.Load(); s != nil {
		for _, m := range storeMetrics() {
			send(m.kind, m.name, m.help, float64(m.value(s)))
		}
	}
}

// collectMeters sends what only the loop of the device can tell.
func (d *device) collectMeters(out chan<- prometheus.Metric) {
	s, ok := d.measured()
	if !ok {
		return
	}
	labels := prometheus.Labels{"device": d.path, "uuid": d.uuid.String()}
	send := sender(out, labels)
	send(prometheus.GaugeValue, "requests_in_flight", "Requests that are received, stored or answered.",
		float64(s.Requests))
	send(prometheus.GaugeValue, "disk_queue", "Operations that the disk has.", float64(s.DiskQueue))
	send(prometheus.GaugeValue, "map_version", "Version of the map that is adopted.", float64(s.MapVersion))
	request := prometheus.NewDesc("braid_sds_request_seconds",
		"From a request's header to its answer.", []string{"op"}, labels)
	stored := prometheus.NewDesc("braid_sds_store_seconds",
		"Of it, in the store: activity log, disk, and the queues before them.", []string{"op"}, labels)
	disk := prometheus.NewDesc("braid_sds_disk_seconds", "Operations of the disk.", []string{"op"}, labels)
	receive := prometheus.NewDesc("braid_sds_receive_seconds",
		"From a write's header to its last byte.", nil, labels)
	for i, name := range opNames {
		served, inStore := s.Served[name], s.Stored[name]
		out <- expose.Histogram(request, &served, name)
		out <- expose.Histogram(stored, &inStore, name)
		if i != opFlush {
			send(prometheus.CounterValue, "payload_bytes_total", "Payload of requests.",
				float64(s.Bytes[name]), "op", name)
		}
	}
	for _, name := range diskNames {
		one := s.Disk[name]
		out <- expose.Histogram(disk, &one, name)
	}
	out <- expose.Histogram(receive, &s.Receive)
}
