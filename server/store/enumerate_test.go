// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"testing"

	"braid/cluster"
	"braid/cluster/rules"
	"braid/server/disk"
)

// enumerator cuts the power at every step of a script. A step is an I/O that
// ends; what was submitted, written and acked up to there is the prefix. From
// each prefix it makes the disks that a power loss may leave (disk.Images),
// starts the store on each with the real Open, and holds it to the model:
//
//   - it starts, reads every block, and calls nothing rotten;
//   - each block has a value that was current at the last acked flush or later
//     (invariant 2);
//   - where it is not what was flushed, or an acked value is missing, its region is
//     in the recovered activity log (invariant 3);
//   - a region that is not there has its last tag and all its values (invariant 6).
type enumerator struct {
	*model
	images  disk.Images
	rnd     *rand.Rand // of the images: the script does not depend on them
	looking []byte     // buffer of the cores that are looked at
	state   string     // of the last prefix
	on      bool

	prefixes, whole, total, again int
}

const enumSize = 8 << 20

// newEnumerator makes a device of a few chunks with a small log ring.
func newEnumerator(t testing.TB, seed uint64, cfg Config) *enumerator {
	e := &enumerator{on: true, rnd: rand.New(rand.NewPCG(seed, 11))}
	e.looking = alignedBytes(cluster.ChunkSize)
	e.images = disk.Images{Limit: 16, Torn: true, Rand: e.rnd}
	switch {
	case os.Getenv("BRAID_SOAK") != "":
		e.images.Limit, e.images.AllTorn = 1<<10, true
	case testing.Short():
		e.images.Limit = 4
	}
	e.model = newModel(t, seed, profile{size: enumSize, ring: 64 * pageSize, chunks: 6, every: 1 << 30}, cfg)
	e.rig.each = e.point
	return e
}

// point looks at a prefix, unless nothing has happened to the disk since the last.
func (e *enumerator) point() {
	e.take()
	if !e.on {
		return
	}
	d := e.rig.disk
	state := fmt.Sprint(d.Writes, d.Flushes, d.Discards, e.version, len(e.ops), e.acks)
	for _, p := range e.rig.pending {
		if p.io.Kind != IORead {
			state += fmt.Sprint(p.io.Kind, p.io.Off)
		}
	}
	if state != e.state {
		e.state = state
		e.look(e.rig.inflight())
	}
}

// look recovers from every image.
func (e *enumerator) look(inflight []disk.MemWrite) {
	e.prefixes++
	_, all := e.images.Each(e.rig.disk, inflight, func(d *disk.Mem) {
		g := &rig{t: e.t, disk: d, rnd: e.rnd}
		g.open(e.cfg)
		g.core.verify.buf = e.looking
		found := e.recovered(g, false, nil)
		if e.total++; e.total%16 != 0 {
			return
		}
		// The power goes a second time, on top of what the recovery began.
		e.again++
		g.disk = d.Crash(e.rnd, nil)
		g.open(e.cfg)
		e.recovered(g, false, found)
	})
	if all {
		e.whole++
	}
}

// at is a block of volume 1.
func at(chunk uint64, block uint32) modelKey { return modelKey{1, chunk, block} }

func (e *enumerator) write(chunk uint64, block, n uint32) {
	e.submit(&Request{}, "write", at(chunk, block), n)
}

func (e *enumerator) fua(chunk uint64, block, n uint32) {
	e.submit(&Request{FUA: true}, "write", at(chunk, block), n)
}

func (e *enumerator) trim(chunk uint64, block, n uint32) {
	e.submit(&Request{}, "trim", at(chunk, block), n)
}

// sync ends everything and flushes.
func (e *enumerator) sync() {
	e.quiesce()
	e.flushVolume(e.vols[0])
	e.quiesce()
}

// rest lets the device be idle until it has nothing left to do.
func (e *enumerator) rest() {
	e.quiesce()
	for e.rig.core.Idle() {
		e.rig.run()
		e.take()
	}
}

// some lets a few I/Os end.
func (e *enumerator) some(n int) {
	e.rig.collect()
	for ; n > 0 && len(e.rig.pending) > 0; n-- {
		e.rig.complete(e.rig.rnd.IntN(len(e.rig.pending)))
	}
	e.take()
}

// restart starts the store again on the disk as it is; each write and flush of
// Open is a step, too.
func (e *enumerator) restart() {
	c, err := Open(&tap{Mem: e.rig.disk, before: func(w []disk.MemWrite) {
		if e.on {
			e.look(w)
		}
	}}, e.cfg)
	if err != nil {
		e.t.Fatalf("open: %v", err)
	}
	e.rig.core, e.rig.pending, e.rig.replies = c, nil, nil
	e.ops = map[*Request]*modelOp{}
	for _, v := range e.vols {
		v.out, v.flushing = map[uint64]int{}, false
	}
}

// powerLoss goes on from one image, as the model does.
func (e *enumerator) powerLoss() {
	on := e.on
	e.on = false
	e.crash()
	e.on = on
}

// tap shows each write and flush of the functions that block before it happens.
type tap struct {
	*disk.Mem
	before func(inflight []disk.MemWrite)
}

func (d *tap) WriteAt(p []byte, off int64) (int, error) {
	d.before([]disk.MemWrite{{Off: off, Data: append([]byte(nil), p...)}})
	return d.Mem.WriteAt(p, off)
}

func (d *tap) Flush() error {
	d.before(nil)
	return d.Mem.Flush()
}

// script is what a device goes through.
type script struct {
	name string
	cfg  Config
	run  func(e *enumerator)
}

// scripts are the ordinary things; upkeepScripts are the others.
// Each is short, so that most prefixes have
// few unflushed sectors and all subsets of them can be looked at.
var scripts = []script{
	{"first writes", Config{}, func(e *enumerator) {
		e.write(0, 0, 1)
		e.some(2)
		e.write(0, 2, 2)
		e.write(1, 5, 1)
		e.sync()
		e.fua(2, 0, 1)
		e.write(0, 4, 1)
		e.quiesce()
		e.sync()
	}},
	{"overwrite", Config{}, func(e *enumerator) {
		for round := range 3 {
			e.write(0, 0, 2)
			e.fua(1, 0, 1)
			e.some(1 + round)
			e.write(0, 2, 1)
			e.flushVolume(e.vols[0])
			e.some(2)
			e.write(0, 3, 1) // while the flush is under way
			e.quiesce()
		}
		e.sync()
	}},
	{"activity log", Config{ALSlots: 2}, func(e *enumerator) {
		for i := range uint64(8) { // four times what the log holds: entries retire and come back
			e.write(i%4, uint32(i/4), 1)
			e.some(1)
			e.write((i+1)%4, 8, 1)
			e.sync()
		}
		e.rest()
	}},
	{"fold", Config{}, func(e *enumerator) {
		for i := range uint64(3) {
			e.write(i, 0, 2)
		}
		e.sync()
		e.rig.core.Idle()
		e.some(2)
		e.write(0, 0, 1) // changed while it is folded
		e.write(1, 7, 1)
		e.quiesce()
		e.sync()
		e.rest()
		e.fua(0, 1, 1)
		e.rest()
	}},
	{"log wraps", Config{}, func(e *enumerator) {
		e.on = false
		for i := range uint64(80) {
			e.on = e.on || e.rig.core.log.next > 58
			if e.write(i%3, uint32(i%5), 1); i%4 == 3 {
				e.fua(3, uint32(i%2), 1)
			}
			e.sync()
			if e.rig.core.log.next > 72 {
				break
			}
		}
	}},
	{"trim", Config{Discard: true}, func(e *enumerator) {
		e.write(0, 0, 4)
		e.write(1, 0, 1)
		e.sync()
		e.trim(0, 1, 2)
		e.some(1)
		e.sync()
		e.trim(0, 0, blocks) // the slot becomes free
		e.trim(1, 3, 1)      // nothing there
		e.quiesce()
		e.sync()
		e.write(2, 0, 2) // and is used again
		e.write(0, 1, 1)
		e.quiesce()
		e.sync()
		e.rest()
	}},
	{"zeroes", Config{}, func(e *enumerator) {
		e.write(0, 0, 2)
		e.submit(&Request{NoHole: true}, "zero", at(1, 0), 2)
		e.sync()
		e.submit(&Request{NoHole: true, FUA: true}, "zero", at(0, 1), 2)
		e.submit(&Request{}, "zero", at(1, 1), 1)
		e.quiesce()
		e.sync()
	}},
	{"stop and start", Config{}, func(e *enumerator) {
		e.write(0, 0, 1)
		e.sync()
		e.write(1, 0, 1)
		e.quiesce()
		e.rig.must(&Request{Op: OpStop})
		e.flushed()
		e.restart()
		e.write(0, 0, 2)
		e.write(2, 0, 1)
		e.quiesce()
		e.sync()
	}},
	{"start after a crash", Config{}, func(e *enumerator) {
		e.write(0, 0, 2)
		e.sync()
		for range 3 {
			e.write(0, 0, 1)
			e.write(1, 0, 2)
			e.flushVolume(e.vols[0])
			e.some(3)
			e.powerLoss()
			e.restart() // a process that dies right after its start
			e.write(1, 1, 2)
			e.fua(2, 0, 1)
			e.quiesce()
		}
		e.sync()
		e.rest()
	}},
	{"marks", Config{}, func(e *enumerator) {
		e.write(0, 0, 1)
		e.sync()
		for _, chunk := range []uint64{0, 5} { // stored, absent
			e.rig.must(&Request{Op: OpMark, Volume: 1, Gen: 1, Chunk: chunk, Marks: MarkTarget})
			e.marked[chunk] = MarkTarget
		}
		e.write(0, 0, 2)
		e.write(1, 0, 1)
		e.sync()
		e.rest()
		for _, chunk := range []uint64{0, 5} {
			delete(e.marked, chunk)
			delete(e.tags, at(chunk, 0))
			e.rig.must(&Request{Op: OpStamp, Volume: 1, Gen: 1, Chunk: chunk, Tag: cluster.Tag{Gen: 1, Interval: 1}})
		}
		e.write(1, 1, 1)
		e.sync()
		e.rest()
	}},
	{"drop", Config{}, func(e *enumerator) {
		e.write(0, 0, 2)
		e.submit(&Request{}, "write", modelKey{2, 0, 0}, 2)
		e.submit(&Request{}, "write", modelKey{2, 1, 0}, 1)
		e.sync()
		e.vols[1].dropping = true
		e.rig.must(&Request{Op: OpDrop, Volume: 2})
		e.write(1, 0, 2) // perhaps in a slot of the other volume
		e.write(2, 0, 2)
		e.sync()
		e.rest()
	}},
	{"fence", Config{}, func(e *enumerator) {
		e.write(0, 0, 1)
		e.sync()
		e.fence()
		e.write(0, 0, 1)
		e.write(1, 0, 1)
		e.quiesce()
		e.sync()
		e.fence()
		e.rest()
	}},
}

// Goal: the store survives a power loss at every step of what it does, whatever
// part of its unflushed writes is on the disk, also with one sector torn or full
// of garbage. BRAID_SOAK=1: all subsets up to 2^10, each sector torn in each way,
// more orders of completion.
func TestCrashEnumeration(t *testing.T) {
	orders, scripts := uint64(2), slices.Concat(scripts, upkeepScripts)
	switch {
	case os.Getenv("BRAID_SOAK") != "":
		orders = 4
	case testing.Short():
		orders, scripts = 1, scripts[:3]
	}
	for _, s := range scripts {
		t.Run(s.name, func(t *testing.T) {
			for seed := range orders {
				s.cfg.LocalResolve, s.cfg.VerifyReads = seed%2 == 0, true
				e := newEnumerator(t, seed, s.cfg)
				s.run(e)
				e.quiesce()
				e.point()
				t.Logf("order %d: %d steps, %d of them with all subsets, %d disks, %d with a second loss", seed,
					e.prefixes, e.whole, e.total, e.again)
			}
		})
	}
}

// Goal: the enumeration finds errors. Two rules of the core are switched off, and
// errors are planted below it: a flush that lies, and a fold that goes to the twin
// that counts; those of upkeepScripts see plantedInUpkeep.
func TestCrashEnumerationFinds(t *testing.T) {
	all := append([]planted{
		{name: "no log first", off: rules.Set(rules.LogFirst)},
		{name: "flush without metadata", off: rules.Set(rules.FlushMetadata)},
		{name: "a flush that lies", plant: func(_ *enumerator, p *rigIO) {
			if p.io.Kind == IOFlush {
				p.mark = 0
			}
		}},
		{name: "a fold to the wrong twin", plant: func(_ *enumerator, p *rigIO) {
			if p.io.owner == ownFold {
				p.off ^= pageSize
			}
		}},
	}, plantedInUpkeep...)
	if testing.Short() {
		all = all[:1]
	}
	for _, x := range all {
		found := ""
		for _, s := range slices.Concat(scripts, upkeepScripts) {
			if x.script != "" && x.script != s.name {
				continue
			}
			if found = x.runIn(t, s); found != "" {
				found = s.name + ": " + found
				break
			}
		}
		if found == "" {
			t.Errorf("%s: nothing was noticed", x.name)
		}
		t.Logf("%s: %.180s", x.name, found)
	}
}

// planted is an error that the enumeration has to find.
type planted struct {
	name   string
	script string // where; empty: in whichever is first
	off    rules.Off
	plant  func(*enumerator, *rigIO)
}

// runIn returns what was noticed.
func (x *planted) runIn(t *testing.T, s script) string {
	c := &caught{TB: t}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.cfg.LocalResolve, s.cfg.VerifyReads, s.cfg.Off = true, true, x.off
		e := newEnumerator(c, 0, s.cfg)
		e.images.Limit = 16
		if x.plant != nil {
			e.rig.plant = func(p *rigIO) { x.plant(e, p) }
		}
		s.run(e)
		e.quiesce()
		e.point()
	}()
	<-done
	return c.message
}

// Goal: a format that is cut off at any step leaves a device that is not
// formatted, or a new and empty one; what was there before never shows.
func TestCrashInFormat(t *testing.T) {
	g := newRig(t, enumSize, Config{LocalResolve: true})
	g.fence(1, 1)
	g.must(writeReq(1, 1, 1, 0, 0, 8192, 1))
	g.must(&Request{Op: OpStop})
	old, id := g.core.Identity().Device, cluster.UUID{7}
	x := disk.Images{Limit: 64, Torn: true, Rand: g.rnd}
	seen := map[string]int{}
	before := func(w []disk.MemWrite) {
		x.Each(g.disk, w, func(d *disk.Mem) {
			c, err := Open(d, Config{})
			switch {
			case err != nil:
				seen["refused"]++
			case c.Identity().Device == old:
				seen["old"]++
			case c.Identity().Device != id || c.Stats().ChunksFree != c.Stats().Chunks || len(c.vols) != 0:
				t.Fatalf("neither old nor new: %+v", c.Identity())
			default:
				seen["new"]++
			}
			if err == nil && c.Identity().Device == old { // whole, or not there
				h := &rig{t: t, disk: d, core: c, rnd: g.rnd}
				h.want(1, 1, 0, 0, 8192, 1)
			}
		})
	}
	if _, err := Format(&tap{g.disk, before}, id, cluster.UUID{}, nil); err != nil {
		t.Fatal(err)
	}
	before(nil)
	if seen["old"] == 0 || seen["new"] == 0 || seen["refused"] == 0 {
		t.Fatalf("%v", seen)
	}
	t.Logf("%v", seen)
}
