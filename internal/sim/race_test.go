// SPDX-License-Identifier: Apache-2.0

//go:build race

package sim

// A world is one goroutine: the race detector finds nothing in it and makes it
// ten times as slow. The campaigns proper run without it, as a suite of their own.
const slow = 20
