// SPDX-License-Identifier: Apache-2.0

// Command bench measures Braid beside what one would use instead, in one go and
// interleaved: in each round every system runs every load for a few seconds, in
// an order that rotates from round to round, so that a machine whose speed
// drifts drifts for all of them.
//
//	systems (system.go, braid.go, peers.go, ceph.go) loads (load.go)
//	   |  URI for fio's nbd engine, or a device      |  one fio job each (fio.go)
//	   v                                             v
//	run.go: for round { for load { for system (rotated) { one sample } } }
//	   |  fio's JSON + CPU time of each process (cpu.go) + steal, foreign CPU
//	   v
//	report.go: medians and spread; JSON, markdown      plot.go: SVG figures
//	targets.go: what came of the targets               idle.go: cost of doing nothing
//
// With -scale it measures Braid alone, with clusters of several sizes (scale.go).
//
// The figure to trust is CPU time per I/O: it survives a noisy machine. A sample
// in which somebody else used the CPU is taken again, and the report says how
// often that was.
package main
