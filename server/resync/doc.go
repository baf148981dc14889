// SPDX-License-Identifier: Apache-2.0

// Package resync brings the copies of a returning or new device into sync: the
// target's side of rules 9 to 13, 23, 25, 27 and 28.
//
//	map names the target --> mdm: every session has adopted it (rule 23)
//	        |                           |
//	  live writes are              compare: tags and activity logs of the source, of
//	  skipped and marked           every other in-sync copy, and our own (rule 10)
//	        |                           |
//	        +------> dirty chunks <-----+
//	                     |
//	   each: lock at its client -> checksums of both disks -> copy what differs
//	         -> tag of the source -> clean -> unlock (rule 12)
//	                     |
//	   none left: flush -> mdm: join -> in sync
//
// Core is pure: method calls in, effects out, owned by the device's loop or by
// the simulator. The caller's obligations:
//
//   - It calls Learn after each Learn of the gate, Tick every 10 ms or so while
//     Busy, and Effects after each batch of calls, until it is empty.
//   - A local operation is submitted to the store under the generation that
//     the request names, and LocalDone called with its reply; never inside Effects' loop.
//   - A peer operation is sent once; PeerDone is called with the reply, or
//     PeerDown when there is no connection, or it has ended, and nothing touches
//     Op.Dst any more.
//   - Locks end by Unlock, by LockAnswer with another status than OK, or by
//     ConnClosed.
//
// Memory: each of Config.Copies chunks under way has one buffer of a chunk. The
// chunks of a comparison are held until it is over: Config.Round groups' worth.
package resync
