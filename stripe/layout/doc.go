// SPDX-License-Identifier: Apache-2.0

// Package layout is the RAID-0 arithmetic between a volume's bytes and its
// chunks. It is pure, allocates nothing, and is part of the on-disk format.
//
// A row is W chunks. Its bytes are dealt out to the chunks in stripe units of U
// bytes, left to right and then down (W = 4, one box is a unit):
//
//	          column 0   column 1   column 2   column 3
//	         +----------+----------+----------+----------+
//	row 0    |    0     |    1     |    2     |    3     |   chunk offset 0
//	         |    4     |    5     |    6     |    7     |   chunk offset U
//	         |   ...    |   ...    |   ...    |   ...    |
//	         +----------+----------+----------+----------+
//	chunk    row*W + 0    row*W + 1    ...
//
// A contiguous range of the volume touches a contiguous range of each chunk,
// whose units lie W*U apart in the range. So one frame per chunk carries all of
// its units, gathered from the request's buffer by Views:
//
//	request   |..0..|..1..|..2..|..3..|..4..|..5..|      Off, Length
//	piece 0    #####                   #####             chunk 0: units 0 and 4
//	piece 1          #####                   #####       chunk 1: units 1 and 5
package layout
