// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"braid/cluster"
)

const scanBytes = 1 << 20 // read and written at a time by offline functions

// Format makes an empty store on d and destroys what was there. device is a
// fresh random UUID; clusterID may be zero. progress may be nil.
//
// The superblocks come last: an interrupted format leaves an unformatted device.
func Format(d Disk, device, clusterID cluster.UUID, progress func(done, total int64)) (Identity, error) {
	if device.IsZero() {
		return Identity{}, fmt.Errorf("format: the device UUID is zero")
	}
	lay, err := newLayout(d.Size())
	if err != nil {
		return Identity{}, err
	}
	return format(d, lay, device, clusterID, progress)
}

func format(d Disk, lay layout, device, clusterID cluster.UUID, progress func(done, total int64)) (Identity, error) {
	if progress == nil {
		progress = func(int64, int64) {}
	}
	s := superblock{device: device, cluster: clusterID, layout: lay, certain: 2}
	buf := alignedBytes(scanBytes)
	for _, off := range [2]int64{superA, superB} {
		if err := writeFull(d, buf[:pageSize], off); err != nil {
			return Identity{}, fmt.Errorf("format: %w", err)
		}
	}
	if err := d.Flush(); err != nil {
		return Identity{}, fmt.Errorf("format: flush: %w", err)
	}
	if err := formatHeaders(d, &s, buf, progress); err != nil {
		return Identity{}, fmt.Errorf("format: header table: %w", err)
	}
	// An empty first page: a ring without any page is a damaged one.
	p := logPage{seq: 1, tail: 1, group: 1, count: 1}
	clear(buf[:pageSize])
	p.seal(buf[:pageSize], s.salt())
	if err := writeFull(d, buf[:pageSize], lay.ringAt(1)); err != nil {
		return Identity{}, fmt.Errorf("format: log: %w", err)
	}
	if err := d.Flush(); err != nil {
		return Identity{}, fmt.Errorf("format: flush: %w", err)
	}
	s.flags = superClean
	if err := writeSuper(d, &s); err != nil {
		return Identity{}, fmt.Errorf("format: %w", err)
	}
	return s.identity(), nil
}

// formatHeaders writes both twins of every header page, empty. A page of the
// table that does not check out later is then known to be damaged.
func formatHeaders(d Disk, s *superblock, buf []byte, progress func(done, total int64)) error {
	lay := &s.layout
	total := int64(lay.headerPages()) * 2 * pageSize
	off := int64(0)
	for off < total {
		n := min(int64(len(buf)), total-off)
		clear(buf[:n])
		for o := int64(0); o < n; o += pageSize {
			k := (off + o) / pageSize
			sealHeaderPage(buf[o:o+pageSize], s.salt(), uint64(k%2), uint32(k/2))
		}
		if err := writeFull(d, buf[:n], lay.hdrOff+off); err != nil {
			return err
		}
		off += n
		progress(off, total)
	}
	return nil
}

// ReadIdentity reads the superblock.
func ReadIdentity(d Disk) (Identity, error) {
	s, _, err := readSuper(d)
	if err != nil {
		return Identity{}, err
	}
	return s.identity(), nil
}

// Claim gives a device that belongs to no cluster to one.
func Claim(d Disk, id cluster.UUID) error {
	s, _, err := readSuper(d)
	if err != nil {
		return err
	}
	if s.cluster == id {
		return nil
	}
	if !s.cluster.IsZero() {
		return fmt.Errorf("the device belongs to cluster %s", s.cluster)
	}
	s.cluster = id
	return writeSuper(d, &s)
}
