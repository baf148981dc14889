// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"time"

	"braid/transport/loop"
)

// keepAlive finds a peer whose connection is open and who says nothing. Time is
// counted in ticks rather than read from a clock, so that a pause of this
// process (a stopped VM) is one tick and not a hung peer.
type keepAlive struct {
	timer loop.Timer
	every time.Duration
	limit int // silent ticks until the peer counts as hung
	heard bool
	quiet int // ticks since anything was heard
	ping  Msg
	pong  Msg
}

func (ka *keepAlive) init(c *Conn, every, silence time.Duration) {
	if every <= 0 {
		every = DefaultKeepAlive
	}
	if silence <= 0 {
		silence = DefaultSilence
	}
	ka.every = every
	// The tick that clears heard does not count: so the silence has lasted for limit
	// to limit+1 ticks when the limit is reached.
	ka.limit = int((silence + every - 1) / every)
	ka.heard = true
	ka.ping.Header = Header{Op: OpPing}
	ka.pong.Header = Header{Op: OpPing, Flags: FlagReply}
	ka.timer.Fire = c.tick
	c.loop.Arm(&ka.timer, every)
}

func (c *Conn) tick(*loop.Timer) {
	ka := &c.ka
	c.loop.Arm(&ka.timer, ka.every)
	if ka.heard {
		ka.heard = false
		ka.quiet = 0
		return
	}
	// While paused nothing can be heard and the peer is not judged. The pings still
	// go out: they tell it that this side lives.
	if !c.in.paused {
		ka.quiet++
	}
	if ka.quiet >= ka.limit {
		c.fail("receive from", ErrHung)
		return
	}
	if !ka.ping.queued {
		ka.ping.Header.ID++
		c.Send(&ka.ping)
	}
}

// pinged answers a ping. One answer in the queue is enough for several pings.
func (c *Conn) pinged() {
	if c.in.hdr.Flags&FlagReply != 0 || c.ka.pong.queued {
		return
	}
	c.ka.pong.Header.ID = c.in.hdr.ID
	c.Send(&c.ka.pong)
}
