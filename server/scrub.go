// SPDX-License-Identifier: Apache-2.0

package server

import (
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/server/gate"
	"braid/server/store"
	"braid/transport"
	"braid/transport/loop"
)

// Terms of a scrub.
const (
	scrubRate = 64 << 20 // bytes per second, where the order names none
	// While clients are served a scrub takes a part of its rate only.
	scrubShare = 4
	scrubPause = 5 * time.Millisecond // between steps, at least
)

// scrubber reads everything that a device holds, bit by bit, and has what does not
// match its checksums mended from another copy.
type scrubber struct {
	d      *device
	timer  loop.Timer
	buf    []byte
	table  transport.SumTable
	cursor uint64
	report client.ScrubReport
	before uint64 // mended before this run
	failed uint64 // and unmended
	going  bool   // a step is with the store
}

// Names of a scrub's states.
const (
	scrubRunning = "running"
	scrubDone    = "done"
	scrubStopped = "stopped"
)

func newScrubber(d *device) *scrubber {
	s := &scrubber{d: d}
	s.timer.Fire = func(*loop.Timer) { s.step() }
	return s
}

// order begins or ends a run.
func (s *scrubber) order(o client.ScrubOrder) {
	d := s.d
	switch {
	case o.Run == s.report.Run && o.Stop && s.report.State == scrubRunning:
		s.end(scrubStopped)
	case o.Run <= s.report.Run || o.Stop || d.state != deviceServing:
	default:
		st := d.core.Stats()
		s.cursor, s.before, s.failed = 0, st.Mended, d.mend.unmended
		s.report = client.ScrubReport{Run: o.Run, State: scrubRunning, Started: time.Now(), Rate: o.Rate,
			BytesTotal: (st.Chunks - st.ChunksFree) * cluster.ChunkSize, Volume: o.Volume}
		if o.Volume != 0 {
			s.report.BytesTotal = 0 // nobody has counted
		}
		d.log.Info("scrub begins", "run", o.Run)
		d.refreshReport()
		d.tell()
		s.step()
	}
}

// step has the store read the next piece.
func (s *scrubber) step() {
	d := s.d
	if s.going || s.report.State != scrubRunning || d.state != deviceServing {
		return
	}
	if s.buf == nil {
		s.buf = alignedBytes(cluster.ChunkSize)
	}
	s.going = true
	var o *ownRequest
	o = d.own(store.Request{Op: store.OpScrub, Value: s.cursor, Only: s.report.Volume, Data: s.buf,
		Table: &s.table},
		func(status transport.Status) { s.stepped(&o.req, status) })
}

func (s *scrubber) stepped(r *store.Request, status transport.Status) {
	s.going = false
	if s.report.State != scrubRunning {
		return
	}
	s.found(r, status)
	s.report.BytesDone += uint64(r.Length)
	s.cursor = r.Value
	if s.report.Volume != 0 && s.cursor > 0 { // as if the rest were like what has been looked at
		whole := s.d.core.Stats().Chunks
		s.report.BytesTotal = s.report.BytesDone / min(s.cursor, whole) * whole
	}
	switch {
	case s.d.state != deviceServing:
		s.end(scrubStopped)
	case s.cursor == 0:
		s.end(scrubDone)
	default:
		rate := int64(s.report.Rate)
		if rate == 0 {
			rate = scrubRate
		}
		if s.d.frontLoad() > 0 {
			rate /= scrubShare
		}
		pause := time.Duration(int64(r.Length) * int64(time.Second) / max(rate, 1))
		s.d.loop.Arm(&s.timer, max(pause, scrubPause))
	}
}

// found has mended what a step has found.
func (s *scrubber) found(r *store.Request, status transport.Status) {
	if r.Hole && status == transport.StatusOK {
		return
	}
	first, last, count := -1, 0, uint64(0)
	for b := range cluster.BlocksPerChunk {
		if s.table.Rot.Has(b) || status == transport.StatusIO && s.table.Present.Has(b) {
			if first < 0 {
				first = b
			}
			last, count = b, count+1
		}
	}
	switch {
	case status == transport.StatusRot: // not even the checksums are left
		s.report.Rotten++
		s.d.mend.unmended++
	case first >= 0:
		s.report.Rotten += count
		s.d.mend.add(mendJob{key: gate.Key{Volume: r.Volume, Layer: r.Layer, Chunk: r.Chunk},
			off: uint32(first) * cluster.BlockSize, length: uint32(last+1-first) * cluster.BlockSize})
	}
}

// end ends the run. What it found may still be being mended: that is counted in
// later reports.
func (s *scrubber) end(state string) {
	s.report.State, s.report.Ended = state, time.Now()
	s.d.loop.Disarm(&s.timer)
	s.d.log.Info("scrub ends", "run", s.report.Run, "state", state, "bytes", s.report.BytesDone,
		"rotten", s.report.Rotten)
	s.d.refreshReport()
	s.d.tell()
}

// progress is what the manager is told; nil: there was no run.
func (s *scrubber) progress() *client.ScrubReport {
	if s.report.Run == 0 {
		return nil
	}
	st := s.d.core.Stats()
	r := s.report
	r.Mended, r.Unmended = min(st.Mended-s.before, r.Rotten), min(s.d.mend.unmended-s.failed, r.Rotten)
	return &r
}
