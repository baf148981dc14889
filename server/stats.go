// SPDX-License-Identifier: Apache-2.0

package server

import (
	"sync/atomic"

	"braid/server/store"
)

// statusCount bounds the table of refusals; transport has fewer statuses.
const statusCount = 16

// deviceStats are counters of a device, written by its loop and read by anyone.
type deviceStats struct {
	frames, diskOps, diskErrors, pauses atomic.Uint64
	refusals                            [statusCount]atomic.Uint64 // replies by status, but StatusOK
	resynced                            atomic.Uint64              // bytes copied by resync
	repeated                            atomic.Uint64              // chunks whose copy began anew
	paced                               atomic.Uint64              // writes that took a new chunk and were slowed
	skipped                             atomic.Uint64              // bytes of clients that were left to the copy
	conns                               atomic.Int64
	pressure                            atomic.Int64
	store                               atomic.Pointer[store.Stats]
}

// publish copies what only the loop may read.
func (s *deviceStats) publish(st *store.Stats, pressure int) {
	s.store.Store(st)
	s.pressure.Store(int64(pressure))
}
