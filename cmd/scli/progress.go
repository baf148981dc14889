// SPDX-License-Identifier: Apache-2.0

package main

import (
	"time"

	"braid/cluster"
	"braid/mdm/pb"
)

// progress takes over how exposed data is and how far devices have come.
func (s *status) progress(m *pb.StatusResponse, now time.Time) {
	for _, e := range m.Exposures {
		x := exposure{Copies: e.Copies, Wanted: e.Wanted, Groups: e.Groups, Seconds: -1}
		if e.SinceMs > 0 {
			x.Seconds = max(int64(now.Sub(time.UnixMilli(e.SinceMs))/time.Second), 0)
		}
		s.Exposure = append(s.Exposure, x)
	}
	for _, r := range m.Resyncs {
		p := r.GetReport()
		c := catchUp{Device: r.Device, Name: r.Name, Groups: p.GetGroups(), Compared: p.GetCompared(),
			Left: p.GetChunksLeft() * cluster.ChunkSize, Copied: p.GetBytesCopied(), Rate: p.GetSettledPerSecond(),
			CopiedRate: p.GetCopiedPerSecond(), Pace: p.GetBytesPerSecond(), Seconds: -1, Stuck: p.GetStuck()}
		// While groups are not compared nobody knows what is left of them.
		if c.Rate > 0 && c.Stuck == "" && c.Compared == c.Groups {
			c.Seconds = int64((c.Left + c.Rate - 1) / c.Rate)
		}
		s.CatchUp = append(s.CatchUp, c)
	}
}
