// SPDX-License-Identifier: Apache-2.0

// Package rules names the replication rules of docs/replication.md, so that the
// pure cores can be run with one of them switched off. A test that does so must
// see the checks of the simulator fail: a simulator that finds nothing is
// untested. In production the set is empty, and a core asks for it only off its
// hot path where that is possible.
//
// The package is pure and keeps nothing.
package rules
