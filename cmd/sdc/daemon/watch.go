// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"os"
	"sync/atomic"
	"time"

	"braid/nbd"
	"braid/stripe"
	"braid/stripe/core"
	"braid/transport/loop"
	"braid/transport/meter"
)

// VolumeStats is a volume that is used on this machine, at one moment. Counters
// and histograms grow from the attach on. Sizes are bytes.
type VolumeStats struct {
	Time          time.Time                 `json:"time"`
	Volume        string                    `json:"volume"`
	Where         string                    `json:"where"` // kernel device, or address of the export
	PID           int                       `json:"pid"`
	State         State                     `json:"state"`
	Reason        string                    `json:"reason,omitempty"`
	Size          uint64                    `json:"size"`
	Connections   int                       `json:"connections"`
	InFlight      int                       `json:"in_flight"`
	OldestMS      int64                     `json:"oldest_ms"`
	Reads         uint64                    `json:"reads"`
	Writes        uint64                    `json:"writes"`
	Flushes       uint64                    `json:"flushes"`
	Others        uint64                    `json:"others"`
	ReadBytes     uint64                    `json:"read_bytes"`
	WriteBytes    uint64                    `json:"write_bytes"`
	Errors        uint64                    `json:"errors"`
	Retries       uint64                    `json:"retries"`
	Hedges        uint64                    `json:"hedges"`
	BadSums       uint64                    `json:"bad_sums"`
	Roomless      uint64                    `json:"waiting_for_space"` // requests
	DeviceFlushes uint64                    `json:"device_flushes"`    // drained flushes sent to devices
	Pressure      uint32                    `json:"pressure"`          // of activity logs, thousandths
	MapVersion    uint64                    `json:"map_version"`
	AdoptedMap    uint64                    `json:"adopted_map_version"`
	MapRefused    string                    `json:"map_refused,omitempty"` // why a newer map is not taken
	ResolveGroups int                       `json:"resolve_groups"`
	ResolveChunks int                       `json:"resolve_chunks"`
	Latency       map[string]meter.Snapshot `json:"latency"` // by kind of request
	Steps         map[string]meter.Snapshot `json:"steps"`   // receive, lock, wait, cluster, reply
	Devices       []VolumeDevice            `json:"devices"`
}

// VolumeDevice is what a volume knows of one device of the cluster.
type VolumeDevice struct {
	ID         uint32                    `json:"id"`
	Server     string                    `json:"server"`
	Addr       string                    `json:"addr"`
	State      string                    `json:"state"` // connected, opening, dialling, waiting, broken
	Trouble    string                    `json:"trouble,omitempty"`
	AwayMS     int64                     `json:"away_ms,omitempty"`
	InSync     bool                      `json:"in_sync"`
	Links      int                       `json:"links"`
	InFlight   int                       `json:"in_flight"`
	Queued     int                       `json:"queued"`
	ReadBytes  uint64                    `json:"read_bytes"`
	WriteBytes uint64                    `json:"write_bytes"`
	Failed     uint64                    `json:"failed"`
	Latency    map[string]meter.Snapshot `json:"latency"` // by kind of frame
	Steps      map[string]meter.Snapshot `json:"steps"`   // network, server, store
}

// SlowRequest is one request with the times of its steps, in microseconds.
type SlowRequest struct {
	Volume    string    `json:"volume"`
	Time      time.Time `json:"time"` // of its arrival
	Op        string    `json:"op"`
	Kind      string    `json:"kind"` // read, write, flush, other
	Offset    uint64    `json:"offset"`
	Length    uint64    `json:"length"`
	Failed    bool      `json:"failed"`
	TotalUS   int64     `json:"total_us"`
	ReceiveUS int64     `json:"receive_us"` // until all its bytes were there
	LockUS    int64     `json:"lock_us"`    // for earlier requests that overlap
	WaitUS    int64     `json:"wait_us"`    // then, until its first frame was sent
	ClusterUS int64     `json:"cluster_us"` // then, until all that must had answered
	ReplyUS   int64     `json:"reply_us"`   // then, until the answer was handed to the socket
	Answers   int       `json:"answers"`    // of devices; those below are the slowest
	Hops      []Hop     `json:"hops"`
}

// Hop is one device's answer to a slow request. Sent and Answered count from the
// request's arrival.
type Hop struct {
	Device     uint32 `json:"device"`
	Server     string `json:"server,omitempty"`
	SentUS     int64  `json:"sent_us"`
	AnsweredUS int64  `json:"answered_us"`
	NetworkUS  int64  `json:"network_us"`
	ServerUS   int64  `json:"server_us"` // in the server, outside its store
	StoreUS    int64  `json:"store_us"`
	Try        int    `json:"try"`
	Status     string `json:"status"`
}

// watched is a volume with its port, wherever it is used.
type watched struct {
	where  string
	volume Volume
	port   *nbd.Port
	loop   *loop.Loop
	failed *atomic.Pointer[string] // why the volume can serve no longer; nil: somebody else keeps it
}

// snapshooter is a volume with connections to devices: not one in memory.
type snapshooter interface{ Snapshot() stripe.Snapshot }

// stats asks the loop; for any other goroutine.
func (w *watched) stats() VolumeStats {
	s := VolumeStats{Time: time.Now(), Volume: w.volume.Name(), Where: w.where, PID: os.Getpid(),
		State: StateAttached, Latency: map[string]meter.Snapshot{}, Steps: map[string]meter.Snapshot{},
		Devices: []VolumeDevice{}}
	w.loop.Call(func() {
		n, oldest := w.port.InFlight()
		c, m := w.port.Counters(), w.port.Meters()
		s.Size, s.Connections, s.InFlight = w.volume.Size(), w.port.Conns(), n
		s.OldestMS = oldest.Milliseconds()
		s.Reads, s.Writes, s.Flushes, s.Others = c.Reads, c.Writes, c.Flushes, c.Others
		s.ReadBytes, s.WriteBytes, s.Errors = c.ReadBytes, c.WriteBytes, c.Errors
		for i, name := range nbd.KindNames {
			s.Latency[name] = m.Total[i]
		}
		s.Steps["receive"], s.Steps["lock"], s.Steps["wait"] = m.Receive, m.Lock, m.Wait
		s.Steps["cluster"], s.Steps["reply"] = m.Cluster, m.Answer
	})
	if time.Duration(s.OldestMS)*time.Millisecond > stuckAge {
		s.State = StateWaiting
	}
	if w.failed != nil {
		if why := w.failed.Load(); why != nil {
			s.State, s.Reason = StateFailed, *why
		}
	}
	if v, ok := w.volume.(snapshooter); ok {
		s.add(v.Snapshot())
	}
	return s
}

// add fills in what the volume knows of the cluster.
func (s *VolumeStats) add(v stripe.Snapshot) {
	s.Retries, s.Hedges, s.BadSums = v.Stats.Retries, v.Stats.Hedges, v.Stats.BadSums
	s.Roomless = v.Stats.Roomless
	s.DeviceFlushes, s.Pressure = v.Stats.Flushes, v.Pressure
	s.MapVersion, s.AdoptedMap, s.MapRefused = v.MapVersion, v.Adopted, v.Refused
	s.ResolveGroups, s.ResolveChunks = v.ResolveGroups, v.ResolveChunks
	for i := range v.Devices {
		d := &v.Devices[i]
		x := VolumeDevice{ID: uint32(d.ID), Server: d.Server, Addr: d.Addr, State: d.State, Trouble: d.Trouble,
			AwayMS: d.Away.Milliseconds(), InSync: d.InSync, Links: d.Links, InFlight: d.InFlight,
			Queued: d.Queued, ReadBytes: d.ReadBytes, WriteBytes: d.WriteBytes, Failed: d.Failed,
			Latency: map[string]meter.Snapshot{"read": d.Answer[core.FrameRead],
				"write": d.Answer[core.FrameWrite], "flush": d.Answer[core.FrameFlush]},
			Steps: map[string]meter.Snapshot{"network": d.Network, "server": d.ServerTime, "store": d.Store}}
		if d.Broken != "" {
			x.State, x.Trouble = "broken", d.Broken
		}
		s.Devices = append(s.Devices, x)
	}
}

// slowest are the slowest requests of late, the slowest first.
func (w *watched) slowest() []SlowRequest {
	servers := map[uint32]string{}
	if v, ok := w.volume.(snapshooter); ok {
		for _, d := range v.Snapshot().Devices {
			servers[uint32(d.ID)] = d.Server
		}
	}
	var list []nbd.SlowRequest
	var now int64
	w.loop.Call(func() { list, now = w.port.Slowest(), w.loop.Now() })
	clock := time.Now()
	out := make([]SlowRequest, 0, len(list))
	for i := range list {
		r := &list[i]
		t := &r.Trace
		x := SlowRequest{Volume: w.volume.Name(), Time: clock.Add(time.Duration(t.Arrived - now)),
			Op: r.Op.String(), Kind: nbd.KindNames[nbd.KindOf(r.Op)], Offset: r.Off, Length: r.Len,
			Failed: r.Failed, TotalUS: micros(r.Took),
			ReceiveUS: micros(t.Submitted - t.Arrived), ReplyUS: micros(r.Replied - t.Done),
			Answers: int(t.HopCount), Hops: []Hop{}}
		if t.Granted != 0 {
			x.LockUS = micros(t.Granted - t.Submitted)
		}
		if t.Sent != 0 {
			x.WaitUS = micros(t.Sent-t.Submitted) - x.LockUS
			x.ClusterUS = micros(t.Done - t.Sent)
		} else {
			x.ClusterUS = micros(t.Done-t.Submitted) - x.LockUS
		}
		for _, h := range t.Kept() {
			took := micros(h.Answered - h.Sent)
			x.Hops = append(x.Hops, Hop{Device: h.Device, Server: servers[h.Device],
				SentUS: micros(h.Sent - t.Arrived), AnsweredUS: micros(h.Answered - t.Arrived),
				NetworkUS: max(took-int64(h.Server), 0), ServerUS: int64(h.Server - h.Store),
				StoreUS: int64(h.Store), Try: int(h.Tries), Status: statusName(h.Status)})
		}
		out = append(out, x)
	}
	return out
}

func micros(ns int64) int64 { return ns / int64(time.Microsecond) }

func statusName(s uint16) string {
	names := []string{"ok", "io-error", "no-space", "old-map", "fenced", "no-session", "refused", "bad-checksum",
		"retry", "invalid", "rot"}
	if int(s) < len(names) {
		return names[s]
	}
	return "unknown"
}

// mapRefused says why a volume does not take a newer map, if so.
func mapRefused(v Volume) string {
	if v, ok := v.(snapshooter); ok {
		return v.Snapshot().Refused
	}
	return ""
}

// waitsOf is what a volume's requests wait for.
func waitsOf(v Volume) []Wait {
	list := v.Waiting()
	out := make([]Wait, 0, len(list))
	for _, w := range list {
		out = append(out, Wait{Device: uint32(w.Device), Server: w.Server, Addr: w.Addr, Reason: string(w.Reason),
			Why: w.Why, Next: w.Next, NextAt: w.NextAt, Requests: w.Requests, Since: w.Since,
			Op: w.Op.String(), Offset: w.Off, Length: w.Len})
	}
	return out
}
