// SPDX-License-Identifier: Apache-2.0

// Package lint holds the project's own rules as tests: which package may import
// which, what a pure package must not touch, how long files, functions and lines
// may get, and a licence line in every file. It has no code besides the tests.
//
//	cmd -> stripe, nbd, server, mdm -> transport, mdm/client -> cluster
//
// The arrows of the architecture are in imports_test.go, one line a package.
package lint
