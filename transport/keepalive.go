// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"time"

	"braid/transport/loop"
)

// keepAlive finds a peer whose connection is open and who says nothing. Time is
// counted in ticks rather than read from a clock, so that a pause of this
// process (a stopped VM) is one tick and not a hung peer.
//
// A ping is sent in a tick in which nothing was heard, to be answered, and also
// in one in which nothing was said: a peer whose own ping waits behind megabytes
// of writes on a slow link must still hear that this side, which receives them
// and has nothing to reply yet, lives.
type keepAlive struct {
	timer loop.Timer
	every time.Duration
	limit int  // silent ticks until the peer counts as hung
	heard bool // in this tick
	spoke bool
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
	ka.heard, ka.spoke = true, true
	ka.ping.Header = Header{Op: OpPing}
	ka.pong.Header = Header{Op: OpPing, Flags: FlagReply}
	ka.timer.Fire = c.tick
	c.loop.Arm(&ka.timer, every)
}

func (c *Conn) tick(*loop.Timer) {
	ka := &c.ka
	c.loop.Arm(&ka.timer, ka.every)
	heard, spoke := ka.heard, ka.spoke
	ka.heard, ka.spoke = false, false
	if heard {
		ka.quiet = 0
	} else if !c.in.paused {
		// While paused nothing can be heard, and the peer is not judged. The pings
		// still go out.
		ka.quiet++
	}
	if ka.quiet >= ka.limit {
		c.fail("receive from", ErrHung)
		return
	}
	if (!heard || !spoke) && !ka.ping.queued {
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
