// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"
	"slices"
	"strings"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
	"braid/transport/bio"
)

// touch is a chunk of a node that an event may have changed.
type touch struct {
	n     *Node
	v     *Volume
	chunk uint64
}

// touched notes what an operation of the disk was about.
func (n *Node) touched(x *store.IO) {
	if x.Kind != store.IOWrite || x.Meta || n.core == nil {
		return
	}
	for _, v := range n.w.volumes {
		for chunk := range v.size / cluster.ChunkSize {
			p := n.core.Peek(v.id, 0, chunk)
			if p.Stored && x.Off >= p.At && x.Off < p.At+cluster.ChunkSize {
				// Rule 2 (and invariant 3): data reaches the device only in a logged region.
				if !p.Logged && !n.isMending(v.id, chunk) {
					n.w.failf("%s writes data of %s chunk %d, which is not in its activity log", n.name, v.name, chunk)
				}
				n.w.touch(n, v, chunk)
			}
		}
	}
}

func (w *World) touch(n *Node, v *Volume, chunk uint64) {
	t := touch{n, v, chunk}
	if !slices.Contains(w.touched, t) {
		w.touched = append(w.touched, t)
	}
}

// check looks after each event at what the event touched.
func (w *World) check() {
	for _, t := range w.touched {
		w.contained(t.v, t.chunk)
	}
	w.touched = w.touched[:0]
}

// pgOf is the group of a chunk as it is at this instant.
func (w *World) pgOf(v *Volume, chunk uint64) *cluster.PG {
	return w.mdm.m.VolumePG(w.mdm.m.Volumes[v.id], chunk)
}

func (w *World) nodeOf(id cluster.DeviceID) *Node {
	for _, n := range w.nodes {
		if n.dev == id && id != 0 {
			return n
		}
	}
	return nil
}

// contained is invariant 4: where two in-sync replicas differ, the region is in
// the durable activity log of at least one.
func (w *World) contained(v *Volume, chunk uint64) {
	pg := w.pgOf(v, chunk)
	if pg == nil {
		return
	}
	var first *Node
	var p0 store.Peek
	for _, id := range pg.InSync {
		n := w.nodeOf(id)
		if n == nil || n.core == nil || n.state != nodeUp {
			return // what it holds is seen when it is back
		}
		p := n.core.Peek(v.id, 0, chunk)
		if p.Logged || !p.Known {
			return
		}
		if first == nil {
			first, p0 = n, p
			continue
		}
		for b := range uint64(cluster.BlocksPerChunk) {
			if x, y := first.content(&p0, b), n.content(&p, b); !same(x, y) &&
				!first.isWrong(&p0, b) && !n.isWrong(&p, b) {
				w.failf("%s chunk %d block %d differs between %s and %s, in sync, and neither has it "+
					"in its activity log (invariant 4): %x, %x; tags %v, %v", v.name, chunk, b, first.name, n.name,
					idText(x), idText(y), p0.Tag, p.Tag)
				return
			}
		}
	}
}

func idText(s *sector) any {
	if s == nil {
		return "zeroes"
	}
	return s[:8]
}

var zeroSector = new(sector)

// content is a block of a chunk as a read would see it; nil: zeroes.
func (n *Node) content(p *store.Peek, b uint64) *sector {
	if !p.Stored || p.Present[b/8]&(1<<(b%8)) == 0 {
		return nil
	}
	return n.disk.view[p.At/sectorSize+int64(b)]
}

func same(x, y *sector) bool {
	if x == y {
		return true
	}
	if x == nil {
		x = zeroSector
	}
	if y == nil {
		y = zeroSector
	}
	return *x == *y
}

// ackedWrite is invariant 1: an acked write is applied on each replica of the
// in-sync set at that instant. A node that restarted meanwhile may have lost
// it, and is judged by what the client makes of that.
func (w *World) ackedWrite(v *Volume, q *request) {
	for i := range q.count {
		chunk, inChunk := v.locate(q.first + i)
		h := &v.oracle.blocks[q.first+i]
		if h.low != q.index[i] {
			continue
		}
		pg := w.pgOf(v, chunk)
		for _, id := range pg.InSync {
			n := w.nodeOf(id)
			if n == nil || n.state != nodeUp || n.bornAt > q.since {
				continue
			}
			p := n.core.Peek(v.id, 0, chunk)
			if !p.Known || n.isWrong(&p, inChunk) {
				continue
			}
			s := n.content(&p, inChunk)
			id := uint64(0)
			if s != nil {
				id, _ = idOf(s[:])
			}
			if want := h.at(q.index[i]).id; id != want && !h.newer(id, q.index[i]) {
				w.failf("%s %s of block %d is acked to %s, but in-sync %s holds %x, not %x (invariant 1)",
					v.name, q.r.Op, q.first+i, q.client, n.name, id, want)
				return
			}
		}
	}
	if q.r.Flags&bio.FUA != 0 && (w.cfg.Calm || w.rng.IntN(40) == 0) {
		w.durable(v, q.first, q.count)
	}
}

// newer reports whether a later version has that contents.
func (h *history) newer(id uint64, i uint32) bool {
	_, found := h.find(id, i)
	return found
}

// locate is the chunk of a block, and its number there.
func (v *Volume) locate(b uint64) (chunk, inChunk uint64) {
	unit := uint64(v.unit) / block
	row := b / (cluster.BlocksPerChunk * uint64(v.width))
	in := b % (cluster.BlocksPerChunk * uint64(v.width))
	stripe, off := in/unit, in%unit
	return row*uint64(v.width) + stripe%uint64(v.width), stripe/uint64(v.width)*unit + off
}

// ackedFlush is invariant 2, for some flushes: each in-sync replica holds what
// the flush covers, readable after a restart.
func (w *World) ackedFlush(v *Volume, q *request) {
	w.mark("flush acked")
	if w.cfg.Calm || w.rng.IntN(25) == 0 {
		w.durable(v, 0, uint64(len(v.oracle.blocks)))
	}
}

// durable lets a copy of each in-sync replica lose power and start, and reads.
func (w *World) durable(v *Volume, first, count uint64) {
	w.mark("durability checked")
	rows := map[cluster.DeviceID]*reader{}
	for b := first; b < first+count; b++ {
		h := &v.oracle.blocks[b]
		if h.floor == 0 {
			continue // never written
		}
		chunk, inChunk := v.locate(b)
		for _, id := range w.pgOf(v, chunk).InSync {
			n := w.nodeOf(id)
			if n == nil || n.state != nodeUp {
				continue
			}
			if p := n.core.Peek(v.id, 0, chunk); n.isWrong(&p, inChunk) {
				continue // it is found by its checksum, and read elsewhere
			}
			r := rows[id]
			if r == nil {
				r = w.crashed(n)
				rows[id] = r
			}
			got, err := r.read(v, chunk, inChunk)
			if err != "" {
				w.failf("%s block %d is flushed, but after a crash %s answers: %s (invariant 2)",
					v.name, b, n.name, err)
				return
			}
			if got>>63 != 0 && h.floor+1 < h.end() {
				continue // torn: it was written after the flush
			}
			if _, ok := h.find(got, h.floor); !ok {
				w.failf("%s block %d is flushed, but after a crash %s holds %x (invariant 2): %s; %s",
					v.name, b, n.name, got, h, w.where(v, b))
				return
			}
		}
	}
}

const garbage = ^uint64(0)

// reader reads a store on a copy of a disk, without the world's clock.
type reader struct {
	core *store.Core
	disk *Disk
	data sector
	sums [8]byte
	err  string
}

// crashed is a store on what a power loss now might leave of a node's disk.
func (w *World) crashed(n *Node) *reader {
	d := n.disk.clone()
	for _, f := range n.ios {
		if f.io.Kind == store.IOWrite {
			d.write(f.io.Data, f.io.Off)
		}
	}
	d.powerLoss(w.rng)
	r := &reader{disk: d}
	core, err := store.Open(d, n.cfg)
	if err != nil {
		r.err = err.Error()
	}
	r.core = core
	return r
}

// read returns the id of a block.
func (r *reader) read(v *Volume, chunk, b uint64) (uint64, string) {
	if r.err != "" {
		return 0, r.err
	}
	if r.core.Generation(v.id) == 0 {
		return 0, "" // never opened here
	}
	q := &store.Request{Op: store.OpRead, Volume: v.id, Gen: r.core.Generation(v.id), Chunk: chunk,
		Offset: uint32(b * block), Length: block, Data: r.data[:], Sums: r.sums[:]}
	r.core.Submit(q)
	r.run()
	id, _ := idOf(r.data[:])
	switch {
	case q.Status == transport.StatusRot:
		return garbage, ""
	case q.Status != transport.StatusOK:
		return 0, fmt.Sprintf("status %d", q.Status)
	case q.Hole:
		return 0, ""
	case transport.VerifySums(r.data[:], r.sums[:]) >= 0:
		return garbage, ""
	}
	return id, ""
}

// run carries out everything that the store wants.
func (r *reader) run() {
	for {
		effects := r.core.Effects()
		if len(effects) == 0 {
			return
		}
		for _, e := range slices.Clone(effects) {
			if e.Kind != store.EffectIO {
				continue
			}
			var err error
			switch x := e.IO; x.Kind {
			case store.IORead:
				_, err = r.disk.ReadAt(x.Data, x.Off)
			case store.IOWrite:
				_, err = r.disk.WriteAt(x.Data, x.Off)
			case store.IOFlush:
				err = r.disk.Flush()
			}
			r.core.IODone(e.IO, err)
		}
	}
}

// mapChanged is invariant 10 for the manager's part.
func (w *World) mapChanged(old, next *cluster.Map) {
	for set, table := range next.PGs {
		for i, pg := range table {
			if len(pg.InSync) == 0 {
				w.failf("group %d has no in-sync replica (invariant 10)", pg.ID.Index())
			}
			if n := next.Sets[set].Replicas; len(pg.InSync) > n+1 || len(pg.InSync) > n && pg.Target != 0 {
				w.failf("group %d of %d replicas has %v in sync and target %d: more than a client takes",
					pg.ID.Index(), n, pg.InSync, pg.Target)
			}
			if before := old.PGs[set]; i < len(before) && before[i].Epoch != pg.Epoch {
				w.regrouped(before[i], pg)
				if w.holds(pg.ID) {
					w.logf("mdm v%d: group %d epoch %d in sync %v target %d",
						next.Version, i, pg.Epoch, pg.InSync, pg.Target)
				}
				if len(pg.InSync) < len(before[i].InSync) {
					w.mark("in-sync set shrank")
				}
				if len(pg.InSync) > len(before[i].InSync) {
					w.rejoined(pg.ID)
				}
				if pg.LostEpoch != before[i].LostEpoch && w.holds(pg.ID) {
					w.mark(markAllLost)
				}
				if pg.Target != 0 && pg.Target != before[i].Target {
					w.targeted(pg)
				}
			}
		}
	}
}

// holds reports whether a chunk of some volume lies in the group.
func (w *World) holds(id cluster.PGID) bool {
	for _, v := range w.volumes {
		if w.mdm.m.Volumes[v.id] == nil {
			continue
		}
		for chunk := range v.size / cluster.ChunkSize {
			if pg := w.pgOf(v, chunk); pg != nil && pg.ID == id {
				return true
			}
		}
	}
	return false
}

// where tells what each node holds of a block, for the story of a failure.
func (w *World) where(v *Volume, b uint64) string {
	chunk, in := v.locate(b)
	pg := w.pgOf(v, chunk)
	var s strings.Builder
	fmt.Fprintf(&s, "chunk %d block %d, group %d epoch %d in sync %v target %d:", chunk, in, pg.ID.Index(), pg.Epoch,
		pg.InSync, pg.Target)
	for _, n := range w.nodes {
		if n.core == nil {
			fmt.Fprintf(&s, " %s is down;", n.name)
			continue
		}
		p := n.core.Peek(v.id, 0, chunk)
		fmt.Fprintf(&s, " %s(%d) holds %x tag %v known %v logged %v marks %d torn %v;", n.name, n.dev,
			idText(n.content(&p, in)), p.Tag, p.Known, p.Logged, p.Marks, p.Torn[in/8]>>(in%8)&1)
	}
	return s.String()
}
