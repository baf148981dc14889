// SPDX-License-Identifier: Apache-2.0

// Package stripe is the volume client: it turns the requests of a front end
// into frames for every replica, and keeps the replication rules.
//
//	bio.Request --> Volume (shell: connections, session, timers)
//	                  |  method calls                ^ effects
//	                  v                              |
//	                core.Core (pure): layout, rangelock, fan-out, acks, flush, retries
//
// Everything of a volume lives on one loop: its front end's sockets, its
// connections to devices, its requests. Goroutines exist for the slow things
// only, a fixed number per volume: one watches the map, one renews the session,
// one talks to the metadata manager about lost replicas, and one for each
// connection that is being dialled.
//
// A server that is away is never an I/O error: requests wait until it is back or
// until the map says that it no longer counts. What waits, and for whom, is told
// by Volume.Waiting.
package stripe
