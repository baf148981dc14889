// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"
	"io"
	"sort"

	"braid/cluster"
)

// Report is what Inspect finds. It marshals to JSON as it is.
type Report struct {
	Version       int
	Device        string
	Cluster       string // empty: claimed by none
	Starts        uint64
	Epoch         uint64 // start counter at which the incarnation began
	Errors        uint64
	Clean         bool
	Superblocks   [2]string
	Size          int64
	Capacity      int64
	MetadataBytes int64
	RingPages     uint32
	Slots         uint32
	HeaderOffset  int64
	PageOffset    int64
	DataOffset    int64

	Log            LogReport
	Problem        string // why what follows is empty
	HeaderRebuilds uint64 // header pages of which a twin was not valid
	ChunksUsed     uint32
	BlocksUsed     uint64
	Unfolded       int // chunks whose newest metadata is in the log only
	Doubted        int // chunks that the last group speaks of after a crash
	Volumes        []VolumeReport
	Regions        []Region // the activity log
}

// LogReport describes the log ring.
type LogReport struct {
	Tail, End uint64 // sequence numbers of pages; End is not written yet
	Groups    int
	Records   map[string]int
}

// VolumeReport sums up what is stored of a volume.
type VolumeReport struct {
	ID         cluster.VolumeID
	Generation cluster.Generation
	Chunks     uint64
	Blocks     uint64
	Regions    int // in the activity log
}

// Inspect reads a device and says what it holds. It writes nothing. Metadata
// that cannot be read is named in the report; only a device without a usable
// superblock is an error.
func Inspect(d Disk) (*Report, error) {
	s, twins, err := readSuper(d)
	if err != nil {
		return nil, err
	}
	l := &s.layout
	id := s.identity()
	r := &Report{
		Version: Version, Device: s.device.String(), Starts: s.starts, Epoch: s.epoch, Errors: s.errors,
		Clean: id.Clean, Size: id.Size, Capacity: id.Capacity, MetadataBytes: id.Size - id.Capacity,
		RingPages: l.ringPages, Slots: l.slots,
		HeaderOffset: l.hdrOff, PageOffset: l.pageOff, DataOffset: l.dataOff,
	}
	if !s.cluster.IsZero() {
		r.Cluster = s.cluster.String()
	}
	for i, ok := range twins {
		r.Superblocks[i] = "damaged"
		if ok {
			r.Superblocks[i] = "valid"
		}
	}
	if err := r.readLog(d, &s); err != nil {
		r.Problem = err.Error()
		return r, nil
	}
	c, err := load(d, Config{})
	if err != nil {
		r.Problem = err.Error()
		return r, nil
	}
	r.summarize(c)
	return r, nil
}

func (k recordKind) String() string {
	switch k {
	case recALAdd:
		return "activity-log add"
	case recALRemove:
		return "activity-log remove"
	case recFence:
		return "fence"
	case recDrop:
		return "drop"
	case recDoubt:
		return "doubt"
	case recChunk:
		return "chunk"
	}
	return "unknown"
}

func (r *Report) readLog(d Disk, s *superblock) error {
	g, err := readRing(d, &s.layout, s.salt())
	if err != nil {
		return err
	}
	last, err := g.last()
	if err != nil {
		return err
	}
	r.Log = LogReport{Tail: last.tail, End: last.seq + uint64(last.count), Records: map[string]int{}}
	for q := last.tail; q < r.Log.End; {
		h := g.group(q)
		if err := g.records(h, func(x *record) error {
			r.Log.Records[x.kind.String()]++
			return nil
		}); err != nil {
			return err
		}
		r.Log.Groups++
		q += uint64(h.count)
	}
	return nil
}

func (r *Report) summarize(c *Core) {
	vols := map[cluster.VolumeID]*VolumeReport{}
	at := func(id cluster.VolumeID) *VolumeReport {
		if vols[id] == nil {
			vols[id] = &VolumeReport{ID: id, Generation: c.Generation(id)}
		}
		return vols[id]
	}
	for _, v := range c.vols {
		at(v.id)
	}
	for s := range c.lay.slots {
		in := &c.slots.info[s]
		if in.state != stateUsed {
			continue
		}
		v := at(cluster.VolumeID(in.key.volume))
		v.Chunks++
		v.Blocks += uint64(in.blocks)
		r.BlocksUsed += uint64(in.blocks)
	}
	for e := c.al.ent[0].lru.next; e != 0; e = c.al.ent[e].lru.next {
		ent := &c.al.ent[e]
		at(volumeOf(ent)).Regions++
		r.Regions = append(r.Regions, Region{Volume: volumeOf(ent), Layer: ent.key.layer,
			Chunk: ent.key.chunk, Marks: ent.marks,
			Tag: cluster.Tag{Gen: cluster.Generation(ent.gen), Interval: ent.interval}})
	}
	for _, v := range vols {
		r.Volumes = append(r.Volumes, *v)
	}
	sort.Slice(r.Volumes, func(a, b int) bool { return r.Volumes[a].ID < r.Volumes[b].ID })
	r.HeaderRebuilds = c.stats.HeaderRebuilds
	r.ChunksUsed = c.slots.used
	r.Unfolded = c.cache.unfolded
	r.Doubted = len(c.doubts)
}

// String names the marks.
func (m Marks) String() string {
	s := ""
	for i, n := range [...]string{"suspect", "verify", "target", "poisoned"} {
		if m&(1<<i) != 0 {
			if s != "" {
				s += ","
			}
			s += n
		}
	}
	if s == "" {
		return "-"
	}
	return s
}

// Print writes the report as text. At most regions entries of the activity log
// are listed; 0: none, negative: all.
func (r *Report) Print(w io.Writer, regions int) error {
	p := &printer{w: w}
	owner := r.Cluster
	if owner == "" {
		owner = "none yet"
	}
	p.row("format version", "%d", r.Version)
	p.row("device", "%s", r.Device)
	p.row("cluster", "%s", owner)
	p.row("superblocks", "A %s, B %s", r.Superblocks[0], r.Superblocks[1])
	p.row("starts", "%d (incarnation since start %d, %d errors)", r.Starts, r.Epoch, r.Errors)
	p.row("stopped cleanly", "%v", r.Clean)
	p.row("size", "%s, %s for data, metadata %.2f %%", cluster.FormatSize(uint64(r.Size)),
		cluster.FormatSize(uint64(r.Capacity)), 100*float64(r.MetadataBytes)/float64(r.Size))
	p.row("layout", "log ring %d pages, headers at %d, pages at %d, data at %d", r.RingPages,
		r.HeaderOffset, r.PageOffset, r.DataOffset)
	if r.Problem != "" {
		p.row("PROBLEM", "%s", r.Problem)
		return p.err
	}
	p.row("log", "pages %d to %d of %d, %d groups", r.Log.Tail, r.Log.End, r.RingPages, r.Log.Groups)
	kinds := make([]string, 0, len(r.Log.Records))
	for k := range r.Log.Records {
		kinds = append(kinds, k)
	}
	sort.Strings(kinds)
	for _, k := range kinds {
		p.row("  "+k, "%d", r.Log.Records[k])
	}
	p.row("header pages", "%d rebuilt from chunk pages", r.HeaderRebuilds)
	p.row("chunks", "%d of %d used, %d blocks; %d newer in the log, %d in doubt", r.ChunksUsed, r.Slots,
		r.BlocksUsed, r.Unfolded, r.Doubted)
	for _, v := range r.Volumes {
		p.row(fmt.Sprintf("  volume %d", v.ID), "generation %d, %d chunks, %d blocks, %d regions active",
			v.Generation, v.Chunks, v.Blocks, v.Regions)
	}
	p.row("activity log", "%d regions", len(r.Regions))
	for i, g := range r.Regions {
		if regions >= 0 && i >= regions {
			break
		}
		p.row("  region", "volume %d layer %d chunk %d tag %d.%d %s", g.Volume, g.Layer, g.Chunk,
			g.Tag.Gen, g.Tag.Interval, g.Marks)
	}
	return p.err
}

type printer struct {
	w   io.Writer
	err error
}

func (p *printer) row(name, format string, args ...any) {
	if p.err == nil {
		_, p.err = fmt.Fprintf(p.w, "%-22s %s\n", name, fmt.Sprintf(format, args...))
	}
}
