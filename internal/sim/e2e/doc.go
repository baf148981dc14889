// SPDX-License-Identifier: Apache-2.0

// Package e2e runs whole clusters in one process, for tests: a metadata manager
// on its embedded etcd, data servers on disks in memory that lose what was not
// flushed when their power goes, volumes on an event loop. All of it is the real
// code, over TCP on the loopback; only the disks are not.
package e2e
