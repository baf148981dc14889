// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"slices"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// strays is a write that lands at another place: what was to be there is old, and
// what was there is overwritten. Until it is mended both sectors are known to be
// wrong on this disk, and only there.
func (d *Disk) strays(p []byte, off int64) {
	to := d.astray
	d.astray = 0
	d.write(p, to)
	for o := 0; o < len(p); o += sectorSize {
		for _, at := range []int64{off, to} {
			d.wrong = append(d.wrong, int32((at+int64(o))/sectorSize))
		}
	}
	d.righted = nil
	d.w.mark("misdirected write")
}

// isWrong reports whether a block of a chunk is one that a stray write spoilt.
func (n *Node) isWrong(p *store.Peek, b uint64) bool {
	return p.Stored && slices.Contains(n.disk.wrong, int32(p.At/sectorSize+int64(b)))
}

// mend puts back what does not match its checksums, from another in-sync copy:
// package server has the same around the same requests of the store.
func (n *Node) mend(j *job) {
	id, status := n.gate.Session(j.conn.id, j.head.Session)
	n.reply(j, status)
	if status != transport.StatusOK || n.mending != nil {
		return
	}
	for _, v := range n.w.volumes {
		if v.id == id {
			n.mendFrom(v, j.head)
		}
	}
}

func (n *Node) mendFrom(v *Volume, h transport.Header) {
	w, life := n.w, n.life
	for _, dev := range w.pgOf(v, h.Chunk).InSync {
		o := w.nodeOf(dev)
		if o == nil || o == n || o.state != nodeUp {
			continue
		}
		r := store.Request{Op: store.OpRead, Raw: true, Volume: v.id, Gen: o.core.Generation(v.id), Chunk: h.Chunk,
			Offset: h.Offset, Length: h.Length, Data: make([]byte, h.Length), Sums: make([]byte, h.Length/block*8)}
		n.mending = &r
		o.own(r, func(s transport.Status) {
			if n.life == life && n.mending == &r { // else it was given up
				n.mending = nil
				if s == transport.StatusOK && transport.VerifySums(r.Data, r.Sums) < 0 {
					n.repair(&r)
				}
			}
		})
		w.after(s1, evNode, n.id, func() { // the other one may have died
			if n.life == life && n.mending == &r {
				n.mending = nil
			}
		})
		return
	}
}

func (n *Node) repair(good *store.Request) {
	life, r := n.life, *good
	n.mending = &r // another one than what mendFrom gives up after a while
	n.own(store.Request{Op: store.OpRepair, Volume: r.Volume, Chunk: r.Chunk, Offset: r.Offset, Length: r.Length,
		Data: r.Data, Sums: r.Sums}, func(s transport.Status) {
		if n.life != life {
			return
		}
		n.mending = nil
		n.w.logf("%s mends chunk %d of volume %d: status %d", n.name, r.Chunk, r.Volume, s)
		if s == transport.StatusOK && n.core.Stats().Mended > 0 {
			n.w.mark(markMended)
		}
	})
}

// isMending reports whether a write to a chunk may be a repair's, which needs no
// entry in the log: the bytes are those that belong there.
func (n *Node) isMending(id cluster.VolumeID, chunk uint64) bool {
	return n.mending != nil && n.mending.Volume == id && n.mending.Chunk == chunk
}
