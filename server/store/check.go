// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
)

// CheckOptions say how much Check does.
type CheckOptions struct {
	Data     bool // read every block and compare it with its checksum
	Progress func(done, total int64)
}

// CheckResult is what Check found.
type CheckResult struct {
	Chunks    uint64 // whose metadata was read
	Blocks    uint64 // whose data was compared
	Uncertain uint64 // blocks in regions that a crash left open; the next start settles them
	Problems  []Problem
	Total     uint64 // problems found; Problems lists the first maxProblems
}

// Problem is one thing that is wrong.
type Problem struct {
	Where string
	What  string
}

func (p Problem) String() string { return p.Where + ": " + p.What }

const maxProblems = 1000

func (r *CheckResult) add(where, what string, args ...any) {
	r.Total++
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, Problem{where, fmt.Sprintf(what, args...)})
	}
}

// Check reads all metadata of a device that is not being served and, if asked,
// all data. It writes nothing. An error means that it could not go on; what is
// wrong but could be read around is in the result.
func Check(d Disk, o CheckOptions) (*CheckResult, error) {
	r := &CheckResult{}
	_, twins, err := readSuper(d)
	if err != nil {
		return nil, err
	}
	for i, ok := range twins {
		if !ok {
			r.add(fmt.Sprintf("superblock %c", 'A'+i), "damaged; the other copy is used")
		}
	}
	c, err := load(d, Config{})
	if err != nil {
		return nil, err
	}
	if n := c.stats.HeaderRebuilds; n > 0 {
		r.add("header table", "%d pages have a twin that is not valid (after a crash this may be normal)", n)
	}
	k := &checker{c: c, d: d, r: r, o: o, twins: alignedBytes(2 * pageSize)}
	if o.Data {
		k.data = alignedBytes(cluster.ChunkSize)
	}
	total := int64(c.slots.used)
	done := int64(0)
	for s := range c.lay.slots {
		if c.slots.info[s].state != stateUsed {
			continue
		}
		k.chunk(s)
		done++
		if o.Progress != nil {
			o.Progress(done, total)
		}
	}
	return r, nil
}

type checker struct {
	c     *Core
	d     Disk
	r     *CheckResult
	o     CheckOptions
	twins []byte
	data  []byte
}

func (k *checker) chunk(slot uint32) {
	c, r := k.c, k.r
	in := &c.slots.info[slot]
	where := fmt.Sprintf("volume %d chunk %d (slot %d)", in.key.volume, in.key.chunk, slot)
	r.Chunks++
	p := &page{slot: slot, state: pageLoading}
	if i := in.page; i != 0 {
		p = c.cache.at(i)
	}
	if p.state != pageReady {
		overlay := p.state == pageOverlay
		err := readFull(k.d, k.twins, c.lay.pageAt(slot, 0))
		st := c.decodePage(p, k.twins, err)
		switch {
		case err != nil:
			r.add(where, "checksum page: %v", err)
			return
		case st != 0:
			r.add(where, "no valid checksum page with sequence number %d", in.pageSeq)
			return
		}
		if n := p.bits.count(); !overlay && n != int(in.blocks) {
			r.add(where, "the header counts %d blocks, the page %d", in.blocks, n)
		}
	}
	if k.o.Data {
		k.blocks(where, slot, p)
	}
}

func (k *checker) blocks(where string, slot uint32, p *page) {
	c, r := k.c, k.r
	if p.bits.empty() {
		return
	}
	first, last := p.bits.first(), p.bits.last()
	b := k.data[:(last+1-first)<<blockShift]
	if err := readFull(k.d, b, c.lay.dataAt(slot)+int64(first)<<blockShift); err != nil {
		r.add(where, "data: %v", err)
		return
	}
	e := c.slots.info[slot].al
	open := e != 0 && c.al.ent[e].marks&MarkVerify != 0
	for i := first; i <= last; i++ {
		if !p.bits.has(i) {
			continue
		}
		o := (i - first) << blockShift
		r.Blocks++
		if xxhash.Sum64(b[o:o+cluster.BlockSize]) == p.sums[i] {
			continue
		}
		if open {
			r.Uncertain++
			continue
		}
		r.add(where, "block %d does not match its checksum", i)
	}
}
