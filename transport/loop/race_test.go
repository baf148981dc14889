// SPDX-License-Identifier: Apache-2.0

//go:build race

package loop

// raceDetector: its pointer checks move to the heap whatever is handed to a
// system call, so allocations cannot be counted under it.
const raceDetector = true
