// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"runtime"
	"sync"
)

// processors guards the number of the scheduler's processors. Each loop of the
// process has one of its own. In short waits a ring keeps its processor: with no
// more than there are cores, all loops and goroutines of a machine with one core
// stood still for each such wait. And a loop that comes back from the kernel does
// not queue behind the collector and the other goroutines.
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
