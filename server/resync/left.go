// SPDX-License-Identifier: Apache-2.0

package resync

import "fmt"

// Left names what targets have left behind, or is empty. For tests, of a device
// that is no target any more.
func (c *Core) Left() string {
	busy, ops := 0, 0
	for _, x := range c.copies {
		if x.run != nil || x.locked || x.left != 0 {
			busy++
		}
	}
	for _, p := range c.peers {
		ops += len(p.ops)
	}
	switch {
	case busy != 0:
		return fmt.Sprintf("%d chunks being copied", busy)
	case len(c.runs) != 0 || c.round != nil || c.join != nil:
		return fmt.Sprintf("%d attempts, a round %v, a join %v", len(c.runs), c.round != nil, c.join != nil)
	case ops != 0 || len(c.effects) != 0:
		return fmt.Sprintf("%d requests to others, %d effects", ops, len(c.effects))
	}
	return ""
}
