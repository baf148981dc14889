// SPDX-License-Identifier: Apache-2.0

// Package faults holds tests that do to real processes what failures do: they are
// killed, stopped, cut off, lose what their disks had not flushed, while a volume is
// written and read. The oracle is the history of all requests: each block has to be
// linearizable, whatever happened to the processes.
//
//	go test -tags faults ./internal/faults
//
// They stand behind a build tag because they need the binaries in ./bin, or where
// $BRAID_BIN says. BRAID_SOAK=1 makes the rounds many.
package faults
