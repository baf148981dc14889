// SPDX-License-Identifier: Apache-2.0

// Package pb is the metadata manager's API as protocol buffers (generated from
// mdm.proto by scripts/generate) and the conversions between its messages and
// the cluster's own types. Numbers that come from the wire are checked where
// they are used: Map.Apply refuses tables and indexes that make no sense.
package pb
