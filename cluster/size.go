// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Version is what every binary prints.
const Version = "0.1.0"

const sizeUnits = "KMGTPE"

// ParseSize reads a size as people type it: 4096, 64K, 10G, 1.5T, also with B,
// iB or a space (10 GiB). Units are binary: 1K is 1024 bytes.
func ParseSize(text string) (uint64, error) {
	s := strings.ToUpper(strings.TrimSpace(text))
	s = strings.TrimSuffix(s, "B")
	number := strings.TrimSuffix(s, "I")
	binary := number != s
	shift := 0
	if n := len(number); n > 0 {
		if i := strings.IndexByte(sizeUnits, number[n-1]); i >= 0 {
			shift = 10 * (i + 1)
			number = number[:n-1]
		}
	}
	number = strings.TrimSpace(number)
	if number == "" || binary && shift == 0 || strings.Trim(number, "0123456789.") != "" {
		return 0, badSize(text, "it is not a number with an optional unit")
	}
	if n, err := strconv.ParseUint(number, 10, 64); err == nil {
		if n > math.MaxUint64>>shift {
			return 0, badSize(text, "it is larger than 16 EiB")
		}
		return n << shift, nil
	}
	f, err := strconv.ParseFloat(number, 64)
	if err != nil {
		return 0, badSize(text, "it is not a number with an optional unit")
	}
	bytes := f * float64(uint64(1)<<shift)
	if bytes >= 1<<63 {
		return 0, badSize(text, "it is larger than 8 EiB")
	}
	if bytes != math.Trunc(bytes) {
		return 0, badSize(text, "it is not a whole number of bytes")
	}
	return uint64(bytes), nil
}

func badSize(text, why string) error {
	return fmt.Errorf("size %q: %s; write it like 4096, 64K, 10G or 1.5T (binary units)", text, why)
}

// FormatSize writes a size for people: exact where a unit divides it (10G,
// 64K), with one decimal otherwise (1.5G).
func FormatSize(bytes uint64) string {
	unit, value := -1, bytes
	for unit+1 < len(sizeUnits) && value >= 1024 && value%1024 == 0 {
		value >>= 10
		unit++
	}
	if value < 1024*10 && unit >= 0 || value < 1024 {
		return strconv.FormatUint(value, 10) + unitName(unit)
	}
	unit = -1
	f := float64(bytes)
	for unit+1 < len(sizeUnits) && f >= 1024 {
		f /= 1024
		unit++
	}
	return strconv.FormatFloat(f, 'f', 1, 64) + unitName(unit)
}

func unitName(unit int) string {
	if unit < 0 {
		return ""
	}
	return sizeUnits[unit : unit+1]
}
