// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
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
	Torn      uint64 // header pages that a crash has torn; the next start makes them good
	Problems  []Problem
	Total     uint64 // problems found; Problems lists the first maxProblems
}

// Problem is one thing that is wrong.
type Problem struct {
	Where string // the structure
	What  string
	Do    string // what helps
}

func (p Problem) String() string { return p.Where + ": " + p.What + "; " + p.Do }

const maxProblems = 1000

// What helps.
const (
	doStart  = "the next start of sds writes it again"
	doScrub  = "the next start makes it good, and a scrub does while sds serves"
	doMend   = "a scrub mends it from another copy; without one its contents are lost"
	doChunk  = "the chunk is read from another copy, and a write of the whole chunk heals it here"
	doReplay = "the device will not start: remove it (scli device remove), format it and add it again"
)

func (r *CheckResult) add(do, where, what string, args ...any) {
	r.Total++
	if len(r.Problems) < maxProblems {
		r.Problems = append(r.Problems, Problem{where, fmt.Sprintf(what, args...), do})
	}
}

// Check reads all metadata of a device that is not being served and, if asked,
// all data. It writes nothing. An error means that it could not go on; what is
// wrong but could be read around is in the result.
func Check(d Disk, o CheckOptions) (*CheckResult, error) {
	r := &CheckResult{}
	sb, twins, err := readSuper(d)
	if err != nil {
		return nil, err
	}
	for i, ok := range twins {
		if !ok {
			r.add(doStart, fmt.Sprintf("superblock %c", 'A'+i), "damaged; the other copy is used")
		}
	}
	if err := r.headers(d, &sb); err != nil {
		return nil, err
	}
	c, err := load(d, Config{})
	if errors.Is(err, ErrCorrupt) {
		r.add(doReplay, "log and tables", "%v", err)
		return r, nil
	}
	if err != nil {
		return nil, err
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

// headers looks at both twins of each header page. After a crash one may be torn.
func (r *CheckResult) headers(d Disk, s *superblock) error {
	l := &s.layout
	b := alignedBytes(2 * pageSize)
	for index := range l.headerPages() {
		if err := readFull(d, b, l.headerAt(index, 0)); err != nil {
			return fmt.Errorf("header table: %w", err)
		}
		bad := ""
		for t := range uint64(2) {
			if seq, ok := openHeaderPage(b[t*pageSize:], s.salt(), index); !ok || seq&1 != t {
				bad += string(rune('A' + t))
			}
		}
		switch {
		case bad == "":
		case len(bad) == 1 && s.flags&superClean == 0:
			r.Torn++
		default:
			first := index * headersPerPage
			where := fmt.Sprintf("header table page %d (slots %d to %d)", index, first,
				min(first+headersPerPage, l.slots)-1)
			r.add(doScrub, where, "twin %s is damaged; entries are taken from the chunk pages", bad)
		}
	}
	return nil
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
			r.add(doChunk, where, "the checksum page cannot be read: %v", err)
			return
		case st != 0:
			r.add(doChunk, where, "no valid checksum page with sequence number %d", in.pageSeq)
			return
		}
		if n := p.bits.count(); !overlay && n != int(in.blocks) {
			r.add(doChunk, where, "the header counts %d blocks, the page %d", in.blocks, n)
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
	at := c.lay.dataAt(slot) + int64(first)<<blockShift
	if err := readFull(k.d, b, at); err != nil {
		k.blockByBlock(where, b, at, p, first)
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
		r.add(doMend, where, "block %d does not match its checksum", i)
	}
}

// blockByBlock reads what can be read of a chunk and takes the rest out of p.
func (k *checker) blockByBlock(where string, b []byte, at int64, p *page, first uint32) {
	for o := int64(0); o < int64(len(b)); o += pageSize {
		i := first + uint32(o>>blockShift)
		if !p.bits.has(i) {
			continue
		}
		if err := readFull(k.d, b[o:o+pageSize], at+o); err != nil {
			k.r.add(doMend, where, "block %d cannot be read: %v", i, err)
			p.bits.clear(i)
		}
	}
}
