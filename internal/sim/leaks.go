// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"fmt"

	"braid/cluster"
)

// left names what a world at rest has kept that it should not have: an operation,
// a lock, a mark, a resync, a buffer or a timer. What stands is the links, leases
// and sessions of clients that live.
func (w *World) left() string {
	for _, n := range w.nodes {
		if n.state != nodeUp {
			continue
		}
		if x := n.left(); x != "" {
			return n.name + ": " + x
		}
	}
	for _, c := range w.clients {
		if c.dead || c.core == nil {
			continue
		}
		if x := c.left(); x != "" {
			return fmt.Sprintf("%s: %s", c, x)
		}
	}
	if !w.cfg.Resync {
		return ""
	}
	for _, table := range w.mdm.m.PGs {
		for _, pg := range table {
			if pg.Target != 0 {
				return fmt.Sprintf("mdm: group %d has the target %d", pg.ID.Index(), pg.Target)
			}
		}
	}
	return ""
}

func (n *Node) left() string {
	if n := len(n.ios); n > 0 {
		return fmt.Sprintf("%d operations of the disk", n)
	}
	if n := len(n.flight); n > 0 {
		return fmt.Sprintf("%d changes in the store", n)
	}
	if x := n.core.Left(n.isStale); x != "" {
		return "store: " + x
	}
	if n.w.cfg.Resync {
		if x := n.rs.Left(); x != "" {
			return "resync: " + x
		}
		for _, l := range n.links {
			if len(l.ops) > 0 {
				return fmt.Sprintf("%d requests to device %d", len(l.ops), l.id)
			}
		}
	}
	if x := n.gate.Left(n.isOpen); x != "" && (n.w.cfg.Resync || len(n.gate.Targets()) == 0) {
		return "gate: " + x
	}
	return ""
}

// isStale reports whether a node has no in-sync copy of a chunk: nothing takes that
// out of its log then. Nor is there anybody to do it where a client was lost and the
// volume is not attached again.
func (n *Node) isStale(id cluster.VolumeID, chunk uint64) bool {
	m := n.w.mdm.m
	for _, v := range n.w.volumes {
		if v.id == id && v.over {
			return true
		}
	}
	pg := m.VolumePG(m.Volumes[id], chunk)
	return pg == nil || !pg.Has(n.dev)
}

func (c *Client) left() string {
	if x := c.core.Left(); x != "" {
		return "client: " + x
	}
	if n := len(c.ghosts); n > 0 {
		return fmt.Sprintf("%d reads of a zombie", n)
	}
	if d := c.core.Deadline(); d != 0 && d < c.clock()-s1 {
		return fmt.Sprintf("a timer that is %d ms late", (c.clock()-d)/ms)
	}
	for _, p := range c.peers {
		if len(p.queue) > 0 {
			return fmt.Sprintf("%d frames for device %d that nobody takes", len(p.queue), p.dev)
		}
		if c.ended && p.conn != nil {
			return fmt.Sprintf("a connection to device %d although it serves no longer", p.dev)
		}
	}
	return ""
}

// plant is a mistake of the world around the cores that a test has it make, once,
// to see that what it leaves is found.
type plant uint8

const (
	plantFrame  plant = iota + 1 // the transport never lets go of a frame
	plantTicket                  // a server does not tell the gate that a request has ended
	plantCopy                    // a target writes what it copied a second time, later
)

func (w *World) planted(p plant) bool {
	if w.cfg.plant != p || w.sown || w.cfg.plant == 0 {
		return false
	}
	w.sown = true
	return true
}
