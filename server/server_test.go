// SPDX-License-Identifier: Apache-2.0

package server

import (
	"bytes"
	"testing"

	"go.uber.org/goleak"

	"braid/transport"
	"braid/transport/loop"
)

const testDiskSize = 64 << 20

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Goal: the plain life of data: write, read, holes, trim, zero, bitmap, flush,
// clean restart, everything still there.
func TestWriteReadFlushTrimRestart(t *testing.T) {
	engines(t, func(t *testing.T, e loop.Engine) {
		d := newMemDisk(testDiskSize)
		format(t, d)
		m := newFakeManager()
		r := startRig(t, e, m, d)
		p := r.dial(0)
		if s := p.open(1); s != transport.StatusOK {
			t.Fatalf("open: %v", s)
		}
		small, large := pattern(1, 4096), pattern(2, 256<<10)
		p.write(3, 8192, small)
		p.write(4, 0, large)
		if got := p.read(3, 8192, 4096); !bytes.Equal(got, small) {
			t.Error("the small block reads back differently")
		}
		if got := p.read(4, 0, len(large)); !bytes.Equal(got, large) {
			t.Error("the large range reads back differently")
		}
		if got := p.read(9, 0, 65536); !bytes.Equal(got, make([]byte, 65536)) {
			t.Error("a chunk that was never written does not read as zeroes")
		}
		trim := readHeader(4, 4096, 8192)
		trim.Op = transport.OpTrim
		p.want(transport.StatusOK, trim, nil)
		clear(large[4096 : 4096+8192])
		status := p.want(transport.StatusOK, transport.Header{Op: transport.OpStatus, PG: uint32(testPG),
			Epoch: epoch, Chunk: 4}, nil)
		if len(status.data) != bitmapSize || status.data[0] != 0xff&^6 || status.data[8] != 0 {
			t.Errorf("bitmap after the trim: %x", status.data)
		}
		zero := readHeader(4, 0, 4096)
		zero.Op, zero.Flags = transport.OpZero, transport.FlagNoHole
		p.want(transport.StatusOK, zero, nil)
		clear(large[:4096])
		if got := p.read(4, 0, len(large)); !bytes.Equal(got, large) {
			t.Error("wrong content after trim and zero")
		}
		p.flush()
		p.close()
		r.stop()
		if !m.left {
			t.Error("the manager was not told of the stop")
		}

		r = startRig(t, e, m, d.reopened())
		p = r.dial(0)
		if s := p.open(2); s != transport.StatusOK {
			t.Fatalf("open after the restart: %v", s)
		}
		if got := p.read(4, 0, len(large)); !bytes.Equal(got, large) {
			t.Error("wrong content after the restart")
		}
		if got := p.read(3, 8192, 4096); !bytes.Equal(got, small) {
			t.Error("the small block is gone after the restart")
		}
		p.close()
		r.stop()
	})
}
