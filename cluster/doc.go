// SPDX-License-Identifier: Apache-2.0

// Package cluster is the vocabulary that all parts share: identities, sizes,
// volumes, devices, placement groups and the map that ties them together.
//
//	volume, offset --stripe--> chunk index --Volume.PG--> PGID --Map.PG--> devices
//
// The package is pure: no network, file, clock, random source, goroutine or
// log. A Map that was handed out is never changed; Apply makes a new one that
// shares what stayed the same, so a Map may be read from any goroutine without
// a lock and kept for as long as wanted.
//
// The arithmetic from chunk to placement group (Volume.PG) decides where bytes
// lie. It is part of the on-disk format and never changes for a volume that
// exists.
package cluster
