// SPDX-License-Identifier: Apache-2.0

package memdev

import "braid/transport/bio"

func (d *Device) apply(r *bio.Request) {
	if r.Flags&bio.FUA != 0 {
		d.stats.FUA++
	}
	switch r.Op {
	case bio.Read:
		d.stats.Reads++
		d.read(r.Data, r.Off)
	case bio.Write:
		d.stats.Writes++
		d.write(r.Data, r.Off)
	case bio.Flush:
		d.stats.Flushes++
	case bio.Trim:
		d.stats.Trims++
		d.zero(r.Off, r.Len, false)
	case bio.WriteZeroes:
		d.stats.Zeroes++
		d.zero(r.Off, r.Len, r.Flags&bio.NoHole != 0)
	case bio.Cache:
		d.stats.Caches++
	case bio.BlockStatus:
		d.stats.Statuses++
		d.status(r)
	default:
		r.Err = bio.ErrNotSupported
	}
}

func (d *Device) read(dst []byte, off uint64) {
	for len(dst) > 0 {
		in := off % pageSize
		n := min(uint64(len(dst)), pageSize-in)
		if p := d.pages[off/pageSize]; p != nil {
			copy(dst[:n], p.bytes[in:])
		} else {
			clear(dst[:n])
		}
		dst, off = dst[n:], off+n
	}
}

func (d *Device) write(src []byte, off uint64) {
	for len(src) > 0 {
		in := off % pageSize
		n := min(uint64(len(src)), pageSize-in)
		p := d.page(off / pageSize)
		copy(p.bytes[in:], src[:n])
		p.used |= blockMask(in, n)
		src, off = src[n:], off+n
	}
}

// page returns page i, allocating it.
func (d *Device) page(i uint64) *page {
	p := d.pages[i]
	if p == nil {
		if k := len(d.spare); k > 0 {
			p, d.spare = d.spare[k-1], d.spare[:k-1]
		} else {
			p = new(page)
		}
		d.pages[i] = p
	}
	return p
}

// zero makes a range read as zeroes. Blocks that lie wholly within it become
// holes, unless keep asks for them to be allocated.
func (d *Device) zero(off, length uint64, keep bool) {
	for length > 0 {
		in := off % pageSize
		n := min(length, pageSize-in)
		i := off / pageSize
		if keep {
			d.page(i).used |= blockMask(in, n)
		}
		if p := d.pages[i]; p != nil {
			clear(p.bytes[in : in+n])
			if !keep {
				first := (in + blockSize - 1) / blockSize * blockSize
				if last := (in + n) / blockSize * blockSize; last > first {
					p.used &^= blockMask(first, last-first)
				}
			}
			if p.used == 0 {
				clear(p.bytes[:])
				d.pages[i] = nil
				if len(d.spare) < 64 {
					d.spare = append(d.spare, p)
				}
			}
		}
		off, length = off+n, length-n
	}
}

// blockMask has a bit for each block of a page that [in, in+n) touches.
func blockMask(in, n uint64) uint16 {
	first, last := in/blockSize, (in+n-1)/blockSize
	return uint16(1<<(last+1)-1) &^ uint16(1<<first-1)
}

func (d *Device) status(r *bio.Request) {
	r.Extents = r.Extents[:0]
	off, end := r.Off, r.Off+r.Len
	for off < end {
		next := min((off/blockSize+1)*blockSize, end)
		p := d.pages[off/pageSize]
		hole := p == nil || p.used&(1<<(off%pageSize/blockSize)) == 0
		if p == nil {
			next = min((off/pageSize+1)*pageSize, end)
		}
		if k := len(r.Extents); k > 0 && r.Extents[k-1].Hole == hole {
			r.Extents[k-1].Length += next - off
		} else {
			if k > 0 && r.Flags&bio.ReqOne != 0 {
				return
			}
			r.Extents = append(r.Extents, bio.Extent{Length: next - off, Hole: hole})
		}
		off = next
	}
}
