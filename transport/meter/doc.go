// SPDX-License-Identifier: Apache-2.0

// Package meter has the histograms that hot paths count latencies in.
//
// A Histogram belongs to one event loop: Record is a plain increment, without
// allocation, lock or atomic operation (2 ns). Who wants to look at it from
// elsewhere has the loop make a Snapshot (loop.Call, or a post). Snapshots are
// cumulative; what happened between two is their difference (Sub), and several
// add up (Add).
//
// Times are those of the loop's clock, which is read twice a turn: what a turn
// does on the CPU between two readings is not seen.
package meter
