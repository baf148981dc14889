// SPDX-License-Identifier: Apache-2.0

package memdev

import (
	"math/rand"
	"time"

	"braid/transport/bio"
	"braid/transport/loop"
)

const (
	blockSize     = 4096
	pageSize      = 64 << 10
	blocksPerPage = pageSize / blockSize
)

// Options describe a device.
type Options struct {
	Size      uint64 // bytes
	BlockSize int    // logical block size; 4096 when 0
	ReadOnly  bool
	// Delay is the longest time by which a completion is put off. Each request
	// draws its own delay from Seed, so completions come out of order. 0: at the
	// end of the turn of the loop in which the request was submitted.
	Delay time.Duration
	Seed  int64
	// Fail, when set, is asked for every request; an error completes the request
	// without an effect.
	Fail func(r *bio.Request) error
	// Hold, when set, keeps a request back until Release.
	Hold func(r *bio.Request) bool
}

type page struct {
	bytes [pageSize]byte
	used  uint16 // a bit per block that holds data
}

// Stats counts what was submitted, by operation. Read it on the loop.
type Stats struct {
	Reads, Writes, Flushes, Trims, Zeroes, Caches, Statuses uint64
	FUA                                                     uint64
}

// Device is a block device in memory. All methods but New run on the loop.
type Device struct {
	loop  *loop.Loop
	o     Options
	pages []*page
	spare []*page // freed by trims, used again by writes
	rng   *rand.Rand

	done     *bio.Request // completions of this turn, linked by Dev.Next
	doneTail *bio.Request
	queued   bool
	held     []*bio.Request
	delayed  []*bio.Request
	timer    loop.Timer
	inFlight int
	stats    Stats
}

// New returns an empty device, which reads as zeroes.
func New(l *loop.Loop, o Options) *Device {
	if o.BlockSize == 0 {
		o.BlockSize = blockSize
	}
	d := &Device{
		loop:  l,
		o:     o,
		pages: make([]*page, (o.Size+pageSize-1)/pageSize),
		rng:   rand.New(rand.NewSource(o.Seed)),
	}
	d.timer.Fire = d.due
	return d
}

// Size is the device's size in bytes.
func (d *Device) Size() uint64 { return d.o.Size }

// BlockSize is the logical block size in bytes.
func (d *Device) BlockSize() int { return d.o.BlockSize }

// ReadOnly reports whether writes are refused.
func (d *Device) ReadOnly() bool { return d.o.ReadOnly }

// InFlight is the number of requests that are not yet completed.
func (d *Device) InFlight() int { return d.inFlight }

// Stats returns the counters.
func (d *Device) Stats() Stats { return d.stats }

// Resize changes the size; bytes beyond a smaller size are lost.
func (d *Device) Resize(size uint64) {
	pages := make([]*page, (size+pageSize-1)/pageSize)
	copy(pages, d.pages)
	if size < d.o.Size && len(pages) > 0 && size%pageSize != 0 {
		if p := pages[len(pages)-1]; p != nil {
			clear(p.bytes[size%pageSize:])
		}
	}
	d.pages, d.o.Size = pages, size
}

// Allocated is the number of bytes in blocks that hold data.
func (d *Device) Allocated() uint64 {
	n := uint64(0)
	for _, p := range d.pages {
		if p == nil {
			continue
		}
		for b := range blocksPerPage {
			if p.used&(1<<b) != 0 {
				n += blockSize
			}
		}
	}
	return n
}

// Submit starts r. It takes effect now and completes later.
func (d *Device) Submit(r *bio.Request) {
	d.inFlight++
	r.Err = d.check(r)
	if r.Err == nil && d.o.Fail != nil {
		r.Err = d.o.Fail(r)
	}
	if r.Err == nil {
		d.apply(r)
	}
	r.Dev.Next = nil
	if d.o.Hold != nil && d.o.Hold(r) {
		d.held = append(d.held, r)
		return
	}
	if d.o.Delay > 0 {
		r.Dev.Stamp = d.loop.Now() + d.rng.Int63n(int64(d.o.Delay))
		d.delayed = append(d.delayed, r)
		d.arm()
		return
	}
	d.complete(r)
}

// Release completes what Hold kept back, newest first.
func (d *Device) Release() {
	held := d.held
	d.held = nil
	for i := len(held) - 1; i >= 0; i-- {
		d.complete(held[i])
	}
}

// SetHold replaces Options.Hold.
func (d *Device) SetHold(hold func(*bio.Request) bool) { d.o.Hold = hold }

// SetFail replaces Options.Fail.
func (d *Device) SetFail(fail func(*bio.Request) error) { d.o.Fail = fail }

func (d *Device) complete(r *bio.Request) {
	if d.doneTail == nil {
		d.done = r
	} else {
		d.doneTail.Dev.Next = r
	}
	d.doneTail = r
	if !d.queued {
		d.queued = true
		d.loop.Defer(d)
	}
}

// RunDeferred completes the requests of this turn. Completions may submit more,
// which then complete in the next round.
func (d *Device) RunDeferred() {
	d.queued = false
	r := d.done
	d.done, d.doneTail = nil, nil
	for r != nil {
		next := r.Dev.Next
		r.Dev.Next = nil
		d.inFlight--
		r.Done.RequestDone(r)
		r = next
	}
}

// arm sets the timer to the earliest delayed completion.
func (d *Device) arm() {
	if len(d.delayed) == 0 {
		return
	}
	first := d.delayed[0].Dev.Stamp
	for _, r := range d.delayed[1:] {
		first = min(first, r.Dev.Stamp)
	}
	d.loop.Arm(&d.timer, time.Duration(max(first-d.loop.Now(), 0)))
}

// due completes what is due.
func (d *Device) due(*loop.Timer) {
	now := d.loop.Now()
	keep := d.delayed[:0]
	for _, r := range d.delayed {
		if r.Dev.Stamp <= now {
			d.complete(r)
		} else {
			keep = append(keep, r)
		}
	}
	clear(d.delayed[len(keep):])
	d.delayed = keep
	d.arm()
}

func (d *Device) check(r *bio.Request) error {
	switch {
	case r.Op == bio.Flush:
		return nil
	case r.Off > d.o.Size || r.Len > d.o.Size-r.Off:
		return bio.ErrInvalid
	case d.o.ReadOnly && (r.Op == bio.Write || r.Op == bio.Trim || r.Op == bio.WriteZeroes):
		return bio.ErrReadOnly
	case (r.Op == bio.Read || r.Op == bio.Write) && uint64(len(r.Data)) != r.Len:
		return bio.ErrInvalid
	}
	return nil
}
