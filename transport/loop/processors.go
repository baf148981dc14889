// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"runtime"
	"sync"
)

// processors guards the number of the scheduler's processors. Each ring of the
// process has one of its own: in short waits a ring keeps its processor, and without one
// more than there are cores, all loops and goroutines of a machine with one core
// stood still for each such wait.
var processors sync.Mutex

// ownProcessor adds a processor to the scheduler's. The kernel shares the cores
// among them. (Setting the number ends the runtime's own following of CPU limits
// that change while the process runs.)
func ownProcessor() { changeProcessors(1) }

// returnProcessor takes one away again.
func returnProcessor() { changeProcessors(-1) }

func changeProcessors(by int) {
	processors.Lock()
	defer processors.Unlock()
	runtime.GOMAXPROCS(max(runtime.GOMAXPROCS(0)+by, 1))
}
