// SPDX-License-Identifier: Apache-2.0

// Package faults holds tests that do to real processes what failures do: they are
// killed, stopped, cut off, lose what their disks had not flushed, while a volume is
// written and read.
//
//	 mdm1    sds1    sds2    sds3   client1  client2    a network namespace each
//	  │eth0   │eth0   │eth0   │eth0   │eth0   │eth0
//	──┴───────┴───────┴──br0──┴───────┴───────┴──       a link down: cut off both ways; an
//	                                                    address that nobody has for a
//	                                                    neighbour: cut off one way
//
// The oracles, after each fault: the history of each block that several workers use has
// to be linearizable, whatever happened to the processes; blocks of one worker's own are
// equal to a mirror. After a loss of all power each block holds what it may: nothing
// older than an answered flush. At the end the volume is equal to the mirror, both
// copies of each chunk are equal to the byte, sds check finds nothing on any device, and
// no process, loop device, namespace or buffer is left.
//
//	go test -tags faults ./internal/faults
//
// They stand behind a build tag because they need the binaries in ./bin, or where
// $BRAID_BIN says, and network namespaces: as root, or as a user who may make user
// namespaces. Threads of the test hold the namespaces, so that all ends with it, also when
// it is killed. BRAID_SOAK=1 has each fault happen on each server, with each chunk's copies made whole
// under load.
package faults
