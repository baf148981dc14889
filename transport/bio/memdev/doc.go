// SPDX-License-Identifier: Apache-2.0

// Package memdev is a sparse block device in memory, for tests, benchmarks and
// `sdc serve --memory`.
//
// It lives on one event loop: Submit and every completion run there, and a
// completion never runs inside Submit. A request takes effect when it is
// submitted, so overlapping requests behave as if executed one after the other;
// only the *completions* are delayed and reordered when Options.Delay is set.
// Fail injects errors.
//
// Memory is taken in 64 KiB pages that are allocated by the first write to them
// and given back by a trim; the allocation state is kept per 4 KiB block.
package memdev
