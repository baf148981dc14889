// SPDX-License-Identifier: Apache-2.0

// Package screen is what the top commands share: a view that is drawn anew each
// second on a terminal, and plain text in a pipe; tables, latencies and small
// histograms as text.
package screen
