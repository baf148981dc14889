// SPDX-License-Identifier: Apache-2.0

// Package state is what the metadata manager knows and how it decides, without
// the etcd, network and clock around it: a pure state machine.
//
//	etcd watch --Apply--> State --Delta--> maps of servers and clients
//	                        |
//	request, now --Plan-----+--> Tx{puts, deletes, events} --CAS--> etcd
//
// The caller's obligations, in order:
//
//  1. Load everything below Prefix, then Apply every change in the order of
//     etcd's revisions, all changes of one revision in one call.
//  2. Only the leader plans and commits, one transaction at a time: a Tx is
//     valid for the State that it was planned on. Its steps are committed in
//     order, each under the condition that the keys in Step.Expect still have
//     the revisions named there and that the leader still leads.
//  3. After what changes devices or sessions, Settle and then Announce: copies
//     that are away or broken leave, targets are named. An attach plans Before on
//     the state on which it plans Attach.
//  4. A transaction whose outcome is unknown is not repeated: Apply shows what
//     became of it.
//
// A placement group, as one of its copies goes and comes back:
//
//	in sync --away, broken, reported--> out --up, Announce--> target
//	   ^                                  ^                     |   |
//	   |                                  +---away, restarted---+   |
//	   +--JoinInSync---- copied <----------ResyncReady (barrier)----+
//
// What clients and servers reported of their progress is not in the records: a
// new leader starts without it and waits until it hears of them.
//
// A State has one owner. What Delta returns may be kept and read by anyone.
package state
