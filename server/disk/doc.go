// SPDX-License-Identifier: Apache-2.0

// Package disk opens what a store lies on: a raw block device, or a
// preallocated file for trials. It refuses what holds something else.
package disk
