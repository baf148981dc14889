// SPDX-License-Identifier: Apache-2.0

// Package interop holds tests in which programs that are not ours use Braid's NBD
// exports: nbdinfo, nbdcopy, nbdfuse, qemu-img, qemu-io and fio, against a real
// cluster of processes on this machine.
//
//	go test -tags interop ./internal/interop
//
// They stand behind a build tag because they need root (loop devices), the
// binaries in ./bin and the packages that `scripts/deps test` installs.
package interop
