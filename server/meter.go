// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"math"
	"time"

	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
	"braid/transport/meter"
)

// Kinds of requests that a device's latencies are told apart by.
const (
	opRead = iota
	opWrite
	opFlush
	opOther
	opKinds
)

// opNames and diskNames are labels of metrics.
var (
	opNames   = [opKinds]string{"read", "write", "flush", "other"}
	diskNames = [diskKinds]string{"read", "write", "flush", "discard"}
)

// diskKinds counts the store's kinds of operations.
const diskKinds = int(store.IODiscard) + 1

// deviceMeter is what the loop of a device measures.
type deviceMeter struct {
	served  [opKinds]meter.Histogram   // from the header to the answer
	receive meter.Histogram            // of it, until the payload was there
	store   [opKinds]meter.Histogram   // of it, in the store: log, disk, their queues
	disk    [diskKinds]meter.Histogram // operations of the disk
	bytes   [opKinds]uint64            // payload
}

// measure counts a request that is about to be answered. It returns what the reply
// says of it: microseconds in all, and in the store.
func (d *device) measure(s *slot) (served, stored uint32) {
	now := d.loop.Now()
	kind := opOther
	switch s.head.Op {
	case transport.OpRead, transport.OpCopy:
		kind = opRead
		d.meter.bytes[kind] += uint64(s.head.Length)
	case transport.OpWrite:
		kind = opWrite
		d.meter.bytes[kind] += uint64(s.head.Payload)
	case transport.OpFlush:
		kind = opFlush
	}
	took := now - s.arrived
	d.meter.served[kind].Record(took)
	if (kind == opRead || kind == opWrite) && !s.conn.isPeer() {
		d.front.Record(now, took)
	}
	if s.state != slotStored {
		return micros(took), 0
	}
	inStore := now - s.since
	d.meter.store[kind].Record(inStore)
	if kind == opWrite {
		d.meter.receive.Record(took - inStore)
	}
	return micros(took), micros(inStore)
}

// frontLoad is the 99th percentile of clients' reads and writes of late, in
// microseconds; 0: none is being served.
func (d *device) frontLoad() uint32 { return micros(d.front.P99(d.loop.Now())) }

func micros(ns int64) uint32 {
	return uint32(min(max(ns, 0)/int64(time.Microsecond), math.MaxUint32))
}

// DeviceStats is what a device tells of itself, on its metrics page and in answer
// to OpStats. Counters and histograms grow from the start of the server on.
type DeviceStats struct {
	Path        string `json:"path"`
	UUID        string `json:"uuid"`
	Up          bool   `json:"up"`
	Failed      string `json:"failed,omitempty"`
	Connections int    `json:"connections"`
	Requests    int    `json:"requests"` // being received, stored or answered
	DiskQueue   int    `json:"disk_queue"`
	OldestMS    int64  `json:"oldest_ms"` // of the disk's operations
	Pressure    int    `json:"pressure"`  // of the activity log, thousandths
	MapVersion  uint64 `json:"map_version"`
	Buffers     int    `json:"buffers"` // in use

	Served  map[string]meter.Snapshot `json:"served"`
	Stored  map[string]meter.Snapshot `json:"stored"`
	Disk    map[string]meter.Snapshot `json:"disk"`
	Receive meter.Snapshot            `json:"receive"`
	Bytes   map[string]uint64         `json:"bytes"`
	Store   store.Stats               `json:"store"`
	Loop    loop.Stats                `json:"loop"`
}

// snapshot is for the device's loop.
func (d *device) snapshot() DeviceStats {
	s := DeviceStats{Path: d.path, UUID: d.uuid.String(), Up: d.state == deviceServing && d.hung == "",
		Failed: d.currentReport().Failed, Connections: len(d.conns), Requests: d.slots.busy,
		Pressure: d.core.Pressure(), MapVersion: d.gate.Adopted(), Buffers: d.pool.Outstanding(),
		Served: map[string]meter.Snapshot{}, Stored: map[string]meter.Snapshot{},
		Disk: map[string]meter.Snapshot{}, Receive: d.meter.receive.Snapshot(),
		Bytes: map[string]uint64{}, Store: d.core.Stats(), Loop: d.loop.Stats()}
	for o := d.oldest; o != nil; o = o.next {
		s.DiskQueue++
	}
	if d.oldest != nil {
		s.OldestMS = (d.loop.Now() - d.oldest.since) / int64(time.Millisecond)
	}
	for i, name := range opNames {
		s.Served[name], s.Stored[name] = d.meter.served[i].Snapshot(), d.meter.store[i].Snapshot()
		s.Bytes[name] = d.meter.bytes[i]
	}
	for i, name := range diskNames {
		s.Disk[name] = d.meter.disk[i].Snapshot()
	}
	return s
}

// scrapePatience is how long a page of metrics waits for a device's loop.
const scrapePatience = time.Second

// measured asks the loop, from any other goroutine; false if it does not answer.
func (d *device) measured() (DeviceStats, bool) {
	if !d.live.Load() {
		return DeviceStats{}, false
	}
	got := make(chan DeviceStats, 1)
	d.loop.Post(func() { got <- d.snapshot() })
	timer := time.NewTimer(scrapePatience)
	defer timer.Stop()
	select {
	case s := <-got:
		return s, true
	case <-d.loop.Done():
	case <-timer.C:
	}
	return DeviceStats{}, false
}

// tellStats answers OpStats. It is asked by people, once a second at most.
func (d *device) tellStats(s *slot) {
	clearRequest(&s.req)
	b, err := json.Marshal(d.snapshot())
	if err != nil || len(b) > len(s.payload) {
		d.log.Error("the counters do not fit an answer", "bytes", len(b), "error", err)
		d.reply(s, transport.StatusNoSpace)
		return
	}
	s.req.Data = s.payload[:copy(s.payload, b)]
	d.reply(s, transport.StatusOK)
}
