// SPDX-License-Identifier: Apache-2.0

// Command profile says what the CPU time of an I/O goes into: it sorts the stacks
// that `perf script` prints on its standard input into groups by what the machine
// was doing, and prints a markdown table of µs per I/O for sdc and all sds.
//
//	perf script -F comm,ip,sym -i FILE | profile -name 4k-randread-qd32 -us sdc=12.3,sds=24.5
//
// The shares come from the stacks, the sums from the clocks of the processes, which
// -us gives: a sampling clock that stands still while a core does is no measure of
// time. scripts/profile does all of it, from the cluster to the table.
package main
