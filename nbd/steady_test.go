// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"io"
	"runtime"
	"testing"
)

// Goal: reads and writes of 4 KiB allocate nothing in the steady state. Method:
// the process' allocation count over many requests; the client side of the test
// reuses its buffers. The loop may grow a table once, hence the small allowance.
func TestSteadyStateAllocatesNothing(t *testing.T) {
	r := newRig(t, rigOptions{})
	for name, connect := range map[string]func() *peer{"simple": r.simple, "structured": r.structured} {
		t.Run(name, func(t *testing.T) {
			p := connect()
			p.t = t
			const depth, block = 16, 4096
			head := simpleReplySize
			if name == "structured" {
				head = structuredHeaderSize + 8
			}
			writes := make([]byte, 0, depth*(requestHeaderSize+block))
			reads := make([]byte, 0, depth*requestHeaderSize)
			for i := range depth {
				h := requestHeader{cmd: cmdWrite, cookie: uint64(i), off: uint64(i) * block, length: block}
				b := make([]byte, requestHeaderSize)
				h.encode(b)
				writes = append(append(writes, b...), bytesAt(h.off, block)...)
				h.cmd = cmdRead
				h.encode(b)
				reads = append(reads, b...)
			}
			back := make([]byte, depth*(head+block))
			round := func() {
				exchange(t, p, writes, back[:depth*simpleReplySize])
				exchange(t, p, reads, back)
			}
			for range 50 {
				round()
			}
			const rounds = 500
			before := mallocs()
			for range rounds {
				round()
			}
			if n := mallocs() - before; n > rounds/10 {
				t.Errorf("%d allocations in %d requests", n, rounds*2*depth)
			}
		})
	}
}

func exchange(t testing.TB, p *peer, out, in []byte) {
	if _, err := p.conn.Write(out); err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(p.conn, in); err != nil {
		t.Fatal(err)
	}
}

func mallocs() uint64 {
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.Mallocs
}

// BenchmarkBurst is the cost of 4 KiB reads and writes in bursts of 32 over a unix
// socket, both ends and the memory device included; bytes per request are 4096.
func BenchmarkBurst(b *testing.B) {
	const depth, block = 32, 4096
	for name, cmd := range map[string]uint16{"read": cmdRead, "write": cmdWrite} {
		b.Run(name, func(b *testing.B) {
			r := newRig(b, rigOptions{})
			p := r.simple()
			var out []byte
			in := make([]byte, depth*simpleReplySize)
			for i := range depth {
				h := requestHeader{cmd: cmd, cookie: uint64(i), off: uint64(i) * block, length: block}
				head := make([]byte, requestHeaderSize)
				h.encode(head)
				out = append(out, head...)
				if cmd == cmdWrite {
					out = append(out, bytesAt(h.off, block)...)
				}
			}
			if cmd == cmdRead {
				in = make([]byte, depth*(simpleReplySize+block))
			}
			b.SetBytes(block)
			b.ReportAllocs()
			b.ResetTimer()
			for n := 0; n < b.N; n += depth {
				exchange(b, p, out, in)
			}
		})
	}
}
