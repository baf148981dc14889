// SPDX-License-Identifier: Apache-2.0

package store

import (
	"testing"

	"braid/cluster"
	"braid/transport"
)

// vacate has volume 1 leave chunks, while another chunk is written.
func (e *enumerator) vacate(other uint64, chunks ...uint64) {
	for _, c := range chunks {
		e.leaving[c] = true
	}
	r := &Request{Op: OpVacate, Gone: func(id cluster.VolumeID, c uint64) bool { return id == 1 && e.leaving[c] }}
	e.rig.core.Suspect(r.Gone)
	e.rig.core.Submit(r)
	e.write(other, 0, 2)
	e.some(1)
	e.quiesce()
	if r.Status != transport.StatusOK || r.Value != uint64(len(chunks)) {
		e.t.Fatalf("vacate: status %d, %d chunks", r.Status, r.Value)
	}
	for k, b := range e.blocks {
		if k.volume == 1 && e.leaving[k.chunk] {
			*b = modelBlock{values: []uint64{e.zero}}
		}
	}
	for _, c := range chunks {
		delete(e.tags, at(c, 0))
		delete(e.leaving, c)
	}
}

// damage rots a byte of the disk. No prefix is looked at before the next step.
func (e *enumerator) damage(off int64) {
	e.quiesce()
	e.rig.disk.Corrupt(off)
}

// scrub makes a pass; chunk is written to meanwhile.
func (e *enumerator) scrub(chunk uint64) {
	r := &Request{Op: OpScrub, Data: alignedBytes(cluster.ChunkSize), Table: &transport.SumTable{}}
	for k := uint32(0); ; k++ {
		e.rig.core.Submit(r)
		if e.write(chunk, k%5, 1); k%4 == 1 {
			e.fua(chunk, 6, 1)
		}
		e.some(2)
		e.quiesce()
		if r.Status != transport.StatusOK {
			e.t.Fatalf("scrub: status %d at %d", r.Status, r.Value)
		}
		if r.Value == 0 {
			return
		}
	}
}

// upkeepScripts are what a device does to itself and for its peers: it gives up
// copies, and mends what has rotted.
var upkeepScripts = []script{
	{"vacate", Config{Discard: true}, func(e *enumerator) {
		e.write(0, 0, 2)
		e.write(1, 0, 2)
		e.write(3, 1, 1)
		e.submit(&Request{}, "write", modelKey{2, 1, 0}, 2)
		e.sync()
		e.rest()
		e.write(1, 1, 1) // in the log when it goes; chunk 3 is not
		e.quiesce()
		e.vacate(4, 1, 3)
		e.write(1, 3, 1) // a copy again, and nothing of the old one shows
		e.sync()
		e.rest()
		e.rig.core.EachRegion(func(id cluster.VolumeID, _ uint32, chunk uint64) {
			if id == 1 && chunk == 3 {
				e.t.Fatal("the vacated chunk is in the activity log")
			}
		})
		e.write(0, 0, 1) // so that the log has it, whatever becomes of the next commit
		e.quiesce()
		e.vacate(0, 4)
		e.rest()
	}},
	{"scrub", Config{}, func(e *enumerator) {
		e.on = false
		e.write(0, 0, 2)
		e.write(1, 0, 1)
		e.sync()
		e.rest()
		e.on = true
		l := &e.rig.core.lay
		for _, off := range []int64{superA + 100, superB + 7, l.headerAt(0, 0) + 200, l.headerAt(0, 1) + 300} {
			e.damage(off)
			e.scrub(1)
			e.sync()
			e.rest()
		}
		// The page of a chunk: lost if the power goes before it is in the log again.
		slot := e.rig.slotOf(0)
		for b := range uint32(blocks) {
			e.rotten[at(0, b)] = true
		}
		e.damage(l.pageAt(slot, e.rig.core.slots.info[slot].pageSeq&1) + 300)
		e.scrub(1)
		e.sync()
		clear(e.rotten)
		e.write(0, 1, 1)
		e.rest()
		if s := e.rig.core.Stats(); s.MetaMended < 5 {
			e.t.Fatalf("%d of %d damaged pages mended", s.MetaMended, s.MetaRot)
		}
	}},
	{"repair", Config{}, func(e *enumerator) {
		e.on = false
		e.write(0, 0, 7)
		version := e.version
		e.write(1, 0, 1)
		e.sync()
		e.rest()
		e.on = true
		for _, b := range []uint32{2, 3, 5} {
			e.damage(e.rig.core.lay.dataAt(e.rig.slotOf(0)) + int64(b)<<blockShift + 9)
			e.rotten[at(0, b)] = true
		}
		r := repairReq(0, 0, 7<<blockShift, version, 0)
		e.rig.core.Submit(r)
		e.write(1, 1, 1)
		e.some(1)
		e.quiesce()
		if r.Status != transport.StatusOK || r.Value != 3 {
			e.t.Fatalf("repair: status %d, %d blocks", r.Status, r.Value)
		}
		e.sync()
		clear(e.rotten) // a flush covers it
		e.fua(0, 3, 1)
		e.write(0, 5, 2)
		e.sync()
		e.rest()
	}},
}

// plantedInUpkeep are errors below these scripts.
var plantedInUpkeep = []planted{
	{name: "vacated before that is durable", script: "vacate", plant: func(e *enumerator, p *rigIO) {
		if p.io.Kind == IOFlush && e.leaving[4] {
			p.mark = 0
		}
	}},
	{name: "a vacated slot used too early", script: "vacate", plant: func(e *enumerator, p *rigIO) {
		if p.io.owner != ownLog || !e.leaving[3] {
			return
		}
		for s := range e.rig.core.slots.info {
			if in := &e.rig.core.slots.info[s]; in.key == (chunkKey{1, 3, 0}) {
				junk := alignedBytes(2 * pageSize)
				pattern(junk, 1<<40)
				if _, err := e.rig.disk.WriteAt(junk, e.rig.core.lay.dataAt(uint32(s))); err != nil {
					e.t.Fatal(err)
				}
			}
		}
	}},
	{name: "a superblock written over the good one", script: "scrub", plant: func(_ *enumerator, p *rigIO) {
		if p.io.owner == ownRewrite && p.off <= superB {
			p.off = superA + superB - p.off
		}
	}},
	{name: "an empty header page", script: "scrub", plant: func(e *enumerator, p *rigIO) {
		if c := e.rig.core; p.io.owner == ownRewrite && p.off >= c.lay.hdrOff {
			clear(p.io.Data[headerSize:])
			sealHeaderPage(p.io.Data, c.salt, c.hdrSeq[0], 0)
		}
	}},
	{name: "a repair of the wrong block", script: "repair", plant: func(_ *enumerator, p *rigIO) {
		if p.io.owner == ownMend && p.io.Kind == IOWrite {
			p.off ^= pageSize
		}
	}},
	{name: "a repair with other bytes", script: "repair", plant: func(_ *enumerator, p *rigIO) {
		if p.io.owner == ownMend && p.io.Kind == IOWrite {
			p.io.Data = append(alignedBytes(0), p.io.Data...)
			p.io.Data[7] ^= 1
		}
	}},
}

// Goal: each script of upkeep is one in which an error was planted and found.
func TestUpkeepIsPlanted(t *testing.T) {
	for _, s := range upkeepScripts {
		n := 0
		for _, x := range plantedInUpkeep {
			if x.script == s.name {
				n++
			}
		}
		if n == 0 {
			t.Errorf("nothing is planted in %s", s.name)
		}
	}
}
