// SPDX-License-Identifier: Apache-2.0

// Package placement computes which devices hold which placement group. It is a
// pure function of the devices and the table that was there before; equal
// arguments give equal tables.
//
// What a table fulfils, the most important first:
//
//  1. The copies of a group lie in different fault sets. Where there are fewer
//     fault sets than replicas: on different servers; where there are fewer
//     servers too: on different devices (with a warning each).
//  2. Each device holds copies in proportion to its size, exact to one copy,
//     except that no fault set can hold more than one copy of each group.
//  3. Compared with the table before, little moves: a copy leaves its device
//     only when the device has too many or is gone.
//  4. Every run of eight neighbouring groups, which is a volume's default row,
//     is spread evenly over the devices, and each device shares its groups with
//     as many others as possible, so that many disks help to rebuild one.
//
// The method: quotas by largest remainder; keep what may stay; fill the holes
// greedily; then exchange pairs of newly placed copies as long as that lowers a
// cost in which the fourth point is a sum of squares.
package placement
