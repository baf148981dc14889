// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"sync/atomic"
	"testing"

	"braid/transport/bio"
	"braid/transport/bio/memdev"
	"braid/transport/buf"
)

// roomlessDevice is a device whose writes may wait for space.
type roomlessDevice struct {
	*memdev.Device
	waits atomic.Bool
}

func (d *roomlessDevice) Roomless() bool { return d.waits.Load() }

// Goal: writes that wait for space keep their buffers, and nothing else is held up by
// that: not what comes behind them on the same connection, nor on another one, nor
// another device. Method: more writes than the pool has buffers are not answered; reads
// are, from buffers that come from elsewhere and go back there.
func TestReadsPassWritesThatWaitForSpace(t *testing.T) {
	const pieces = MaxPayload/dataPiece + 1
	r := newRig(t, rigOptions{consumers: []buf.Consumer{{Name: "pieces", Size: dataPiece, Count: pieces}}})
	full := &roomlessDevice{Device: memdev.New(r.loop, memdev.Options{Size: testSize})}
	r.export("full", full, false)
	connect := func() *peer {
		p := r.dial()
		p.greet(3)
		p.enter("full")
		return p
	}
	r.loop.Call(func() { full.SetHold(func(q *bio.Request) bool { return q.Op == bio.Write }) })
	full.waits.Store(true)
	p := connect()
	cookies := map[uint64]bool{}
	for i := range uint64(pieces + 20) {
		cookies[p.request(cmdWrite, 0, i*dataPiece, dataPiece, bytesAt(i, dataPiece))] = true
	}
	r.until("all writes wait", func() bool { return full.InFlight() == len(cookies) })
	mustEqual(t, "a read behind them", p.readSimple(dataPiece, dataPiece), bytesAt(1, dataPiece))
	mustEqual(t, "a read beside them", connect().readSimple(0, 3<<20)[:dataPiece], bytesAt(0, dataPiece))
	if n := len(r.simple().readSimple(0, 4<<20)); n != 4<<20 {
		t.Errorf("another device reads %d bytes", n)
	}
	full.waits.Store(false)
	r.loop.Call(func() { full.SetHold(nil); full.Release() })
	for range pieces + 20 {
		cookie, errno := p.answer()
		if errno != 0 || !cookies[cookie] {
			t.Fatalf("write %#x ends with error %d", cookie, errno)
		}
		delete(cookies, cookie)
	}
	r.atRest()
	r.until("no spilled buffer is out", func() bool { return r.arena.spill.pool.Load().Outstanding() == 0 })
	if r.arena.spill.get(r.port, 4096) != nil {
		t.Error("a device gets more memory although no write waits for space")
	}
}
