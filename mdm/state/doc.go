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
//  3. A transaction whose outcome is unknown is not repeated: Apply shows what
//     became of it.
//
// A State has one owner. What Delta returns may be kept and read by anyone.
package state
