// SPDX-License-Identifier: Apache-2.0

// Package bio is the block I/O request that a front end (the NBD server) hands
// to a block device (a striped volume, a memory device, a single store).
//
//	front end                          device
//	fills a Request, holds its Buf
//	Submit ------------------------->  owns the Request; Dev is its scratch
//	RequestDone <--------------------  Err, Extents and a Read's Data are set
//	releases Buf, reuses the Request
//
// Everything in it is owned by one event loop: Submit and RequestDone run on it.
// A Request is reused by its owner; the device keeps no reference after
// RequestDone. It has no goroutines and no code that could block.
package bio
