// SPDX-License-Identifier: Apache-2.0

package server

import (
	"context"
	"errors"
	"fmt"
	"math"
	"time"

	"braid/server/store"
	"braid/transport"
)

// stop ends a device cleanly, in this order: nothing new is admitted, the store
// drains, flushes and marks the device clean, the last replies leave, the
// connections close, the loop ends, the disk is closed.
func (d *device) stop(ctx context.Context) error {
	if !d.started() {
		return d.backing.Close()
	}
	clean := make(chan transport.Status, 1)
	d.loop.Post(func() { d.drain(func(s transport.Status) { clean <- s }) })
	var err error
	select {
	case status := <-clean:
		if status != transport.StatusOK {
			err = fmt.Errorf("device %s: not marked clean (%v); the next start recovers it", d.path, status)
		}
	case <-ctx.Done():
		return d.leaveBehind(ctx.Err())
	}
	d.await(ctx, lastReplies, func(done func()) {
		if d.sending == 0 {
			done()
			return
		}
		d.whenSent = done
	})
	return errors.Join(err, d.end(ctx))
}

// drain stops admitting and has the store write down that the device is clean.
func (d *device) drain(done func(transport.Status)) {
	if d.state == deviceFailed {
		// There is nothing to be saved and nothing to be said that was not said when
		// it failed.
		done(transport.StatusOK)
		return
	}
	d.state = deviceStopping
	d.pace.release(math.MaxInt64)
	d.limit.release(math.MaxInt64)
	d.target.stop()
	d.own(store.Request{Op: store.OpStop}, done)
}

// abort ends a device as a crash would, but gives back what the process holds.
func (d *device) abort() error {
	d.loop.Call(func() {
		d.state = deviceStopping
		d.target.stop()
	})
	return d.end(context.Background())
}

// end closes the connections, the loop and the disk.
func (d *device) end(ctx context.Context) error {
	d.target.cancel()
	d.tasks.Wait() // its dials still need the loop
	d.await(ctx, lastReplies, func(done func()) {
		d.target.stop()
		if d.isEmpty() {
			done()
			return
		}
		d.whenEmpty = done
		for c := range d.conns {
			c.tc.Close(errStopping)
		}
	})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = d.loop.Close()
		if d.blocking != nil {
			d.blocking.close()
		}
	}()
	select {
	case <-ended:
	case <-ctx.Done():
		return d.leaveBehind(ctx.Err())
	}
	// What the store still had when the loop ended is given back here: no
	// operation of the disk can touch it any more.
	for i := range d.slots.slots {
		if s := &d.slots.slots[i]; s.state != slotFree {
			d.releaseBuf(s)
		}
	}
	if n := d.pool.Outstanding(); n != 0 {
		panic(fmt.Sprintf("server: device %s ended with %d buffers outstanding", d.path, n))
	}
	return errors.Join(d.pool.Close(), d.backing.Close())
}

// await runs begin on the loop and waits until it has called done, but not for
// longer than limit or ctx.
func (d *device) await(ctx context.Context, limit time.Duration, begin func(done func())) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	called := make(chan struct{})
	d.loop.Post(func() { begin(func() { close(called) }) })
	select {
	case <-called:
	case <-ctx.Done():
	}
}

// leaveBehind gives up on a disk that does not answer. Its thread and memory
// stay until the process ends.
func (d *device) leaveBehind(why error) error {
	return fmt.Errorf("device %s: the disk did not end its operations in time (%w); "+
		"it is left unclean and recovers at the next start", d.path, why)
}

// breakDown notes that a device could not be started.
func (d *device) breakDown(err error) {
	d.broken = err
	d.log.Error("device is out of service; the others go on", "reason", err)
	d.mu.Lock()
	d.report.Failed = err.Error()
	d.mu.Unlock()
}
