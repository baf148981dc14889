// SPDX-License-Identifier: Apache-2.0

// Command sds is the data server: it gives the disks of a machine to a cluster.
//
//	sds format PATH     prepare a block device, or make a file of a given size
//	sds serve ...       serve formatted devices, in the foreground
//	sds inspect PATH    say what is on a device
//	sds check PATH      verify every structure and checksum of a device
//
// The exit code is 0 when it was done, 1 when it failed, 2 when the command line
// was wrong. Everything but flags, signals and printing is in package server.
package main
