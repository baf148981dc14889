// SPDX-License-Identifier: Apache-2.0

// Package mdm is the metadata manager: membership, placement groups, volumes,
// sessions, and the API through which everybody learns of them. It is never on
// the I/O path.
//
//	 sds, sdc, scli, curl
//	        | Connect over h2c, or JSON over HTTP/1.1
//	api: one handler per call ------- reads -----------> store (state.State)
//	        | changes, at the leader only                   ^ watch
//	leader: leases in memory, plans, one commit at a time   |
//	        +---- CAS on revisions and on leadership ----> etcd (embedded or external)
//
// Every member follows etcd and serves reads and map streams from its own
// state. One, elected through etcd, also makes changes; the others answer
// Unavailable and name it in the metadata key "braid-leader". Nothing that is
// counted or measured goes to etcd: usage and leases live in the leader's
// memory, and a new leader starts them with a full term.
//
// The leader also cares for copies (Config.AutoEvict): after each change it
// settles the groups and announces targets, and it judges clients' reports of
// devices by looking for itself. A device that flaps is announced ever later.
//
// Goroutines of a Member: one that follows etcd, one that campaigns and leads
// (with a tick that looks for leases that ran out), those of net/http, and one
// per map or event stream. Close ends them all and then etcd.
package mdm
