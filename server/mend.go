// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"

	"braid/cluster"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// maxMends bounds the queue: what does not fit is found again.
const maxMends = 1024

// mendJob is a range of a chunk in which some block does not match its checksum.
type mendJob struct {
	key         gate.Key
	off, length uint32
}

// mender puts back what rotted on a device, whoever has found it: a client that
// read it, a scrub, a target that wanted to copy it. It asks another in-sync copy
// for the range, and has the store write what belongs there: bytes that match the
// checksum that is stored here, and no others. So nothing has to be locked, and
// nothing wrong can be written, whatever happens meanwhile.
//
// One range at a time, on a connection of its own.
type mender struct {
	d     *device
	queue []mendJob
	known map[mendJob]bool
	busy  bool
	job   mendJob
	left  []cluster.DeviceID // copies that have not been asked yet
	link  *mendLink          // open, or being opened
	over  bool
	buf   []byte
	sums  []byte
	// Ranges that no copy could mend.
	unmended uint64
}

var errMended = errors.New("server: the range is mended, or cannot be")

func newMender(d *device) *mender { return &mender{d: d, known: map[mendJob]bool{}} }

// add has a range looked at, and mended from another copy.
func (m *mender) add(j mendJob) {
	if m.over || len(m.queue) >= maxMends || m.known[j] {
		return
	}
	m.known[j] = true
	m.queue = append(m.queue, j)
	m.next()
}

// next begins with the next range.
func (m *mender) next() {
	d := m.d
	if m.busy || m.over || m.link != nil || len(m.queue) == 0 || d.gate.Map() == nil {
		return
	}
	m.job, m.busy = m.queue[0], true
	m.queue = m.queue[1:]
	m.left = nil
	if pg := m.group(); pg != nil {
		for _, id := range pg.InSync {
			if id != d.gate.Device() {
				m.left = append(m.left, id)
			}
		}
	}
	if m.buf == nil {
		m.buf = alignedBytes(cluster.ChunkSize)
	}
	m.ask()
}

func (m *mender) group() *cluster.PG {
	now := m.d.gate.Map()
	v := now.Volumes[m.job.key.Volume]
	if v == nil {
		return nil
	}
	return now.VolumePG(v, m.job.key.Chunk)
}

// ask asks the next copy, or gives up.
func (m *mender) ask() {
	d := m.d
	if m.over {
		return
	}
	if len(m.left) == 0 {
		if m.group() != nil {
			m.unmended++
			d.log.Error("a range does not match its checksums and no other copy has what belongs there",
				"volume", m.job.key.Volume, "chunk", m.job.key.Chunk, "offset", m.job.off, "length", m.job.length)
		}
		m.done()
		return
	}
	id := m.left[0]
	m.left = m.left[1:]
	dev := d.gate.Map().Devices[id]
	if dev == nil || dev.Addr == "" {
		m.ask()
		return
	}
	l := &mendLink{m: m}
	m.link = l
	hello := transport.Hello{Cluster: d.gate.Map().Cluster, Device: dev.UUID, Client: d.uuid, Role: transport.Peer}
	addr := dev.Addr
	d.tasks.Go(func() {
		_, _, err := transport.Dial(d.target.ctx, d.loop, addr, hello, func(transport.HelloReply) transport.Handler {
			if m.over {
				return nil
			}
			return l
		})
		if err != nil {
			d.loop.Post(func() { l.gone() })
		}
	})
}

// have takes the range as the other copy has it.
func (m *mender) have(sums []byte) {
	m.sums = append(m.sums[:0], sums...)
	j := m.job
	var o *ownRequest
	o = m.d.own(store.Request{Op: store.OpRepair, Volume: j.key.Volume, Layer: j.key.Layer, Chunk: j.key.Chunk,
		Offset: j.off, Length: j.length, Data: m.buf[:j.length], Sums: m.sums}, func(status transport.Status) {
		switch {
		case m.over:
		case status != transport.StatusOK:
			m.ask() // what it has is not what belongs here
			return
		case o.req.Value > 0:
			m.d.log.Warn("mended what did not match its checksums", "volume", j.key.Volume, "chunk", j.key.Chunk,
				"offset", j.off, "length", j.length, "blocks", o.req.Value)
		}
		m.done()
	})
}

func (m *mender) done() {
	m.busy = false
	delete(m.known, m.job)
	m.d.refreshReport()
	m.next()
}

// stop ends it, with the device.
func (m *mender) stop() {
	m.over = true
	if m.link != nil && m.link.tc != nil {
		m.link.tc.Close(errStopping)
	}
}

// mendLink is a connection to another copy, for one range. It is a
// transport.Handler.
type mendLink struct {
	m     *mender
	tc    *transport.Conn
	msg   transport.Msg
	views [1][]byte
	good  bool // the range has come
	sums  []byte
}

// Opened is the first call for a connection.
func (l *mendLink) Opened(tc *transport.Conn) {
	l.tc = tc
	m := l.m
	pg := m.group()
	if pg == nil || m.over {
		tc.Close(errMended)
		return
	}
	_, epoch := m.d.gate.Role(pg.ID)
	l.msg.Header = transport.Header{Op: transport.OpCopy, ID: 1, PG: uint32(pg.ID), Epoch: epoch,
		Chunk: m.job.key.Chunk, Interval: uint64(m.job.key.Volume), Offset: m.job.off, Length: m.job.length}
	tc.Send(&l.msg)
}

// Incoming finds the room for the reply.
func (l *mendLink) Incoming(tc *transport.Conn, h *transport.Header) ([][]byte, bool) {
	if h.Payload > l.m.job.length || h.Flags&transport.FlagReply == 0 {
		tc.Close(errProtocol)
		return nil, false
	}
	if h.Payload == 0 {
		return nil, true
	}
	l.views[0] = l.m.buf[:h.Payload]
	return l.views[:], true
}

// Frame takes the reply. The connection has served its purpose.
func (l *mendLink) Frame(tc *transport.Conn, h *transport.Header, sums []byte) {
	if h.Status == transport.StatusOK && h.Payload == l.m.job.length &&
		transport.VerifySums(l.m.buf[:h.Payload], sums) < 0 {
		l.good, l.sums = true, append([]byte(nil), sums...)
	}
	tc.Close(errMended)
}

// Closed is the last call for a connection.
func (l *mendLink) Closed(*transport.Conn, error) { l.gone() }

// gone goes on when nothing touches the memory of the range any more.
func (l *mendLink) gone() {
	m := l.m
	m.link = nil
	switch {
	case m.over:
		m.d.emptied()
	case l.good:
		m.have(l.sums)
	default:
		m.ask()
	}
}
