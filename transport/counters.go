// SPDX-License-Identifier: Apache-2.0

package transport

import "sync/atomic"

// Counters adds up what connections do. Several may share one. It is written
// once for each system call, not for each frame, and may be read from any
// goroutine.
type Counters struct {
	framesIn, framesOut atomic.Uint64
	bytesIn, bytesOut   atomic.Uint64
	copied              atomic.Uint64
	recvs, sends        atomic.Uint64
	pauses              atomic.Uint64
	opened              atomic.Uint64
	closed              [reasonCount]atomic.Uint64
}

// Stats is a reading of Counters.
type Stats struct {
	FramesIn, FramesOut uint64
	BytesIn, BytesOut   uint64
	Copied              uint64 // bytes of payload copied between buffers, in both directions
	Recvs, Sends        uint64 // socket operations completed
	Pauses              uint64 // times Handler.Incoming had no buffer
	Opened              uint64 // connections started
	Closed              [Reasons]uint64
}

// Read returns the counts. They are exact once the connections are at rest.
func (c *Counters) Read() Stats {
	s := Stats{
		FramesIn: c.framesIn.Load(), FramesOut: c.framesOut.Load(),
		BytesIn: c.bytesIn.Load(), BytesOut: c.bytesOut.Load(), Copied: c.copied.Load(),
		Recvs: c.recvs.Load(), Sends: c.sends.Load(),
		Pauses: c.pauses.Load(), Opened: c.opened.Load(),
	}
	for i := range c.closed {
		s.Closed[i] = c.closed[i].Load()
	}
	return s
}

func (c *Counters) received(frames, bytes uint64) {
	c.recvs.Add(1)
	c.framesIn.Add(frames)
	c.bytesIn.Add(bytes)
}

func (c *Counters) sent(frames, bytes uint64) {
	c.sends.Add(1)
	c.framesOut.Add(frames)
	c.bytesOut.Add(bytes)
}
