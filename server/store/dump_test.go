// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"strings"
)

// dumpLog lists what the log on the disk says of a chunk.
func dumpLog(g *rig, key chunkKey) string {
	var b strings.Builder
	s, _, err := readSuper(g.disk)
	if err != nil {
		return err.Error()
	}
	r, err := readRing(g.disk, &s.layout, s.salt())
	if err != nil {
		return err.Error()
	}
	last, err := r.last()
	if err != nil {
		return err.Error()
	}
	fmt.Fprintf(&b, "\ntail %d last %d clean %v\n", last.tail, last.seq, s.flags&superClean)
	for t := range uint32(2) { // the pages of the slot that the chunk has
		for slot := range s.layout.slots {
			var p chunkPage
			buf := alignedBytes(pageSize)
			if _, err := g.disk.ReadAt(buf, s.layout.pageAt(slot, t)); err != nil {
				return err.Error()
			}
			if p.decode(buf, s.salt(), slot, nil) && p.head.key == key {
				fmt.Fprintf(&b, "slot %d twin %d: state %d number %d tag %d,%d %d blocks\n", slot, t, p.head.state,
					p.head.pageSeq, p.head.gen, p.head.interval, p.head.blocks)
			}
		}
	}
	if slot, ok := g.core.slots.find(&key); ok {
		in := &g.core.slots.info[slot]
		p := g.core.cache.at(in.page)
		fmt.Fprintf(&b, "in memory: slot %d number %d top %d state %d first %d last %d have %x\n", slot, in.pageSeq,
			p.topSeq, p.state, p.firstSeq, p.lastSeq, p.have)
	}
	for q := last.tail; q <= last.seq; {
		h := r.group(q)
		_ = r.records(h, func(x *record) error {
			if x.key == key || x.kind == recDoubt {
				fmt.Fprintf(&b, "group %d+%d start %d: %v flags %d slot %d tag %d,%d bits %x mask %x doubt %d\n",
					q, h.count, h.start, x.kind, x.flags, x.slot, x.gen, x.interval, x.bits, x.mask, x.seq)
			}
			return nil
		})
		q += uint64(h.count)
	}
	return b.String()
}
