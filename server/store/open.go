// SPDX-License-Identifier: Apache-2.0

package store

import (
	"errors"
	"fmt"

	"github.com/cespare/xxhash/v2"

	"braid/cluster"
)

// Identity says which device this is.
type Identity struct {
	Device   cluster.UUID
	Cluster  cluster.UUID // zero: claimed by no cluster yet
	Starts   uint64       // advanced and made durable by every Open (rule 21)
	StartID  uint64       // Config.StartID of the newest Open
	Size     int64        // bytes of the device that the format uses
	Capacity int64        // bytes for chunks
	Clean    bool         // the last stop was clean
}

// Errors of the offline functions.
var (
	// ErrNotFormatted: neither superblock carries Braid's magic.
	ErrNotFormatted = errors.New("no Braid superblock")
	// ErrCorrupt: a superblock or the log is damaged beyond what a crash explains.
	ErrCorrupt = errors.New("metadata is corrupt")
	// ErrVersion: formatted by a version this program does not know.
	ErrVersion = errors.New("unknown format version")
	// ErrTooSmall: no room for metadata and one chunk.
	ErrTooSmall = errors.New("device is too small")
)

// Open recovers the store of a device and starts it: the start counter advances
// and is durable before Open returns (rule 21).
//
//  1. superblock: the newer valid copy;
//  2. header table: the newer valid twin of each page;
//  3. log: the groups from the tail to the end are applied over it, in memory;
//  4. superblock with the new counter, device flush. From here on everything
//     that was read is durable, also what a dead process had left in the
//     device's cache.
//
// Nothing else is written: pages are folded later, and blocks in regions of the
// activity log are compared with their checksums on first use.
func Open(d Disk, cfg Config) (*Core, error) {
	c, err := load(d, cfg)
	if err != nil {
		return nil, err
	}
	isClean := c.sb.flags&superClean != 0
	c.sb.starts++
	c.sb.flags &^= superClean
	c.sb.startID = cfg.StartID
	if !isClean {
		c.sb.epoch, c.sb.epochID, c.sb.errors = c.sb.starts, cfg.StartID, 0
	}
	if err := writeSuper(d, &c.sb); err != nil {
		return nil, err
	}
	return c, nil
}

// load does steps 1 to 3; it only reads.
func load(d Disk, cfg Config) (*Core, error) {
	s, _, err := readSuper(d)
	if err != nil {
		return nil, err
	}
	c := newCore(s, cfg)
	if err := c.readHeaders(d); err != nil {
		return nil, err
	}
	if err := c.replayLog(d); err != nil {
		return nil, err
	}
	if err := c.buildIndex(); err != nil {
		return nil, err
	}
	return c, nil
}

func newCore(s superblock, cfg Config) *Core {
	slots := int(s.layout.slots)
	if cfg.PageCache == 0 {
		cfg.PageCache = min(defaultPageCache, slots+slabPages)
	}
	cfg.PageCache = max(cfg.PageCache, slabPages)
	if cfg.ALSlots == 0 {
		cfg.ALSlots = min(defaultALSlots, slots)
	}
	c := &Core{
		cfg: cfg, sb: s, lay: s.layout, salt: s.salt(),
		volumes: map[cluster.VolumeID]*volume{},
		torn:    map[chunkKey]*tornBlocks{},
		doubts:  map[chunkKey]*doubt{},
		hdrSeq:  make([]uint64, s.layout.headerPages()),
		zeroes:  aligned(zeroMemory[:]),
	}
	c.zeroSum = xxhash.Sum64(c.zeroes[:cluster.BlockSize])
	c.slots.init(s.layout.slots)
	c.cache.init(cfg.PageCache)
	c.log.init(s.layout.ringPages, cfg.ALSlots)
	c.fold.init(s.layout.slots, s.layout.headerPages())
	c.loads.init(s.layout.slots)
	c.discards.init()
	return c
}

const (
	defaultPageCache = 32768
	defaultALSlots   = 16384
)

// readHeaders loads the header table. A twin that is not valid was either torn
// by the crash or has rotted; the other one may then be older than what the log
// covers, so the pages of its chunks decide.
func (c *Core) readHeaders(d Disk) error {
	n := c.lay.headerPages()
	buf := alignedBytes(min(scanBytes, int(n)*2*pageSize))
	const step = scanBytes / (2 * pageSize)
	for first := uint32(0); first < n; first += step {
		k := min(step, n-first)
		if err := readFull(d, buf[:k*2*pageSize], c.lay.headerAt(first, 0)); err != nil {
			return fmt.Errorf("header table: %w", err)
		}
		for i := range k {
			b := buf[i*2*pageSize : (i+1)*2*pageSize]
			if err := c.takeHeaders(d, first+i, b); err != nil {
				return err
			}
		}
	}
	return nil
}

func (c *Core) takeHeaders(d Disk, index uint32, b []byte) error {
	best, valid := -1, 0
	for t := range 2 {
		seq, ok := openHeaderPage(b[t*pageSize:], c.salt, index)
		if !ok || seq&1 != uint64(t) {
			continue
		}
		valid++
		if best < 0 || seq > c.hdrSeq[index] {
			best = t
			c.hdrSeq[index] = seq
		}
	}
	first := index * headersPerPage
	for k := range min(headersPerPage, c.lay.slots-first) {
		if best < 0 {
			break
		}
		var h header
		h.decode(b[best*pageSize+int(headerSize*(1+k)):])
		c.setHeader(first+k, &h)
	}
	if valid == 2 {
		return nil
	}
	c.stats.HeaderRebuilds++
	return c.rebuildHeaders(d, first)
}

func (c *Core) setHeader(slot uint32, h *header) {
	in := &c.slots.info[slot]
	*in = slotInfo{pageSeq: h.pageSeq}
	if h.state == slotUsed {
		in.key, in.gen, in.interval, in.blocks = h.key, h.gen, h.interval, h.blocks
		in.state = stateUsed
	}
}

// rebuildHeaders reads the pages of all chunks of a header page: each carries
// its own header.
func (c *Core) rebuildHeaders(d Disk, first uint32) error {
	n := min(headersPerPage, c.lay.slots-first)
	buf := alignedBytes(int(n) * 2 * pageSize)
	if err := readFull(d, buf, c.lay.pageAt(first, 0)); err != nil {
		return fmt.Errorf("chunk pages: %w", err)
	}
	for k := range n {
		for t := range 2 {
			var p chunkPage
			o := (int(k)*2 + t) * pageSize
			if p.decode(buf[o:], c.salt, first+k, nil) && p.head.pageSeq&1 == uint32(t) &&
				p.head.pageSeq > c.slots.info[first+k].pageSeq {
				c.setHeader(first+k, &p.head)
			}
		}
	}
	return nil
}

// buildIndex makes the index and the free map from the recovered slots.
func (c *Core) buildIndex() error {
	for s := range c.lay.slots {
		in := &c.slots.info[s]
		if in.state != stateUsed {
			continue
		}
		if !c.slots.insert(s) {
			return fmt.Errorf("%w: chunk %d of volume %d is stored twice", ErrCorrupt,
				in.key.chunk, in.key.volume)
		}
		c.slots.claim(s)
	}
	return nil
}
