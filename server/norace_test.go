// SPDX-License-Identifier: Apache-2.0

//go:build !race

package server

// raceDetector: it allocates on its own account.
const raceDetector = false
