// SPDX-License-Identifier: Apache-2.0

package resync

import (
	"encoding/binary"
	"testing"

	"braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// Goal: a target that has lost the checksum pages of chunks gets all their blocks
// from the source, and gives up those that the source lacks.
// Method: every checksum page of C rots, then C starts again. Where they lie is in
// the superblock.
func TestLostPagesAreCopied(t *testing.T) {
	w := stale(t)
	for range 24 { // the log's tail passes the records of the other chunks
		w.put(7, 0)
		w.flush()
		w.flush()
	}
	w.evict()
	for c := range uint64(8) {
		w.put(c, 5)
	}
	c := w.nodes[devC]
	super := make([]byte, 4096)
	if _, err := c.disk.ReadAt(super, 0); err != nil {
		t.Fatal(err)
	}
	from, to := binary.LittleEndian.Uint64(super[96:]), binary.LittleEndian.Uint64(super[104:])
	for off := from; off < to; off += 4096 {
		c.disk.Corrupt(int64(off) + 300)
	}
	w.crashTarget()
	lost := 0
	for chunk := range uint64(6) {
		r := &store.Request{Op: store.OpSums, Volume: volume, Gen: c.core.Generation(volume), Chunk: chunk,
			Data: aligned(cluster.ChunkSize), Table: &transport.SumTable{}}
		if st := c.submit(r); st != transport.StatusOK {
			t.Fatalf("chunk %d: status %d", chunk, st)
		}
		if r.Table.Rot.Has(200) {
			lost++
		}
	}
	if lost == 0 {
		t.Fatal("no page is lost")
	}
	w.joined()
	t.Logf("%d lost pages, %+v", lost, w.core.Stats())
}
