// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"time"

	"braid/cluster"
	"braid/server/store"
	"braid/transport/bio"
)

// Report is the outcome of a run.
type Report struct {
	Seed    uint64
	Err     error
	Hash    uint64
	Events  uint64
	Virtual time.Duration
	Done    int // requests of guests
	Marks   map[string]int
	Trace   string
}

// diskSize is enough for the metadata and a few chunks more than the volumes
// could store.
func (c *Config) diskSize(server int) int64 {
	if server < len(c.Room) && c.Room[server] > 0 {
		return 2<<20 + int64(c.Room[server])*cluster.ChunkSize
	}
	return 4<<20 + int64(c.Volumes*c.Chunks+4)*cluster.ChunkSize
}

// New builds a world: servers, volumes, a client attached to each.
func New(cfg Config) *World {
	w := &World{cfg: cfg, rng: rand.New(rand.NewPCG(cfg.Seed, 0xB4A1D)), marks: map[string]int{}}
	w.mdm = newMdm(w)
	w.mdm.commit(w.mdm.st.Found(clusterID, w.mdm.time()))
	for i := range cfg.Servers {
		n := newNode(w, i, cfg.diskSize(i))
		n.cfg = store.Config{ALSlots: 4 + w.rng.IntN(8), PageCache: 128, VerifyReads: w.rng.IntN(2) == 0,
			Discard: w.rng.IntN(2) == 0, Off: cfg.Off}
		n.disk.through = w.rng.IntN(8) == 0
		if cfg.Seed%2 == 0 { // its log is soon full, and cannot grow
			n.cfg.ALMost = n.cfg.ALSlots + 1
		}
		if cfg.Calm {
			n.disk.through, n.cfg.ALSlots, n.cfg.ALMost = false, 8, 0
			if cfg.Logs > 0 {
				n.cfg.ALSlots, n.cfg.ALMost = cfg.Logs, cfg.Logs
			}
		}
		w.nodes = append(w.nodes, n)
		n.start()
	}
	for i := range cfg.Volumes {
		w.volumes = append(w.volumes, newVolume(w, i))
	}
	w.mdm.tick()
	return w
}

// begin creates the volumes as soon as all servers are up.
func (w *World) begin() bool {
	w.healing = true
	for w.err == nil {
		ready := true
		for _, n := range w.nodes {
			ready = ready && n.dev != 0
		}
		if ready {
			break
		}
		if !w.step() {
			return false
		}
	}
	w.mdm.makeVolumes()
	if w.cfg.Grace > 0 {
		w.setGrace()
	}
	for _, v := range w.volumes {
		v.attach(false)
	}
	w.healing = false
	w.disturb()
	return w.err == nil
}

// Run runs a world to its end.
func Run(cfg Config) *Report {
	w := New(cfg)
	w.begin()
	end := w.now + int64(cfg.Duration)
	for w.now < end && w.step() {
	}
	if w.err == nil {
		w.settle()
	}
	r := &Report{Seed: cfg.Seed, Err: w.err, Hash: w.hash, Events: w.events,
		Virtual: time.Duration(w.now), Marks: w.marks, Trace: w.Trace()}
	for _, v := range w.volumes {
		r.Done += v.guest.done
	}
	return r
}

// patience bounds how long a healed world may take to come to rest.
const patience = 180 * s1

// settle ends all faults and holds the world to what must follow: every request
// completes, and the copies are equal.
func (w *World) settle() {
	w.heal()
	for _, v := range w.volumes {
		v.guest.quiet = true
	}
	w.touchAll()
	if !w.await(w.rested) {
		return
	}
	for _, v := range w.volumes {
		if v.serving() {
			v.guest.submit(&request{r: bio.Request{Op: bio.Flush}})
		}
	}
	if !w.await(w.rested) || !w.readBack() {
		return
	}
	w.identical()
	w.emptied()
}

// readBack reads every block that was ever written, through the client: the oracle
// judges what it returns. That the other copies hold the same is identical's.
func (w *World) readBack() bool {
	for _, v := range w.volumes {
		written := func(b int) bool { return b < len(v.oracle.blocks) && v.oracle.blocks[b].end() > 1 }
		for b := 0; b < len(v.oracle.blocks) && v.serving(); b++ {
			first := b
			for b-first < longestRead && written(b) {
				b++
			}
			if b > first {
				v.guest.submit(&request{r: bio.Request{Op: bio.Read}, first: uint64(first), count: uint64(b - first)})
				b--
			}
		}
	}
	return w.await(w.rested)
}

// longestRead is the blocks of a read at the end of a run.
const longestRead = 32

// leftFor is how long background work may take when everything has ended.
const leftFor = 60 * s1

// emptied writes to every chunk, flushes, and runs until nothing is left behind; it
// fails when something is. Without the writes a copy that a resync has brought in
// keeps its regions in the log, rightly: no drained flush has covered them.
func (w *World) emptied() bool {
	for _, v := range w.volumes {
		for chunk := range v.size / cluster.ChunkSize {
			if v.serving() {
				q := &request{first: v.block(chunk, cluster.BlocksPerChunk-1), count: 1}
				q.r.Op = bio.Write
				v.guest.submit(q)
			}
		}
	}
	if !w.await(w.rested) {
		return false
	}
	for _, v := range w.volumes {
		if v.serving() {
			v.guest.submit(&request{r: bio.Request{Op: bio.Flush}})
		}
	}
	if !w.await(w.rested) {
		return false
	}
	why := w.left()
	for end := w.now + leftFor; why != "" && w.now < end && w.step(); {
		why = w.left()
	}
	if w.err == nil && why != "" {
		w.failf("%d s after everything has ended something is left behind (invariant 15): %s", leftFor/s1, why)
	}
	return w.err == nil
}

// touchAll has each volume read a little of every chunk now and then: a client
// that asks for nothing may not notice that a device has changed.
func (w *World) touchAll() {
	for _, v := range w.volumes {
		if v.serving() && len(v.guest.live) == 0 {
			for chunk := range v.size / cluster.ChunkSize {
				v.guest.submit(&request{r: bio.Request{Op: bio.Read}, first: v.block(chunk, 0), count: 1})
			}
		}
	}
	w.after(2*s1, evGuest, 0, w.touchAll)
}

// await runs until the world is as it should be, and fails when it never is.
func (w *World) await(done func() bool) bool {
	end := w.now + patience
	w.deadline = end
	for !done() && w.now < end {
		if !w.step() {
			break
		}
	}
	if w.err == nil && !done() {
		w.failf("the world does not come to rest within %d s of healing (liveness): %s", patience/s1, w.unrest())
	}
	return w.err == nil
}

// rested reports whether nothing is left to happen.
func (w *World) rested() bool { return w.unrest() == "" }

func (w *World) unrest() string {
	if w.isSpoilt() {
		return "what a stray write spoilt is not mended"
	}
	for _, n := range w.nodes {
		if n.state != nodeUp && !n.gone {
			return n.name + " is not up"
		}
	}
	for _, v := range w.volumes {
		if v.over {
			continue
		}
		if n := len(v.guest.live); n > 0 && (w.now < w.deadline || v.guest.live[0].since < w.now-s1) {
			q := v.guest.live[0]
			why := ""
			if v.client != nil && v.client.core != nil {
				why = fmt.Sprint(v.client.core.Waiting(v.client.clock(), 0))
			}
			return fmt.Sprintf("%s has %d requests, the oldest %s [%d+%d) since %d ms; %s", v.name, n, q.r.Op,
				q.first, q.count, q.since/ms, why)
		}
		if !v.serving() {
			return v.name + " is not attached"
		}
		if v.client.core.Sound() == 0 {
			c := v.client.core
			return fmt.Sprintf("%s is not resolved, or not connected to every copy: map %d, adopted %d, "+
				"sound %d, waits %v", v.name, c.Version(), c.Adopted(), c.Sound(), c.Waiting(v.client.clock(), 0))
		}
		if why := w.unhealed(v); w.cfg.Resync && why != "" {
			return why
		}
	}
	if n := w.mdm.st.MovesLeft(nil).Groups; n > 0 && w.cfg.Resync {
		return fmt.Sprintf("%d groups are still to move", n)
	}
	return ""
}

// unhealed names a group of the volume that lacks a copy.
func (w *World) unhealed(v *Volume) string {
	for chunk := range v.size / cluster.ChunkSize {
		if pg := w.pgOf(v, chunk); len(pg.InSync) < w.cfg.Replicas {
			return fmt.Sprintf("group %d has in-sync copies %v only, target %d%s", pg.ID.Index(), pg.InSync,
				pg.Target, w.stuck(pg))
		}
	}
	return ""
}

// identical compares the copies of every volume, byte by byte, as they are after
// a restart.
func (w *World) identical() {
	readers := map[cluster.DeviceID]*reader{}
	for _, v := range w.volumes {
		if !v.serving() {
			continue
		}
		for chunk := range v.size / cluster.ChunkSize {
			w.equalCopies(v, chunk, readers)
		}
	}
}

func (w *World) equalCopies(v *Volume, chunk uint64, readers map[cluster.DeviceID]*reader) {
	var first *reader
	var name string
	for _, id := range w.pgOf(v, chunk).InSync {
		n, r := w.nodeOf(id), readers[id]
		if r == nil {
			r = w.crashed(n)
			readers[id] = r
		}
		if first == nil {
			first, name = r, n.name
			continue
		}
		for b := range uint64(cluster.BlocksPerChunk) {
			// The last row of a volume may be short: then not all of a chunk is its own.
			if at := v.block(chunk, b); at >= uint64(len(v.oracle.blocks)) || v.oracle.blocks[at].end() == 1 {
				continue
			}
			x, xe := first.read(v, chunk, b)
			y, ye := r.read(v, chunk, b)
			if xe != "" || ye != "" || x != y {
				at := v.block(chunk, b)
				w.failf("after healing %s chunk %d block %d is %x %s on %s and %x %s on %s: %s; %s", v.name, chunk, b,
					x, xe, name, y, ye, n.name, &v.oracle.blocks[at], w.where(v, at))
				return
			}
			if x != 0 && !bytes.Equal(first.sums[:], r.sums[:]) {
				w.failf("%s chunk %d block %d has the checksum %x on %s and %x on %s, and the same bytes "+
					"(invariant 15)", v.name, chunk, b, first.sums, name, r.sums, n.name)
				return
			}
		}
	}
}

// block is the opposite of locate.
func (v *Volume) block(chunk, b uint64) uint64 {
	unit, width := uint64(v.unit)/block, uint64(v.width)
	row, column := chunk/width, chunk%width
	stripe := b/unit*width + column
	return row*width*cluster.BlocksPerChunk + stripe*unit + b%unit
}

// stuck says what a target is at.
func (w *World) stuck(pg *cluster.PG) string {
	n := w.nodeOf(pg.Target)
	if n == nil || n.rs == nil || n.gate.Map() == nil {
		return ""
	}
	return fmt.Sprintf("; its resync: %+v, map %d, adopted %d", n.rs.Stats(), n.gate.Map().Version, n.gate.Adopted())
}
