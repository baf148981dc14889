// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"os"
	"testing"
	"unsafe"

	model "braid/cluster"
	"braid/server/store"
	"braid/transport"
)

// place is where a chunk belongs.
type place struct {
	volume model.VolumeID
	layer  uint32
	chunk  uint64
}

// frozen is a device that is read, and whose writes are kept in memory: a store
// wants to count its start.
type frozen struct {
	*os.File
	size  int64
	wrote map[int64][]byte // by offset, a block each
}

func (f *frozen) Size() int64  { return f.size }
func (f *frozen) Flush() error { return nil }

func (f *frozen) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	for i := 0; i < n; i += block {
		if b := f.wrote[off+int64(i)]; b != nil {
			copy(p[i:], b)
		}
	}
	return n, err
}

func (f *frozen) WriteAt(p []byte, off int64) (int, error) {
	for i := 0; i < len(p); i += block {
		f.wrote[off+int64(i)] = append([]byte(nil), p[i:i+block]...)
	}
	return len(p), nil
}

// readDevice opens the store of a device that no server has, and reads all chunks.
func readDevice(t *testing.T, path string) map[place][]byte {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	stat, err := file.Stat()
	if err != nil {
		t.Fatal(err)
	}
	d := &frozen{File: file, size: stat.Size(), wrote: map[int64][]byte{}}
	core, err := store.Open(d, store.Config{VerifyReads: true})
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	chunks := map[place][]byte{}
	core.Generations(func(id model.VolumeID, gen model.Generation) {
		tags := &store.Request{Op: store.OpTags, Volume: id, Gen: gen, Length: 1 << 10}
		for d.ask(t, core, tags); tags.Value != 0; {
			d.ask(t, core, tags)
		}
		for _, c := range tags.Chunks {
			r := &store.Request{Op: store.OpRead, Volume: id, Gen: gen, Layer: c.Layer, Chunk: c.Chunk,
				Length: model.ChunkSize, Data: alignedChunk(), Sums: make([]byte, 8*model.BlocksPerChunk)}
			d.ask(t, core, r)
			if r.Hole {
				clear(r.Data)
			}
			chunks[place{id, c.Layer, c.Chunk}] = r.Data
		}
	})
	return chunks
}

// ask submits a request and does what the store wants done for it.
func (d *frozen) ask(t *testing.T, core *store.Core, r *store.Request) {
	t.Helper()
	isAnswered := false
	core.Submit(r)
	for effects := core.Effects(); len(effects) > 0; effects = core.Effects() {
		for _, e := range effects {
			switch e.Kind {
			case store.EffectReply:
				isAnswered = isAnswered || e.Req == r
			case store.EffectFailed:
				t.Fatalf("the store has failed: %v", core.Err())
			case store.EffectIO:
				var err error
				switch e.IO.Kind {
				case store.IORead:
					_, err = d.ReadAt(e.IO.Data, e.IO.Off)
				case store.IOWrite:
					_, err = d.WriteAt(e.IO.Data, e.IO.Off)
				case store.IOFlush, store.IODiscard:
				}
				core.IODone(e.IO, err)
			}
		}
	}
	if !isAnswered || r.Status != transport.StatusOK {
		t.Errorf("chunk %d of volume %d, layer %d: answered %t, status %v", r.Chunk, r.Volume, r.Layer,
			isAnswered, r.Status)
	}
}

// alignedChunk is room for a chunk at a page's begin.
func alignedChunk() []byte {
	b := make([]byte, model.ChunkSize+block)
	skip := -uintptr(unsafe.Pointer(unsafe.SliceData(b))) % block
	return b[skip:][:model.ChunkSize]
}
