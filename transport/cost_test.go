// SPDX-License-Identifier: Apache-2.0

package transport

import (
	"testing"

	"braid/transport/loop"
)

// Goal: what a request costs in system calls, socket operations and copied bytes
// does not grow unseen. Method: both ends of a connection on one loop, 32 requests
// in flight, so that the batches do not depend on the machine; the counters are
// compared with what the design promises.
func TestCosts(t *testing.T) {
	forEngines(t, func(t *testing.T, l *loop.Loop) {
		for _, c := range []struct {
			size, requests int
			ops            float64 // sends and receives of both ends for each request
			copies         float64 // copied bytes for each byte of payload sent
		}{
			// One call carries a batch: 4 operations would be a request without company.
			{4096, 4096, 0.6, 2},                // into the batch, and out of it
			{SmallPayload - 4096, 2048, 0.9, 2}, // the buffers hold about 12
			{65536, 512, 5, 0.05},               // what came along with the header
			{MaxPayload, 64, 20, 0.02},
		} {
			fds := sockets(t, 1<<20)
			e, d := newEcho(32, c.size, 0), newDriver(32, c.size)
			var counters Counters
			attach(t, l, fds[0], e, Config{Counters: &counters})
			attach(t, l, fds[1], d, Config{Counters: &counters})
			was, enters := counters.Read(), l.Stats().Enters
			l.Call(func() { d.run(c.requests) })
			d.wait(t)
			l.Call(func() {}) // the last turn's counts are published
			s := counters.Read()
			n := float64(c.requests)
			ops := float64(s.Sends+s.Recvs-was.Sends-was.Recvs) / n
			copies := float64(s.Copied-was.Copied) / (2 * n * float64(c.size))
			t.Logf("payload %d: %.2f socket operations, %.2f turns of the loop, %.3f copies", c.size, ops,
				float64(l.Stats().Enters-enters)/n, copies)
			if ops > c.ops {
				t.Errorf("payload %d: %.2f socket operations for each request, want %.2f", c.size, ops, c.ops)
			}
			if copies > c.copies {
				t.Errorf("payload %d: %.3f copies of each byte, want %.3f", c.size, copies, c.copies)
			}
			if e := float64(l.Stats().Enters-enters) / n; e > c.ops {
				t.Errorf("payload %d: the loop entered the kernel %.2f times for each request", c.size, e)
			}
		}
	})
}
