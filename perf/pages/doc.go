// SPDX-License-Identifier: Apache-2.0

// Command pages puts the figures of the last benchmark into docs/performance.md,
// and what perf/model makes of them into docs/scaling.md and its plots, so that no
// figure there is typed by hand:
//
//	go run ./perf/pages
//
// In a page a figure stands between the lines <!-- figures: NAME --> and
// <!-- end -->; what is between them is replaced.
package main
