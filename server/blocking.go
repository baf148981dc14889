// SPDX-License-Identifier: Apache-2.0

package server

import (
	"io"

	"braid/server/disk"
	"braid/server/store"
	"braid/transport/loop"
)

// blockingQueue bounds what a store can have running at once, with room.
const blockingQueue = 8 * maxRequests

// blockingDisk drives a backing that has no file descriptor, a disk for tests,
// with one goroutine.
type blockingDisk struct {
	backing disk.Backing
	loop    *loop.Loop
	queue   chan *diskOp
	done    chan struct{}
}

func newBlockingDisk(b disk.Backing, l *loop.Loop) *blockingDisk {
	d := &blockingDisk{backing: b, loop: l, queue: make(chan *diskOp, blockingQueue),
		done: make(chan struct{})}
	go d.run()
	return d
}

func (d *blockingDisk) enqueue(o *diskOp) { d.queue <- o }

func (d *blockingDisk) run() {
	defer close(d.done)
	for o := range d.queue {
		err := d.do(o.io)
		d.loop.Post(func() { o.end(err) })
	}
}

func (d *blockingDisk) do(x *store.IO) error {
	var n int
	var err error
	switch x.Kind {
	case store.IORead:
		n, err = d.backing.ReadAt(x.Data, x.Off)
	case store.IOWrite:
		n, err = d.backing.WriteAt(x.Data, x.Off)
	case store.IOFlush:
		return d.backing.Flush()
	case store.IODiscard:
		return d.backing.Discard(x.Off, x.Len)
	}
	if n == len(x.Data) {
		return nil
	}
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// close ends the goroutine after what is queued. The loop must have ended or
// have nothing running.
func (d *blockingDisk) close() {
	close(d.queue)
	<-d.done
}
