// SPDX-License-Identifier: Apache-2.0

package gate

import "fmt"

// Left names what requests, sessions or targets have left behind, or is empty.
// For tests, at rest; open says whether a connection is.
func (g *Gate) Left(open func(ConnID) bool) string {
	if n := g.inTurn + g.before; n != 0 {
		return fmt.Sprintf("%d requests counted", n)
	}
	for set, table := range g.sets {
		for i := range table {
			if x := &table[i]; x.admitted != 0 || x.draining != 0 || x.target != nil {
				return fmt.Sprintf("group %d of set %d: %d requests admitted, %d draining, target %v", i, set,
					x.admitted, x.draining, x.target != nil)
			}
		}
	}
	if n := len(g.targets) + len(g.raised) + len(g.rising); n != 0 {
		return fmt.Sprintf("%d targets and volumes to look at", n)
	}
	for i := range g.sessions.entries {
		if s := &g.sessions.entries[i]; s.handle != 0 && !s.fenced && !open(s.conn) {
			return fmt.Sprintf("a session of volume %d without its connection", s.volume)
		}
	}
	return ""
}
