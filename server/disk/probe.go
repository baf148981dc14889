// SPDX-License-Identifier: Apache-2.0

package disk

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"unsafe"
)

// Source is what Probe reads from, 4 KiB-aligned.
type Source interface {
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
}

// magic is a signature at a fixed place.
type magic struct {
	what  string
	off   int64
	bytes string
}

// The places are those of libblkid and of the formats' own documents. Braid's
// own superblock is no signature: whose it is, is for the caller to read.
func signatures() []magic {
	return []magic{
		{"an ext2, ext3 or ext4 file system", 0x438, "\x53\xef"},
		{"an XFS file system", 0, "XFSB"},
		{"a Btrfs file system", 0x10040, "_BHRfS_M"},
		{"an LVM physical volume", 0x218, "LVM2 001"},
		{"an LVM physical volume", 0x018, "LVM2 001"},
		{"an LVM physical volume", 0x418, "LVM2 001"},
		{"an LVM physical volume", 0x618, "LVM2 001"},
		{"a LUKS encrypted volume", 0, "LUKS\xba\xbe"},
		{"a LUKS encrypted volume (second header)", 0x4000, "SKUL\xba\xbe"},
		{"a Linux RAID member", 0, "\xfc\x4e\x2b\xa9"},
		{"a Linux RAID member", 4096, "\xfc\x4e\x2b\xa9"},
		{"swap space", 4086, "SWAPSPACE2"},
		{"swap space", 4086, "SWAP-SPACE"},
		{"swap space", 65526, "SWAPSPACE2"},
		{"a GUID partition table", 512, "EFI PART"},
		{"a GUID partition table", 4096, "EFI PART"},
		{"a bcache device", 4120, "\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81"},
		{"a Ceph BlueStore device", 0, "bluestore block device\n"},
		{"an F2FS file system", 1024, "\x10\x20\xf5\xf2"},
		{"an NTFS file system", 3, "NTFS    "},
		{"an exFAT file system", 3, "EXFAT   "},
		{"a FAT file system", 54, "FAT1"},
		{"a FAT file system", 82, "FAT32"},
		{"an ISO 9660 file system", 0x8001, "CD001"},
		{"a squashfs file system", 0, "hsqs"},
		{"a DRBD device", -4092, "\x83\x74\x02\x67"},
	}
}

const probeHead = 512 << 10

// Probe says what a device holds, in words, or "" when nothing is recognised.
func Probe(s Source) (string, error) {
	head, err := readPart(s, 0, probeHead)
	if err != nil {
		return "", err
	}
	tailLen := min(probeHead, s.Size()&^4095)
	tail, err := readPart(s, s.Size()&^4095-tailLen, tailLen)
	if err != nil {
		return "", err
	}
	tail = append(tail, make([]byte, s.Size()&4095)...)
	for _, m := range signatures() {
		b, off := head, m.off
		if off < 0 {
			b, off = tail, int64(len(tail))+off
		}
		if off >= 0 && off+int64(len(m.bytes)) <= int64(len(b)) &&
			string(b[off:off+int64(len(m.bytes))]) == m.bytes {
			return m.what, nil
		}
	}
	return probeOdd(head, tail), nil
}

// probeOdd knows what has no signature at one fixed place.
func probeOdd(head, tail []byte) string {
	if len(head) >= 512 && head[510] == 0x55 && head[511] == 0xAA && hasPartition(head) {
		return "an MBR partition table"
	}
	for _, sector := range []int{512, 4096} { // the copy at the end of a GPT
		if o := len(tail) - sector; o >= 0 && bytes.HasPrefix(tail[o:], []byte("EFI PART")) {
			return "the backup of a GUID partition table"
		}
	}
	// RAID superblock 1.0 lies 8 KiB before the end, 0.90 in the last full 64 KiB.
	for _, back := range []int{8 << 10, 12 << 10, 64 << 10} {
		if o := (len(tail) - back) &^ 4095; o >= 0 && len(tail) > o+4 &&
			binary.LittleEndian.Uint32(tail[o:]) == 0xa92b4efc {
			return "a Linux RAID member"
		}
	}
	if hasZFS(head) || hasZFS(tail) {
		return "a ZFS pool member"
	}
	return ""
}

// hasPartition tells a partition table from a mere boot sector: a plausible
// entry with a type.
func hasPartition(b []byte) bool {
	for i := range 4 {
		e := b[446+16*i:]
		if e[4] != 0 && e[0]&0x7f == 0 && binary.LittleEndian.Uint32(e[12:]) != 0 {
			return true
		}
	}
	return false
}

// hasZFS looks for uberblocks: 128 slots of 1 KiB from 128 KiB into each 256 KiB
// label, of which two lie at either end of the device.
func hasZFS(b []byte) bool {
	const uberblock = 0x00bab10c
	found := 0
	for o := 0; o+8 <= len(b); o += 1024 {
		if in := o % (256 << 10); in < 128<<10 {
			continue
		}
		v := b[o : o+8]
		if binary.LittleEndian.Uint64(v) == uberblock || binary.BigEndian.Uint64(v) == uberblock {
			found++
		}
	}
	return found > 0
}

func readPart(s Source, off, n int64) ([]byte, error) {
	n = min(n, s.Size()-off) &^ 4095
	if n <= 0 {
		return nil, nil
	}
	b := aligned(int(n))
	if k, err := s.ReadAt(b, off); k != len(b) {
		if err == nil {
			err = io.ErrUnexpectedEOF
		}
		return nil, fmt.Errorf("probe: read %d bytes at %d: %w", n, off, err)
	}
	return b, nil
}

// aligned returns n bytes on a 4 KiB boundary, as direct I/O needs.
func aligned(n int) []byte {
	b := make([]byte, n+sector)
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(b)))) & (sector - 1)
	return b[skip : skip+n : skip+n]
}

func alignedSector() []byte { return aligned(sector) }
