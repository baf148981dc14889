// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"encoding/binary"
	"errors"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
	"braid/transport/bio"
)

const block = cluster.BlockSize

// Volume is a volume, who uses it, and what the oracle knows of it.
type Volume struct {
	w       *World
	index   int
	id      cluster.VolumeID
	name    string
	size    uint64
	unit    uint32
	width   uint32
	guest   *Guest
	client  *Client // the newest; it may be dead
	oracle  oracle
	over    bool // nothing more can be done with it
	windows []window
	clients int
}

// window is a range of blocks that the guest likes to use.
type window struct{ first, count uint64 }

// Guest is who uses a volume.
type Guest struct {
	v     *Volume
	live  []*request // submitted and not completed, in order
	depth int
	think int64
	alive bool
	done  int
	seq   uint64
	timer bool
	quiet bool       // it submits nothing of its own
	again []*request // to be sent again after a resume
}

// request is one request of a guest.
type request struct {
	r      bio.Request
	client *Client
	first  uint64 // block
	count  uint64
	low    []uint32 // by block: oldest version that a read may return; of a flush: of all blocks
	index  []uint32 // by block: version that a write makes
	zero   bool
	since  int64
	orphan bool // whoever asked has gone
	ghost  bool // a zombie asks
	over   bool // it has ended
}

// RequestDone is never called: the client's shell hands over completions.
func (*request) RequestDone(*bio.Request) {}

func newVolume(w *World, i int) *Volume {
	v := &Volume{w: w, index: i, name: "v" + string(rune('0'+i)), size: uint64(w.cfg.Chunks) * cluster.ChunkSize}
	v.unit = []uint32{4096, 64 << 10, 1 << 20, 1 << 20}[w.rng.IntN(4)]
	v.width = []uint32{1, uint32(min(2, w.cfg.Chunks)), uint32(min(4, w.cfg.Chunks))}[w.rng.IntN(3)]
	if w.cfg.Calm {
		v.unit, v.width = cluster.ChunkSize, 1
	}
	v.oracle.init(v)
	blocks := v.size / block
	for range 2 + w.rng.IntN(3) {
		first := w.rng.Uint64N(blocks - 8)
		if w.rng.IntN(2) == 0 { // across the edge of a stripe unit
			first = max(first/(uint64(v.unit)/block)*(uint64(v.unit)/block), 2) - 2
		}
		v.windows = append(v.windows, window{first, 2 + w.rng.Uint64N(5)})
	}
	v.guest = &Guest{v: v, depth: 1 + w.rng.IntN(6), think: w.between(200*us, 8*ms), quiet: w.cfg.Calm}
	return v
}

// start lets the guest work.
func (g *Guest) start() {
	g.alive = true
	again := g.again
	g.again = nil
	for _, o := range again {
		q := &request{first: o.first, count: o.count}
		q.r.Op, q.r.Flags, q.r.Data = o.r.Op, o.r.Flags, append([]byte(nil), o.r.Data...)
		g.send(q)
	}
	g.next()
}

// next plans the guest's next request.
func (g *Guest) next() {
	if g.timer {
		return
	}
	g.timer = true
	w := g.v.w
	pause := w.between(0, 2*g.think)
	if w.rng.IntN(300) == 0 {
		pause = w.between(0, 5*s1)
	}
	w.after(pause, evGuest, uint32(g.v.index), func() {
		g.timer = false
		if !g.alive || g.quiet {
			return
		}
		if len(g.live) < g.depth && g.v.serving() {
			g.random()
		}
		g.next()
	})
}

// serving reports whether the volume takes requests.
func (v *Volume) serving() bool {
	return !v.over && v.client != nil && v.client.core != nil && !v.client.dead && !v.client.ended
}

// random submits a request.
func (g *Guest) random() {
	w, v := g.v.w, g.v
	win := v.windows[w.rng.IntN(len(v.windows))]
	first := w.rng.Uint64N(win.count)
	q := &request{first: win.first + first, count: 1 + w.rng.Uint64N(win.count-first)}
	switch n := w.rng.IntN(100); {
	case n < 35:
		q.r.Op = bio.Read
	case n < 76:
		q.r.Op = bio.Write
	case n < 86:
		q.r.Op = bio.Flush
	case n < 91:
		q.r.Op = bio.Trim
	case n < 96:
		q.r.Op = bio.WriteZeroes
		if w.rng.IntN(2) == 0 {
			q.r.Flags |= bio.NoHole
		}
	case n < 97:
		q.r.Op = bio.Trim // a whole row, so that chunks come and go
		row := uint64(v.width) * cluster.ChunkSize / block
		q.first, q.count = q.first/row*row, row
		q.count = min(q.count, v.size/block-q.first)
	default:
		q.r.Op = bio.BlockStatus
	}
	writes := q.r.Op == bio.Write || q.r.Op == bio.WriteZeroes || q.r.Op == bio.Trim
	if writes && w.rng.IntN(8) == 0 {
		q.r.Flags |= bio.FUA
	}
	g.submit(q)
}

func (g *Guest) submit(q *request) {
	if q.r.Op == bio.Flush {
		q.first, q.count = 0, 0
	}
	if q.r.Op == bio.Read || q.r.Op == bio.Write {
		q.r.Data = make([]byte, q.count*block)
	}
	if q.r.Op == bio.Write {
		g.seq++
		for i := range q.count {
			fill(q.r.Data[i*block:][:block], g.seq<<24|uint64(g.v.index)<<20|q.first+i)
		}
	}
	g.send(q)
}

func (g *Guest) send(q *request) {
	w, v := g.v.w, g.v
	q.r.Off, q.r.Len = q.first*block, q.count*block
	q.r.Done, q.client, q.since = q, v.client, w.now
	v.oracle.submitted(q)
	g.live = append(g.live, q)
	g.races(q)
	w.logf("%s: %s %s [%d+%d) flags %d", v.client, v.name, q.r.Op, q.first, q.count, q.r.Flags)
	w.mix(uint64(q.r.Op), q.r.Off, q.r.Len)
	v.client.submit(&q.r)
}

// fill makes a block that tells its version in each 512 bytes.
func fill(b []byte, id uint64) {
	for o := 0; o < len(b); o += 512 {
		binary.LittleEndian.PutUint64(b[o:], id)
		binary.LittleEndian.PutUint64(b[o+504:], ^id)
	}
}

// idOf reads what fill wrote: 0 for zeroes. For anything else it returns false
// and an id of its own.
func idOf(b []byte) (uint64, bool) {
	id := binary.LittleEndian.Uint64(b)
	want := ^id
	if id == 0 {
		want = 0
	}
	for o := 0; o < len(b); o += 512 {
		if binary.LittleEndian.Uint64(b[o:]) != id || binary.LittleEndian.Uint64(b[o+504:]) != want {
			return xxhash.Sum64(b) | 1<<63, false
		}
	}
	return id, true
}

// completed takes a request back.
func (g *Guest) completed(c *Client, r *bio.Request) {
	q, ok := r.Done.(*request)
	w := g.v.w
	if !ok {
		w.failf("a request of nobody completes")
		return
	}
	switch {
	case q.ghost:
		q.over = true
		g.v.haunted(c, q)
		return
	case q.orphan:
		return
	}
	for i, o := range g.live {
		if o == q {
			g.live = append(g.live[:i], g.live[i+1:]...)
			g.ended(c, q)
			return
		}
	}
	w.failf("%s of [%d+%d) completes twice", r.Op, q.first, q.count)
}

func (g *Guest) ended(c *Client, q *request) {
	w, v := g.v.w, g.v
	g.done++
	q.over = true
	w.logf("%s: %s %s [%d+%d) ends: %v", c, v.name, q.r.Op, q.first, q.count, q.r.Err)
	if q.r.Err != nil {
		v.oracle.failed(q)
		v.failed(c, q)
		if !c.ended && len(q.index) > 0 { // invariant 12
			for i := range q.count {
				if chunk, in := v.locate(q.first + i); in == 0 || i == 0 {
					w.contained(v, chunk)
				}
			}
		}
	} else {
		v.oracle.succeeded(q)
	}
	if q.r.Data != nil {
		for i := range q.r.Data { // who still uses these bytes will be caught
			q.r.Data[i] = 0xDB
		}
	}
}

// failed says whether a request may fail.
func (v *Volume) failed(c *Client, q *request) {
	switch {
	case c.ended && c.core.Err() != nil && errors.Is(q.r.Err, c.core.Err()):
	case errors.Is(q.r.Err, bio.ErrNoSpace) && v.w.cfg.Faults.Full:
		v.w.mark("no space")
	case errors.Is(q.r.Err, bio.ErrIO) && q.r.Op != bio.Flush && v.w.cfg.Faults.SoleErrors:
		v.w.mark("sole copy failed a request")
	default:
		v.w.failf("%s %s [%d+%d) of %s fails: %v", v.name, q.r.Op, q.first, q.count, c, q.r.Err)
	}
}
