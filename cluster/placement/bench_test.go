// SPDX-License-Identifier: Apache-2.0

package placement

import (
	"fmt"
	"testing"
)

func BenchmarkCompute(b *testing.B) {
	for _, n := range []int{3, 24, 100, 256, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			devices := equal(n, 1)
			for b.Loop() {
				if _, err := Compute(devices, 2, int(Groups(n, 2)), nil); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
