// SPDX-License-Identifier: Apache-2.0

package server

import (
	"braid/cluster"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
)

// control starts an open, fence or close request. The order of a fence (rule
// 14): stop admitting, in the gate and at once; drain what the store has and
// persist the generation, in the store; reply, when that is done.
func (d *device) control(s *slot) {
	if status := d.serving(); status != transport.StatusOK {
		d.reply(s, status)
		return
	}
	if s.conn.isPeer() {
		d.reply(s, transport.StatusRefused)
		return
	}
	switch s.head.Op {
	case transport.OpClose:
		d.reply(s, d.gate.CloseSession(s.conn.id, s.head.Session))
		return
	case transport.OpConfirm:
		d.reply(s, d.gate.Confirm(s.conn.id, s.head.Session))
		return
	}
	if s.head.Sums != 0 || s.open.Decode(s.payload) != nil {
		d.reply(s, transport.StatusInvalid)
		return
	}
	volume := cluster.VolumeID(s.open.Volume)
	if status := d.gate.OpenBegin(s.opener(), &s.open, d.core.Generation(volume)); status != transport.StatusOK {
		d.reply(s, status)
		return
	}
	clearRequest(&s.req)
	s.req.Op, s.req.Volume, s.req.Gen = store.OpFence, volume, cluster.Generation(s.open.Generation)
	d.submit(s)
}

// mendFor has mended what a client could not read.
func (d *device) mendFor(s *slot) transport.Status {
	h := &s.head
	volume, status := d.gate.Session(s.conn.id, h.Session)
	if status != transport.StatusOK {
		return status
	}
	if !validRange(h.Offset, h.Length) {
		return transport.StatusInvalid
	}
	d.mend.add(mendJob{key: gate.Key{Volume: volume, Chunk: h.Chunk}, off: h.Offset, length: h.Length})
	return transport.StatusOK
}

// mendRot has mended what a target found rotten when it wanted to copy from here.
func (d *device) mendRot(s *slot) {
	rot := &s.req.Table.Rot
	first, last := -1, 0
	for b := range cluster.BlocksPerChunk {
		if rot.Has(b) {
			if first < 0 {
				first = b
			}
			last = b
		}
	}
	if first >= 0 {
		d.mend.add(mendJob{key: gate.Key{Volume: s.req.Volume, Chunk: s.head.Chunk},
			off: uint32(first) * cluster.BlockSize, length: uint32(last+1-first) * cluster.BlockSize})
	}
}

// opener says for the gate who sent an open or fence request.
func (s *slot) opener() gate.Opener {
	return gate.Opener{Conn: s.conn.id, Link: s.conn.link(), Fence: s.head.Op == transport.OpFence}
}

// fenced ends an open or fence request when the store has drained and persisted.
func (d *device) fenced(s *slot) {
	o := s.opener()
	o.Fence = o.Fence || s.conn.closed // nobody is left to have a session
	handle, status := d.gate.OpenEnd(o, &s.open, d.core.Generation(s.req.Volume), s.req.Status)
	if handle != 0 {
		s.head.Session = handle
	}
	d.gateMoved()
	d.reply(s, status)
}

// gateMoved does what the gate asks for after it has learned something, before
// another request reaches the store.
func (d *device) gateMoved() {
	if d.gate.Map() == nil {
		return
	}
	if d.gate.Demoted() {
		d.keepRegions()
	}
	for _, volume := range d.gate.Raised() {
		d.dirtyRegions(volume)
	}
	d.vacate()
}

// keepRegions has the activity-log entries of groups in which this device is not
// in sync stay there. A drained flush says that the in-sync copies are equal;
// these entries say where this copy may not be.
func (d *device) keepRegions() {
	m := d.gate.Map()
	d.core.Suspect(func(id cluster.VolumeID, chunk uint64) bool {
		v := m.Volumes[id]
		if v == nil {
			return false // deleted, or of another cluster's past: nobody compares it
		}
		pg := m.VolumePG(v, chunk)
		if pg == nil {
			return true
		}
		role, _ := d.gate.Role(pg.ID)
		return role != gate.RoleReplica
	})
}

// dirtyRegions is rule 27 for a volume that was attached: what the old client
// wrote may have reached this target alone.
func (d *device) dirtyRegions(volume cluster.VolumeID) {
	m := d.gate.Map()
	v := m.Volumes[volume]
	if v == nil {
		return
	}
	d.core.EachRegion(func(id cluster.VolumeID, layer uint32, chunk uint64) {
		if id != volume {
			return
		}
		pg := m.VolumePG(v, chunk)
		for _, t := range d.gate.Targets() {
			if pg != nil && t.PG == pg.ID {
				t.Mark(gate.Key{Volume: id, Layer: layer, Chunk: chunk})
			}
		}
	})
}
