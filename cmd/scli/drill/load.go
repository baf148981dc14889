// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"

	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/stripe"
	"braid/transport/bio"
	"braid/transport/loop"
)

// canary is a drill's own volume, attached by this process.
type canary struct {
	name string
	size uint64
	mdm  *client.Client
	loop *loop.Loop
	v    *stripe.Volume
	made bool
}

// call is one request.
type call struct {
	bio.Request
	done chan struct{}
}

// RequestDone is bio.Completer.
func (c *call) RequestDone(*bio.Request) { close(c.done) }

// attach makes the volume and attaches it.
func (c *canary) attach(ctx context.Context) (err error) {
	order := &pb.CreateVolumeRequest{Name: c.name, Size: c.size, Replicas: 2, StripeUnit: unit, StripeWidth: width}
	if _, err = c.mdm.CreateVolume(ctx, order); err != nil {
		return err
	}
	c.made = true
	if c.loop, err = loop.New(loop.Options{Name: "drill"}); err != nil {
		return err
	}
	c.loop.Start()
	cfg := stripe.Config{Mdm: c.mdm, Loop: c.loop, Volume: c.name, Host: "scli drill"}
	if _, err = crand.Read(cfg.ClientID[:]); err == nil {
		c.v, err = stripe.Attach(ctx, cfg)
	}
	if err != nil {
		_ = c.loop.Close()
		c.loop = nil
	}
	return err
}

func (c *canary) detach(ctx context.Context) error {
	if c.v == nil {
		return nil
	}
	err := c.v.Detach(ctx)
	_ = c.loop.Close()
	c.v = nil
	return err
}

// remove ends what there is of the canary.
func (c *canary) remove(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanUp)
	defer cancel()
	gone, cut := context.WithTimeout(ctx, cleanUp/2)
	defer cut()
	failed := c.detach(gone)
	if !c.made {
		return failed
	}
	if err := c.mdm.DeleteVolume(ctx, c.name, failed != nil); err != nil {
		return fmt.Errorf("the drill's volume is left, remove it with `scli volume delete %s`: %w", c.name,
			errors.Join(failed, err))
	}
	return nil
}

// begin submits a request.
func (c *canary) begin(op bio.Op, off uint64, data []byte) *call {
	r := &call{Request: bio.Request{Op: op, Off: off, Len: uint64(len(data)), Data: data}, done: make(chan struct{})}
	r.Done = r
	c.loop.Post(func() { c.v.Submit(&r.Request) })
	return r
}

// end waits for a request.
func (r *call) end(ctx context.Context) error {
	select {
	case <-r.done:
		return r.Err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// pattern fills data with what a place holds after so many writes.
func pattern(data []byte, place, version uint64) {
	rng := rand.NewPCG(place, version)
	for i := 0; i+8 <= len(data); i += 8 {
		binary.LittleEndian.PutUint64(data[i:], rng.Uint64())
	}
}

// Shape of the load.
const (
	workers   = 4
	unit      = 64 << 10 // and the stripe unit
	width     = 8        // of stripes, in chunks
	flushEach = 8
)

// written is the place that a worker writes in lieu of any: every other row of stripe
// units, and so every other unit of a chunk, keeps its first bytes. Rot there (bitrot) is
// not written over.
func written(place int) int { return place &^ width }

// load writes and reads units of the canary over and over, and knows what each holds.
type load struct {
	c       *canary
	version []uint64 // of each unit
	stop    chan struct{}
	group   sync.WaitGroup

	mu       sync.Mutex // guards what follows
	requests uint64
	longest  time.Duration
	wrong    []string // what went wrong, the first few
}

// fill writes the whole canary once.
func (l *load) fill(ctx context.Context) error {
	for place := range l.version {
		data := make([]byte, unit)
		pattern(data, uint64(place), 0)
		if err := l.c.begin(bio.Write, uint64(place)*unit, data).end(ctx); err != nil {
			return err
		}
	}
	return l.c.begin(bio.Flush, 0, nil).end(ctx)
}

func (l *load) start(ctx context.Context) {
	for w := range workers {
		l.group.Go(func() { l.work(ctx, w) })
	}
}

func (l *load) work(ctx context.Context, w int) {
	rng := rand.New(rand.NewPCG(uint64(w), 1))
	data, back, want := make([]byte, unit), make([]byte, unit), make([]byte, unit)
	for round := 1; ; round++ {
		select {
		case <-l.stop:
			return
		case <-ctx.Done():
			return
		default:
		}
		place := written(rng.IntN(len(l.version)/workers)*workers + w)
		other := rng.IntN(len(l.version)/workers)*workers + w
		pattern(data, uint64(place), l.version[place]+1)
		l.version[place]++
		if !l.did(ctx, "write", l.c.begin(bio.Write, uint64(place)*unit, data)) ||
			!l.did(ctx, "read", l.c.begin(bio.Read, uint64(other)*unit, back)) {
			return
		}
		if pattern(want, uint64(other), l.version[other]); !bytes.Equal(back, want) {
			l.bad(fmt.Sprintf("other bytes than written at %d", other*unit))
		}
		if round%flushEach == 0 && !l.did(ctx, "flush", l.c.begin(bio.Flush, 0, nil)) {
			return
		}
	}
}

// did waits for a request and notes how it went.
func (l *load) did(ctx context.Context, what string, r *call) bool {
	began := time.Now()
	err := r.end(ctx)
	took := time.Since(began)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.requests++
	l.longest = max(l.longest, took)
	if err != nil && len(l.wrong) < 5 {
		l.wrong = append(l.wrong, fmt.Sprintf("%s: %v", what, err))
	}
	return err == nil
}

func (l *load) bad(text string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.wrong) < 5 {
		l.wrong = append(l.wrong, text)
	}
}

// end stops the load and compares every unit.
func (l *load) end(ctx context.Context) {
	close(l.stop)
	l.group.Wait()
	got, want := make([]byte, unit), make([]byte, unit)
	for place, version := range l.version {
		if !l.did(ctx, "read", l.c.begin(bio.Read, uint64(place)*unit, got)) {
			return
		}
		if pattern(want, uint64(place), version); !bytes.Equal(got, want) {
			l.bad(fmt.Sprintf("other bytes than written at %d", place*unit))
		}
	}
}
