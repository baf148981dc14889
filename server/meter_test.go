// SPDX-License-Identifier: Apache-2.0

package server

import (
	"encoding/json"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"braid/transport"
	"braid/transport/loop"
)

// Goal: a device tells its counters to whoever asks, and each answer says how long
// the server and its store took, the second being a part of the first. Method: a
// write, a flush and a read on a disk with a file; then OpStats, without a session.
func TestStatsTellWhatHappened(t *testing.T) {
	b := newFileDisk(t, testDiskSize)
	format(t, b)
	r := startRig(t, loop.Auto, newFakeManager(), b)
	p := r.dial(0)
	if s := p.open(1); s != transport.StatusOK {
		t.Fatalf("open: %v", s)
	}
	head := transport.Header{PG: uint32(testPG), Epoch: epoch, Interval: 1, Chunk: 3, Length: 4096}
	for _, op := range []transport.Op{transport.OpWrite, transport.OpFlush, transport.OpRead} {
		h, data := head, []byte(nil)
		if h.Op = op; op == transport.OpWrite {
			data = make([]byte, 4096)
			data[0] = 1
		}
		if op == transport.OpFlush {
			h.Chunk, h.Length = 0, 0 // the map's version
		}
		p.send(h, data)
		got := p.receive()
		if got.Status != transport.StatusOK || got.Epoch > got.PG {
			t.Errorf("op %d: status %v after %d us, %d of them in the store", op, got.Status, got.PG,
				got.Epoch)
		}
		if op == transport.OpFlush && got.PG > 0 && got.Epoch == 0 {
			t.Errorf("a flush took %d us, and nothing of it in the store", got.PG)
		}
	}
	p.send(transport.Header{Op: transport.OpStats}, nil)
	got := p.receive()
	var s DeviceStats
	if err := json.Unmarshal(got.data, &s); err != nil || got.Status != transport.StatusOK {
		t.Fatalf("status %v, %v: %q", got.Status, err, got.data)
	}
	for _, op := range []string{"read", "write", "flush"} {
		served, stored := s.Served[op], s.Stored[op]
		if served.Count() != 1 || stored.Count() != 1 || stored.Sum > served.Sum {
			t.Errorf("%s: %d served in %v, %d stored in %v", op, served.Count(), served.Sum, stored.Count(), stored.Sum)
		}
	}
	written, flushed := s.Disk["write"], s.Disk["flush"]
	if written.Count() < 2 || flushed.Count() < 1 || s.Bytes["write"] != 4096 || s.Bytes["read"] != 4096 ||
		!s.Up || s.Store.Writes != 1 || s.Requests != 1 || s.Connections != 1 {
		t.Errorf("stats %+v", s)
	}
	checkMetrics(t, r.srv.Collector())
	p.close()
	r.stop()
}

// checkMetrics gathers what a page of metrics would show.
func checkMetrics(t *testing.T, c prometheus.Collector) {
	t.Helper()
	reg := prometheus.NewPedanticRegistry()
	reg.MustRegister(c)
	families, err := reg.Gather()
	if err != nil {
		t.Fatal(err)
	}
	found := map[string]bool{}
	for _, f := range families {
		found[f.GetName()] = true
	}
	for _, name := range []string{"braid_sds_request_seconds", "braid_sds_store_seconds", "braid_sds_disk_seconds",
		"braid_sds_receive_seconds", "braid_sds_requests_in_flight", "braid_sds_disk_queue", "braid_sds_map_version",
		"braid_sds_payload_bytes_total", "braid_sds_device_up"} {
		if !found[name] {
			t.Errorf("%s is not among the metrics", name)
		}
	}
}
