// SPDX-License-Identifier: Apache-2.0

package core

import (
	"time"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
	"braid/transport/meter"
)

// The kinds of frames that DeviceStats tells apart.
const (
	FrameRead = iota
	FrameWrite
	FrameFlush
	frameKinds
)

// deviceMeter is what is measured of a device's answers. A device keeps its own
// for as long as the volume is attached.
type deviceMeter struct {
	answer     [frameKinds]meter.Histogram // from frame to answer
	network    meter.Histogram             // of it, what the server did not take
	server     meter.Histogram             // of it, what it took, outside its store
	store      meter.Histogram             // and in its store
	readBytes  uint64
	writeBytes uint64
	failed     uint64
}

// measure counts an answer, and adds it to the trace of the request that it is
// for. The frame has ended; nothing has used it again yet.
func (c *Core) measure(ref int32, f *Frame, h *transport.Header) {
	d := &c.devs[f.dev]
	m := d.meter
	kind := FrameRead
	switch f.Header.Op {
	case transport.OpRead:
		m.readBytes += uint64(h.Payload)
	case transport.OpWrite, transport.OpTrim, transport.OpZero:
		kind = FrameWrite
		m.writeBytes += uint64(f.Header.Payload)
	case transport.OpFlush:
		kind = FrameFlush
	default:
		return
	}
	took := c.now - f.at
	server := min(int64(h.PG)*int64(time.Microsecond), took)
	store := min(int64(h.Epoch)*int64(time.Microsecond), server)
	m.answer[kind].Record(took)
	m.network.Record(took - server)
	m.server.Record(server - store)
	m.store.Record(store)
	if h.Status != transport.StatusOK {
		m.failed++
	}
	if ref == none {
		return
	}
	if r := c.askedBy(ref, f); r != nil {
		r.Trace.AddHop(bio.Hop{Device: uint32(d.id), Status: uint16(h.Status), Tries: c.copies[ref].tries,
			Sent: f.at, Answered: c.now, Server: h.PG, Store: h.Epoch})
	}
}

// askedBy is the front end's request behind a copy; of a flush, the first of those
// that share it.
func (c *Core) askedBy(ref int32, f *Frame) *bio.Request {
	if p := c.pieceOf(ref); p != nil {
		return c.reqs[p.req].r
	}
	if f.Header.Op == transport.OpFlush {
		return c.flush.active.head
	}
	return nil
}

// DeviceStats are what a volume knows of one device, since its attach.
type DeviceStats struct {
	ID        cluster.DeviceID
	Server    string
	Addr      string
	Local     bool
	InSync    bool  // of some group of the volume's
	Member    bool  // of some group, be it as a target
	Links     int   // open connections
	AwaySince int64 // loop time; 0: it is connected
	Broken    string
	InFlight  int // frames
	Queued    int // frames that wait for a connection

	Answer                [frameKinds]meter.Snapshot
	Network, ServerTime   meter.Snapshot
	Store                 meter.Snapshot
	ReadBytes, WriteBytes uint64
	Failed                uint64
}

// Devices tells of each device that the volume has to do with. For people: it
// allocates.
func (c *Core) Devices() []DeviceStats {
	out := make([]DeviceStats, 0, len(c.devs))
	for i := range c.devs {
		d := &c.devs[i]
		m := d.meter
		if !d.member && !d.inSync && m.answer[FrameRead].Snapshot().Counts == nil &&
			m.answer[FrameWrite].Snapshot().Counts == nil {
			continue
		}
		s := DeviceStats{ID: d.id, Server: d.server, Addr: d.addr, Local: d.local, InSync: d.inSync,
			Member: d.member, Links: len(d.open), Broken: d.broken, InFlight: int(d.inFlight),
			Queued: d.queue.n, Network: m.network.Snapshot(), ServerTime: m.server.Snapshot(),
			Store: m.store.Snapshot(), ReadBytes: m.readBytes, WriteBytes: m.writeBytes, Failed: m.failed}
		for k := range s.Answer {
			s.Answer[k] = m.answer[k].Snapshot()
		}
		if !d.reachable() {
			s.AwaySince = d.awaySince
		}
		out = append(out, s)
	}
	return out
}

// Pressure is the highest of the devices' activity logs since the last flush, in
// thousandths.
func (c *Core) Pressure() uint32 { return c.pressure }

// Resolving counts what the attach has left to do: groups whose activity logs are
// not known, and chunks that may differ.
func (c *Core) Resolving() (groups, chunks int) { return c.gate.uncollected, c.resolver.suspects }
