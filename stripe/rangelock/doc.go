// SPDX-License-Identifier: Apache-2.0

// Package rangelock orders overlapping requests of one volume (rule 7 of the
// replication rules): an overlapping write waits until the earlier one is
// complete everywhere, and so do reads of a range that is being written. Without
// it two replicas may apply two writes in different orders, which is a
// permanent, silent difference.
//
// The order is first come, first served, without exception: a request waits for
// every earlier request that conflicts with it, granted or not. So nothing
// starves, and a granted request never waits for a later one, which makes
// deadlock impossible.
//
// A Table belongs to one goroutine and allocates nothing after New. The caller
// brings the slots (its own request numbers) and gets them back from Unlock when
// they are granted.
package rangelock
