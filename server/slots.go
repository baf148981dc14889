// SPDX-License-Identifier: Apache-2.0

package server

import (
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
	"braid/transport/buf"
)

// slotState says who has a slot.
type slotState uint8

const (
	slotFree      slotState = iota
	slotReceiving           // the transport fills its payload
	slotStored              // the store has it
	slotSending             // the transport sends its reply
	slotPaced               // its reply is held back, as space is scarce
)

func (s slotState) String() string {
	return [...]string{"free", "receiving", "stored", "sending", "paced"}[s]
}

// slot is one request from its header's arrival until its reply is sent.
type slot struct {
	req     store.Request
	msg     transport.Msg
	head    transport.Header // of the request
	conn    *conn
	buf     *buf.Buf // nil: no payload, or one that fits control
	payload []byte   // the view of buf or control that the request uses
	views   [1][]byte
	sums    [8 * transport.MaxSums]byte
	control [maxControlSize]byte
	open    transport.OpenRequest // of open and fence requests
	state   slotState
	ticket  gate.Ticket
	done    bool  // answered without the store
	arrived int64 // loop time of its header
	since   int64 // loop time of the last change of state
	next    *slot
}

// slotTable holds every slot of a device.
type slotTable struct {
	slots []slot
	free  *slot
	busy  int
}

func newSlotTable(n int) *slotTable {
	t := &slotTable{slots: make([]slot, n)}
	for i := range t.slots {
		s := &t.slots[i]
		s.req.Ctx = s
		s.next, t.free = t.free, s
	}
	return t
}

// get returns a free slot, or nil.
func (t *slotTable) get() *slot {
	s := t.free
	if s == nil {
		return nil
	}
	t.free, s.next = s.next, nil
	t.busy++
	return s
}

// put takes back a slot that holds no buffer any more.
func (t *slotTable) put(s *slot) {
	if s.state == slotFree || s.buf != nil || s.ticket.Counted() {
		panic("server: a " + s.state.String() + " slot was given back with what it holds")
	}
	s.state, s.conn, s.payload, s.views[0], s.ticket.Skip = slotFree, nil, nil, nil, false
	s.next, t.free = t.free, s
	t.busy--
}
