// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"encoding/binary"
	"fmt"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// request is one request to one block, as the history has it. Values are the
// numbers of writes; 0 is the block before any.
type request struct {
	block   int
	write   bool
	value   uint64 // written
	unknown bool   // a write whose outcome nobody knows
	durable bool   // a FUA write: once it is answered nothing older comes back
}

// history is everything that was asked and answered since it was settled. A write that
// lost its connection stays open until the next attach returns: by then it has happened
// or never will, for its client is fenced.
type history struct {
	began   time.Time
	mu      sync.Mutex // guards the rest
	ops     []porcupine.Operation
	open    []porcupine.Operation
	over    []int64       // when each attach but the last was over
	flushed int64         // when the last flush that was answered was sent; 0: none
	count   int           // of all that was answered, also before
	last    time.Time     // a write was answered last
	pause   time.Duration // since mark: the slowest write, or the longest time in which none was answered
}

func newHistory() *history { return &history{began: time.Now(), last: time.Now()} }

func (h *history) now() int64 { return int64(time.Since(h.began)) }

// done adds what was answered.
func (h *history) done(worker int, r request, call int64, seen uint64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ops = append(h.ops, porcupine.Operation{ClientId: worker, Input: r, Call: call, Output: seen, Return: h.now()})
	h.count++
	if r.write {
		now := time.Now()
		h.pause = max(h.pause, now.Sub(h.last), time.Duration(h.now()-call))
		h.last = now
	}
}

// lost adds a write without an answer, sent through that attach (they count from 0).
func (h *history) lost(worker int, r request, call int64, attach int) {
	r.unknown = true
	h.mu.Lock()
	defer h.mu.Unlock()
	op := porcupine.Operation{ClientId: worker, Input: r, Call: call, Output: uint64(0)}
	if attach >= len(h.over) {
		h.open = append(h.open, op)
		return
	}
	op.Return = h.over[attach]
	h.ops = append(h.ops, op)
}

// attached closes what was open: a new attach has returned.
func (h *history) attached() (attach int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.open {
		op.Return = h.now()
		h.ops = append(h.ops, op)
	}
	h.open = nil
	h.over = append(h.over, h.now())
	return len(h.over)
}

// mark begins a new measurement of the longest pause and returns the last one's.
func (h *history) mark() time.Duration {
	h.mu.Lock()
	defer h.mu.Unlock()
	pause := max(h.pause, time.Since(h.last))
	h.pause, h.last = 0, time.Now()
	return pause
}

// register is a block: it holds the value of the last write; a write of unknown
// outcome happened or did not.
var register = porcupine.NondeterministicModel{
	Init: func() []any { return []any{uint64(0)} },
	Step: func(state, input, output any) []any {
		r := input.(request)
		switch {
		case r.unknown:
			return []any{state, r.value}
		case r.write:
			return []any{r.value}
		case output.(uint64) == state.(uint64):
			return []any{state}
		}
		return nil
	},
}

// flush: a flush that was sent then has been answered.
func (h *history) flush(call int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.flushed = max(h.flushed, call)
}

func (h *history) byBlock() map[int][]porcupine.Operation {
	blocks := map[int][]porcupine.Operation{}
	for _, op := range h.ops {
		b := op.Input.(request).block
		blocks[b] = append(blocks[b], op)
	}
	return blocks
}

// settle holds every block's history against the model and begins a new one, with
// what the blocks hold. Nothing is under way.
func (h *history) settle(t *testing.T, values []uint64) {
	t.Helper()
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.open) > 0 {
		t.Fatalf("%d writes are still open", len(h.open))
	}
	model := register.ToModel()
	most := 0
	for b, ops := range h.byBlock() {
		most = max(most, len(ops))
		if res := porcupine.CheckOperationsTimeout(model, ops, time.Minute); res != porcupine.Ok {
			t.Errorf("block %d: %s: %s", b, res, tell(ops))
		}
	}
	t.Logf("%d requests, at most %d a block, are linearizable", len(h.ops), most)
	h.restart(values)
}

func (h *history) restart(values []uint64) {
	h.ops, h.flushed = h.ops[:0], 0
	for b, value := range values {
		r := request{block: b, write: true, value: value}
		h.ops = append(h.ops, porcupine.Operation{ClientId: workers, Input: r, Call: h.now(), Output: uint64(0),
			Return: h.now()})
	}
}

// crash is settle where all power was lost before these values were read: what was
// not flushed may be gone.
func (h *history) crash(t *testing.T, values []uint64) {
	t.Helper()
	h.mu.Lock()
	for b, ops := range h.byBlock() {
		if !mayBe(ops, values[b], h.flushed) {
			t.Errorf("after a loss of all power block %d holds %d; the last answered flush was sent at %v:%s",
				b, values[b], time.Duration(h.flushed), tell(ops))
		}
	}
	h.mu.Unlock()
	h.settle(t, values)
}

// mayBe: after a crash a block holds one of the values that were written, but none
// that another one had followed before a flush was sent, or a FUA write.
func mayBe(ops []porcupine.Operation, value uint64, flushed int64) bool {
	for _, op := range ops {
		r := op.Input.(request)
		if !r.write || r.value != value {
			continue
		}
		for _, later := range ops {
			l := later.Input.(request)
			if l.write && !l.unknown && later.Call > op.Return && (l.durable || later.Return < flushed) {
				return false
			}
		}
		return true
	}
	return false
}

// tell is the end of a block's history in words.
func tell(ops []porcupine.Operation) (text string) {
	for _, op := range ops[max(0, len(ops)-40):] {
		r := op.Input.(request)
		what := fmt.Sprintf("read saw %d", op.Output)
		if r.write {
			what = fmt.Sprintf("wrote %d", r.value)
		}
		if r.durable {
			what += " with FUA"
		}
		if r.unknown {
			what += " or not"
		}
		text += fmt.Sprintf("\n  %12v to %12v worker %d %s",
			time.Duration(op.Call), time.Duration(op.Return), op.ClientId, what)
	}
	return text
}

// stamp fills a block with its number and the number of the write; 0: zeroes.
func stamp(p []byte, number int, value uint64) {
	if value == 0 {
		clear(p)
		return
	}
	for i := 0; i < len(p); i += 16 {
		binary.LittleEndian.PutUint64(p[i:], value)
		binary.LittleEndian.PutUint64(p[i+8:], uint64(number)<<16|uint64(i))
	}
}

// stamped is the number of the write that a block comes from whole.
func stamped(p []byte, number int) (value uint64, err error) {
	value = binary.LittleEndian.Uint64(p)
	for i := 0; i < len(p); i += 16 {
		v, where := binary.LittleEndian.Uint64(p[i:]), binary.LittleEndian.Uint64(p[i+8:])
		want := uint64(number)<<16 | uint64(i)
		if value == 0 {
			want = 0
		}
		if v != value || where != want {
			return value, fmt.Errorf("block %d: write %d at its begin, write %d of block %d at %d",
				number, value, v, where>>16, i)
		}
	}
	return value, nil
}
