// SPDX-License-Identifier: Apache-2.0

// Package biotest is the conformance suite for a block device that is driven by
// bio requests. It runs on every stack: memory, one store, a whole cluster.
//
//	func TestConformance(t *testing.T) {
//		biotest.Run(t, func(t *testing.T) biotest.Harness { ... })
//	}
//
// The factory is called once per subtest and must return a fresh device that
// reads as zeroes. Rest, if set, is called at the end of each subtest, when no
// request is outstanding, and reports what should not be left.
//
// What the suite holds a device to:
//   - Off and Len of any alignment (Harness.Align says otherwise), up to MaxLen;
//   - requests that overlap a write behave as if executed in the order of Submit;
//   - a read that is submitted while a write of its range is in flight sees it;
//   - trimmed and zeroed ranges read as zeroes, whatever their alignment;
//   - BlockStatus covers at least the first byte, never more than the range, and
//     calls nothing a hole that holds data other than zeroes;
//   - completions never run inside Submit, each request completes exactly once;
//   - after Crash (where the harness can) all that a flush or FUA covered is there.
//
// Random tests print their seed; BIOTEST_SEED=n replays one.
package biotest
