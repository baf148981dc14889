// SPDX-License-Identifier: Apache-2.0

package store

import (
	"fmt"

	"braid/transport"
)

type stopStage uint8

const (
	stopNone   stopStage = iota
	stopDrain            // requests and background work under way end
	stopCommit           // the rest becomes durable
	stopSuper            // the superblock says clean
	stopDone
)

// stopState ends a core: drain, commit everything, then both superblocks in
// turn with the clean flag, which lets the next start keep the incarnation and
// trust the last group of the log.
type stopState struct {
	stage stopStage
	req   *Request
	step  int // writes and flushes of the superblocks done
	buf   []byte
	io    IO
}

func (c *Core) pumpStop() bool {
	s := &c.stop
	switch s.stage {
	case stopDrain:
		c.idle = false
		if c.active > 1 || c.verify.stage != verifyIdle || c.fold.stage != foldIdle ||
			c.commit.stage != commitIdle || len(c.discards.free) < maxDiscards || c.rewrite.isBusy {
			return false
		}
		c.retire(cap(c.al.removed))
		for key := range c.torn {
			if e := c.al.find(&key); e != 0 {
				c.al.mark(e, c.al.ent[e].marks|MarkSuspect|MarkVerify) // found again by the next start
			}
		}
		for i := range c.al.ent {
			if e := &c.al.ent[i]; e.state == alDurable && e.marks != e.logMarks {
				c.al.queueAdd(uint32(i)) // marks outlive a clean stop
			}
		}
		s.stage = stopCommit
		return true
	case stopCommit:
		if c.commit.stage != commitIdle || c.fold.stage != foldIdle || c.dirty.head != 0 ||
			len(c.al.pending) > 0 || len(c.al.removed) > 0 || len(c.discards.free) < maxDiscards {
			return false
		}
		s.stage = stopSuper
		c.sb.flags |= superClean
		c.sb.errors += c.ioErrs
		c.sb.certain = c.log.next
		c.ioErrs = 0
		c.sb.seq++
		s.buf = alignedBytes(pageSize)
		c.sb.encode(s.buf)
		c.superIO()
	}
	return false
}

// superIO does step s.step of: write A, flush, write B, flush.
func (c *Core) superIO() {
	s := &c.stop
	s.io.owner, s.io.Meta = ownStop, true
	if s.step%2 == 1 {
		s.io.Kind, s.io.Data, s.io.Len = IOFlush, nil, 0
		c.stats.DeviceFlushes++
	} else {
		s.io.Kind, s.io.Data, s.io.Len = IOWrite, s.buf, pageSize
		s.io.Off = [2]int64{superA, superB}[s.step/2]
	}
	c.startIO(&s.io)
}

func (c *Core) stopIODone(err error) {
	s := &c.stop
	if c.failed != nil {
		return
	}
	if err != nil {
		c.fail(fmt.Errorf("write of the superblock failed: %w", err))
		return
	}
	s.step++
	if s.step < 4 {
		c.superIO()
		return
	}
	s.stage = stopDone
	r := s.req
	s.req = nil
	c.reply(r, transport.StatusOK)
}
