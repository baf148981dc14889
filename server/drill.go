// SPDX-License-Identifier: Apache-2.0

package server

import (
	"errors"
	"math/rand/v2"
	"os"
	"sync/atomic"
	"syscall"
	"time"

	"braid/cluster"
	"braid/mdm/client"
)

// Kinds of drills that servers take part in; mdm/state/drill.go has them, too.
const (
	drillSlow      = "slow-disk"
	drillRot       = "bitrot"
	drillPartition = "partition"
	drillKill      = "kill-sds"
)

// rotBlocks is how many blocks rot in a drill.
const rotBlocks = 8

var errDrill = errors.New("server: cut off by a drill")

// cutOff is what a server remembers of drills.
type cutOff struct {
	last  uint64       // id of the newest order; the registrar's
	until atomic.Int64 // Unix ns; before that nobody gets through
}

// active reports whether the server takes part in a partition.
func (c *cutOff) active() bool {
	until := c.until.Load()
	return until != 0 && time.Now().UnixNano() < until
}

// drill takes part in what is ordered, once, and returns for how long the metadata
// manager is to hear nothing. Everything ends by itself.
func (s *Server) drill(o *client.DrillOrder) (silent time.Duration) {
	if o == nil || o.ID <= s.cut.last {
		return 0
	}
	s.cut.last = o.ID
	if !s.cfg.Drills {
		s.log.Warn("a drill was ordered, which this server does not allow (--allow-drills)", "kind", o.Kind)
		return 0
	}
	s.log.Warn("drill", "kind", o.Kind, "for", o.For)
	switch o.Kind {
	case drillKill:
		if s.cfg.Die != nil {
			s.cfg.Die()
			return 0
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
	case drillPartition:
		s.cut.until.Store(time.Now().Add(o.For).UnixNano())
		s.eachLive(func(d *device) {
			for c := range d.conns {
				c.tc.Close(errDrill)
			}
		})
		return o.For
	case drillSlow:
		s.eachLive(func(d *device) { d.limit.slow(o.Delay, o.For) })
	case drillRot:
		s.eachLive(func(d *device) { d.rot(o.Volume) })
	}
	return 0
}

// eachLive runs f on the loop of each device that is served.
func (s *Server) eachLive(f func(d *device)) {
	for _, d := range s.devices {
		if d.live.Load() {
			d.loop.Post(func() { f(d) })
		}
	}
}

// rot spoils some blocks of a volume on the disk, beneath the checksums.
func (d *device) rot(v cluster.VolumeID) {
	offs := d.core.Blocks(v, rotBlocks)
	if d.state != deviceServing || len(offs) == 0 {
		return
	}
	// On the loop, which waits for it: no chunk is freed, and given to another volume,
	// meanwhile.
	b := alignedBytes(cluster.BlockSize)
	for _, off := range offs {
		for i := range b {
			b[i] = byte(rand.Uint32())
		}
		if _, err := d.backing.WriteAt(b, off); err != nil {
			d.log.Error("drill: a block could not be spoiled", "error", err)
			return
		}
	}
	d.log.Warn("drill: blocks are spoiled", "blocks", len(offs), "volume", v)
}
