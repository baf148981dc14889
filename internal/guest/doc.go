// SPDX-License-Identifier: Apache-2.0

// Package guest holds the acceptance tests that need a kernel with nbd. Each test
// boots a guest kernel (scripts/guest) and runs one story of scripts/guest-tests
// in it: a whole cluster and a data client inside the guest, used through the
// kernel's own block device.
//
//	go test -tags guest ./internal/guest                 one story:  -run TestExt4
//	scripts/guest --kernel uml -- scripts/guest-tests/ext4.sh
//
// They stand behind a build tag because they need root, the binaries in ./bin and
// the packages that `scripts/deps guest` installs. User-mode Linux is the quick
// kernel (one CPU); the emulated one has several CPUs and the newest driver.
package guest
