// SPDX-License-Identifier: Apache-2.0

// Package model computes what a Braid cluster of any size can do, from what its
// parts cost: pure arithmetic, fed with measured figures.
//
//	Costs (CPU µs per I/O, measured)  ─┐
//	Cluster (N servers x M disks, net) ─┼─▶ Limits ─▶ the smallest is the throughput
//	Load (size, share of reads)        ─┘            Latency over load, its knee
//
//	Fleet (servers, volumes, clients)  ───▶ Burdens: map, connections, etcd, and
//	                                        where each of them breaks
//
// The idea is that of operational analysis (Denning and Buzen, 1978): each I/O
// visits each resource with a known demand, and no resource can be busy for more
// than all of the time. Requests are taken to spread evenly, which placement and
// striping see to. Units: seconds, bytes, I/Os; CPU demands in microseconds.
package model
