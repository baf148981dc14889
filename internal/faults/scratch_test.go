// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/cespare/xxhash/v2"
)

// scratch reads, writes, trims or zeroes several blocks of a worker's own. No other
// request touches them meanwhile, so the mirror says what a read has to return.
func (l *load) scratch(w int, r *rand.Rand) {
	first := r.IntN(scratchBlocks)
	count := 1 + r.IntN(min(scratchMost, scratchBlocks-first))
	at := (w+workers*r.IntN(blocks/workers))*stride + scratchFrom + first*block
	before := l.mirror[at : at+count*block]
	after := make([]byte, len(before))
	cmd, payload := uint32(cmdWrite), after
	switch r.IntN(5) {
	case 0:
		l.look(nil, at, before, before)
		return
	case 1:
		cmd, payload = cmdTrim, nil
	case 2:
		cmd, payload = cmdZero, nil
	default:
		for i := 0; i < len(after); i += 8 {
			binary.LittleEndian.PutUint64(after[i:], r.Uint64())
		}
	}
	durable := r.IntN(4) == 0
	if durable {
		cmd |= flagFUA
	}
	l.remember(at, before, after)
	s := l.current(nil)
	a := s.do(cmd, uint64(at), len(before), payload)
	switch {
	case a.err == nil:
		copy(before, after)
		if durable {
			l.forget(at, after)
		}
	case errors.Is(a.err, errBroken):
		l.look(s, at, before, after) // the next client says which it is
	default:
		l.t.Errorf("command %d of %d bytes at %d: %v", cmd, len(before), at, a.err)
	}
}

// look reads from another client than that one and compares: each block is as it was
// before or after a request. The mirror, of which before is a part, learns which.
func (l *load) look(not *client, at int, before, after []byte) {
	s := l.current(not)
	a := s.do(cmdRead, uint64(at), len(before), nil)
	for ; errors.Is(a.err, errBroken); a = s.do(cmdRead, uint64(at), len(before), nil) {
		s = l.current(s)
	}
	if a.err != nil {
		l.t.Errorf("read of %d bytes at %d: %v", len(before), at, a.err)
		return
	}
	for i := 0; i < len(before); i += block {
		is, was, may := a.data[i:i+block], before[i:i+block], after[i:i+block]
		if !bytes.Equal(is, was) && !bytes.Equal(is, may) {
			l.t.Errorf("the block at %d is neither what it was nor what was written: %x…, not %x… or %x…",
				at+i, is[:16], was[:16], may[:16])
		}
		copy(was, is)
	}
}

// remember keeps what blocks have held and may hold soon.
func (l *load) remember(at int, before, after []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 0; i < len(before); i += block {
		if l.recent[at+i] == nil {
			l.recent[at+i] = []uint64{xxhash.Sum64(before[i : i+block])}
		}
		l.recent[at+i] = append(l.recent[at+i], xxhash.Sum64(after[i:i+block]))
	}
}

// forget drops what blocks have held before: what they hold now is durable.
func (l *load) forget(at int, now []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := 0; i < len(now); i += block {
		l.recent[at+i] = []uint64{xxhash.Sum64(now[i : i+block])}
	}
}

// survey reads the volume after a loss of all power: each block holds something that
// it has held since the last flush at rest, or a FUA request to it, those with a history what their history
// allows. The mirror learns what it is. All workers wait.
func (l *load) survey(s *client) {
	l.t.Helper()
	values := make([]uint64, blocks)
	for b := range values {
		at := b * stride
		a := s.do(cmdRead, uint64(at), stride, nil)
		if a.err != nil {
			l.t.Fatalf("read at %d: %v", at, a.err)
		}
		var err error
		if values[b], err = stamped(a.data[:block], b); err != nil {
			l.t.Error(err)
		}
		for i := block; i < stride; i += block {
			is, was := a.data[i:i+block], l.mirror[at+i:][:block]
			if !bytes.Equal(is, was) && !slices.Contains(l.recent[at+i], xxhash.Sum64(is)) {
				l.t.Errorf("the block at %d holds what was never there since the last flush", at+i)
			}
			copy(was, is)
		}
		copy(l.mirror[at:], a.data[:block])
	}
	l.h.crash(l.t, values)
}

// compare reads the whole volume and compares it with the mirror.
func (l *load) compare() {
	l.t.Helper()
	const piece = 1 << 20
	limit := time.AfterFunc(patience, func() {
		l.t.Errorf("a read is without an answer after %v\n%s", patience, l.c.waits(l.client))
		l.client.conn.end()
	})
	defer limit.Stop()
	for at := 0; at < len(l.mirror); at += piece {
		a := l.client.do(cmdRead, uint64(at), piece, nil)
		if a.err != nil {
			l.t.Errorf("read at %d: %v", at, a.err)
			continue
		}
		for i := 0; i < piece; i += block {
			if !bytes.Equal(a.data[i:i+block], l.mirror[at+i:][:block]) {
				l.t.Errorf("the block at %d differs from the mirror", at+i)
			}
		}
	}
}
