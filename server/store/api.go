// SPDX-License-Identifier: Apache-2.0

package store

import (
	"braid/cluster"
	"braid/cluster/rules"
	"braid/transport"
)

// Op is what a Request asks of the store.
type Op uint8

// The operations. Offset and Length are multiples of cluster.BlockSize within
// one chunk; Volume, Gen and, except where noted, Layer and Chunk are set.
const (
	// OpRead fills Data and Sums. Hole=true on reply: the whole range is absent,
	// neither Data nor Sums was touched.
	OpRead Op = iota
	// OpWrite stores Data (aligned, Length bytes) with Sums. Interval is set. The
	// caller has verified Sums. FUA: durable on reply.
	OpWrite
	// OpTrim makes the range read as zeroes and gives a wholly empty chunk back.
	OpTrim
	// OpZero is OpTrim, or with NoHole a write of zeroes that stays allocated.
	OpZero
	// OpFlush makes all that was acked before its Submit durable, of all volumes.
	// Drained says that every write of (Volume, Gen) with interval <= Interval is
	// complete on every replica: this, and nothing else, licenses removal from the
	// activity log (rule 1). No Layer, no Chunk.
	OpFlush
	// OpBitmap writes the 32-byte bitmap of the chunk (bit i of byte i/8: block i is
	// present) to Data[:32]; Hole=true: the chunk is absent, Data was not touched.
	OpBitmap
	// OpFence stops admitting older generations of Volume, waits for what was
	// admitted before it, persists Gen and replies (rule 14). A Gen older than the
	// persisted one gets StatusFenced. Value returns the persisted generation.
	OpFence
	// OpStamp gives the chunk the tag Tag, which may be older than its present one,
	// adopts what its torn blocks hold and clears all marks of its activity-log
	// entry; durable with the next flush (rule 4). Unlog: the entry may go as soon
	// as that is durable, without a drained flush, unless something is written
	// first (a copy whose source has no entry). An absent chunk has no tag; the
	// rest applies.
	OpStamp
	// OpMark puts the chunk's region into the activity log with Marks added, whether
	// the chunk is stored or not, and replies when that is durable (rule 20). Marked
	// entries stay until OpStamp.
	OpMark
	// OpSums fills Table with what the device holds of the chunk: checksums of bytes
	// read for the purpose, torn and rotten blocks marked. Data is room for a chunk.
	OpSums
	// OpALList fills Regions with the activity-log entries of Volume, from cursor
	// Value, at most Length of them (0: all); Value returns the next cursor, 0 at the end.
	OpALList
	// OpTags fills Chunks with the chunks of Volume, from cursor Value, at most
	// Length of them; Value returns the next cursor, 0 at the end.
	OpTags
	// OpDrop removes every chunk of Volume and its generation (the volume was deleted).
	OpDrop
	// OpRepair puts back what rotted in the range: Data with Sums, from another copy.
	// The store reads its own blocks; one that does not match its stored checksum is
	// written if the one in Sums does. Nothing else changes, so that it needs no
	// session, lock or epoch: only bytes that belong there can be written. Value
	// returns how many blocks were. StatusRot: some have other checksums here, or
	// lost theirs; an ordinary OpWrite of them mends that. No Gen.
	OpRepair
	// OpScrub reads the next piece of the device from position Value (0: a new pass
	// begins) and verifies it: metadata, or a stored chunk. Value returns the next
	// position, 0 at the end of the pass; Length the bytes that were read. Of a chunk
	// Volume, Layer, Chunk are set and Table is filled, with Rot for blocks that do not
	// match; otherwise Hole is true. StatusRot: the chunk's page is lost; StatusIO:
	// the device does not return all of it. Metadata is mended by the store itself.
	// Data is room for a chunk. No Gen.
	OpScrub
	// OpVacate removes every chunk that Gone picks, whatever its volume, and ends
	// their activity-log entries once that is durable: the device holds no copy of
	// their groups any more. Value is the number of chunks. Gone is asked chunk by
	// chunk, at the moment when each would go.
	OpVacate
	// OpStop drains, makes everything durable and marks the device clean. Nothing
	// but reads of counters is possible after its reply.
	OpStop
)

// Request is one operation. It belongs to the caller before Submit and after
// its EffectReply, to the core in between. It may be reused.
type Request struct {
	Op       Op
	FUA      bool
	NoHole   bool
	IsCopy   bool  // a write that may use what is reserved for copies
	Drained  bool  // OpFlush
	Raw      bool  // OpRead: torn and rotten blocks too; Sums are those of the bytes just read
	Unlog    bool  // OpStamp
	Hole     bool  // result
	Fresh    bool  // result: a user's write that took a chunk from the free ones
	Marks    Marks // OpMark
	Layer    uint32
	Volume   cluster.VolumeID
	Gen      cluster.Generation
	Interval uint64
	Chunk    uint64
	Offset   uint32           // bytes within the chunk
	Length   uint32           // bytes
	Value    uint64           // see the ops
	Only     cluster.VolumeID // OpScrub: its chunks alone and no metadata; 0: everything
	Tag      cluster.Tag      // OpStamp
	// Data is Length bytes, 4 KiB aligned: source of a write (immutable until the
	// reply), destination of a read.
	Data []byte
	// Sums holds 8 bytes (little-endian xxhash64) per block of the range.
	Sums []byte

	Status  transport.Status    // result
	Regions []Region            // result of OpALList, appended
	Chunks  []ChunkTag          // result of OpTags, appended
	Table   *transport.SumTable // OpSums, OpScrub: the caller's, filled

	Gone func(id cluster.VolumeID, chunk uint64) bool // OpVacate

	Ctx any // the caller's own

	// The rest is the core's.
	io    IO
	next  *Request
	vol   *volume
	slot  uint32
	al    uint32
	page  uint32
	seq   uint64
	cost  uint32
	phase uint8
	stage uint8

	present bitmap // of a read
}

// Region is an entry of the activity log.
type Region struct {
	Volume cluster.VolumeID
	Layer  uint32
	Chunk  uint64
	Tag    cluster.Tag // of the newest write that this device remembers
	Marks  Marks
	Torn   [32]byte // blocks that matched no checksum after a crash; by bit as in OpBitmap
}

// Marks qualify an activity-log entry.
type Marks uint8

// The marks.
const (
	MarkSuspect  Marks = 1 << iota // left by an earlier generation or start: to be resolved
	MarkVerify                     // after a crash or a failed write: compared with the checksums on first use
	MarkTarget                     // the copy is the target of a resync and not yet whole (rule 20)
	MarkPoisoned                   // a write failed here: what is on the disk is unknown
)

// ChunkTag is one stored chunk.
type ChunkTag struct {
	Layer  uint32
	Chunk  uint64
	Tag    cluster.Tag
	Blocks uint16 // present ones
}

// IOKind is what an IO does.
type IOKind uint8

// The kinds.
const (
	IORead    IOKind = iota // fill Data from Off
	IOWrite                 // write Data at Off
	IOFlush                 // flush the device's cache (fdatasync)
	IODiscard               // Len bytes at Off need not be kept
)

// IO is one operation on the device. The shell starts it, completes it exactly
// once by Core.IODone, and must do all of Data (a short transfer is an error).
// Reads and writes may run in any order: the core orders what must be ordered
// by waiting.
type IO struct {
	Kind IOKind
	Meta bool // metadata; false: a request's payload
	Off  int64
	Len  int64
	Data []byte
	// Shell is the shell's own (its loop operation); kept across uses of this IO.
	Shell any

	owner ioOwner
	req   *Request
	index uint32
	page  uint32
	slot  uint32
	seq   uint64
}

// EffectKind says what the shell has to do.
type EffectKind uint8

// The kinds.
const (
	EffectIO     EffectKind = iota // start E.IO
	EffectReply                    // E.Req is complete; Status is set
	EffectFailed                   // the device is retired (rule 19); see Core.Err. Once.
)

// Effect is one instruction to the shell, in order.
type Effect struct {
	Kind EffectKind
	IO   *IO
	Req  *Request
}

// Disk is a device for what is done before serving: Format, Open, Inspect, Check.
// It blocks. p is 4 KiB aligned in memory, off and len(p) multiples of 4096.
type Disk interface {
	Size() int64
	ReadAt(p []byte, off int64) (int, error)
	WriteAt(p []byte, off int64) (int, error)
	Flush() error
}

// Config sets the bounds of a core.
type Config struct {
	// PageCache bounds the cached checksum pages (2.3 KiB each); 0: 32768 or the
	// number of chunks. Twice the activity log is a sensible least value.
	PageCache int
	// ALSlots is the size of the activity log; 0: 16384 or the number of chunks.
	ALSlots int
	// ALMost is how many regions the activity log may hold at the very most before
	// writes are sent back with StatusRetry; 0: what a quarter of the log ring holds.
	ALMost int
	// StartID is a random number, drawn by the caller for each Open. When an older
	// image of a disk comes back and is started, counters repeat; this does not, so
	// that no two incarnations look alike (rule 21).
	StartID uint64
	// VerifyReads compares each block read with its checksum and answers
	// StatusRot. Without it only the client does (it always does).
	VerifyReads bool
	// LocalResolve lets the device resolve suspect regions by itself: right when
	// no other copy exists or no resolver is running. Otherwise a region of an
	// older generation leaves the log only after OpStamp.
	LocalResolve bool
	// Off switches rules off, to show that tests notice.
	Off rules.Off
	// Discard hands freed chunks to the device by IODiscard.
	Discard bool
}

// Stats are counters and gauges of a core. Safe to copy.
type Stats struct {
	Chunks, ChunksFree   uint64 // slots
	AL, ALSlots          uint64
	RingPages, RingUsed  uint64
	CachePages, Unfolded uint64
	DirtyChunks          uint64

	Reads, Writes, Trims, Flushes, Holes uint64 // requests
	DeviceFlushes                        uint64
	LogPages, Commits                    uint64
	FoldPages, HeaderPages, PageReads    uint64 // 4 KiB page writes, header page writes, page reads
	ALAdds, ALRemoves, ALRelogs          uint64
	Verified, Torn, Rot, Errors          uint64 // chunks verified after a crash; blocks
	ScrubPasses, ScrubChunks, ScrubBytes uint64 // passes that ended, chunks looked at
	Mended                               uint64 // blocks that OpRepair has written
	MetaRot, MetaMended                  uint64 // metadata pages that a scrub found damaged; mended
	HeaderRebuilds                       uint64 // header pages rebuilt from chunk pages at the start
}
