// SPDX-License-Identifier: Apache-2.0

package core

import (
	"testing"

	"braid/cluster"
	"braid/transport"
	"braid/transport/bio"
)

// stub answers every frame at once and allocates nothing.
type stub struct {
	c    *Core
	now  int64
	data []byte
	sums []byte
	done int
}

func newStub(tb testing.TB) *stub {
	s := newSim(simConfig{unit: 65536, width: 8, size: 64 << 20, devices: 3, replicas: 2, groups: 8})
	if s.fail != nil {
		tb.Fatal(s.fail)
	}
	st := &stub{c: s.core, data: make([]byte, 1<<20), sums: make([]byte, 2048)}
	transport.BlockSums(st.sums, st.data)
	for _, d := range s.devs {
		st.c.LinkUp(1, d.id, 1, 1)
	}
	st.run()
	return st
}

func (s *stub) run() {
	for {
		effects := s.c.Effects()
		if len(effects) == 0 {
			return
		}
		for i := range effects {
			switch e := &effects[i]; e.Kind {
			case Complete:
				s.done++
			case Send:
				h := s.c.Frame(e.Frame).Header
				s.c.Sent(s.now, e.Frame)
				s.reply(e.Link, h)
			}
		}
	}
}

func (s *stub) reply(l int32, h transport.Header) {
	h.Flags |= transport.FlagReply
	h.Interval, h.Offset, h.Payload, h.Sums = 1, 0, 0, 0
	if h.Op == transport.OpRead {
		h.Payload, h.Sums = h.Length, uint16(h.Length/cluster.BlockSize)
	}
	if h.Op == transport.OpALList {
		h.Payload = transport.ListHeadSize // zeroes: an empty list
	}
	dst, _, err := s.c.Incoming(l, &h)
	if err != nil {
		panic(err)
	}
	for _, v := range dst {
		copy(v, s.data)
	}
	s.c.Reply(s.now, l, &h, s.sums[:int(h.Sums)*8], nil)
}

func (s *stub) do(r *bio.Request) {
	s.now += 1000
	before := s.done
	s.c.Submit(s.now, r)
	s.run()
	if s.done != before+1 || r.Err != nil {
		panic("the request has not ended well")
	}
}

// Goal: reads and writes, aligned or not, and flushes allocate nothing. Method:
// AllocsPerRun around the whole core.
func TestNoAllocations(t *testing.T) {
	for name, r := range map[string]*bio.Request{
		"read 4K":         {Op: bio.Read, Off: 8192, Len: 4096},
		"write 4K":        {Op: bio.Write, Off: 8192, Len: 4096},
		"read 1M":         {Op: bio.Read, Off: 1 << 20, Len: 1 << 20},
		"write 1M":        {Op: bio.Write, Off: 1 << 20, Len: 1 << 20},
		"unaligned write": {Op: bio.Write, Off: 1000, Len: 100_000},
		"unaligned read":  {Op: bio.Read, Off: 1000, Len: 100_000},
		"trim":            {Op: bio.Trim, Off: 1 << 20, Len: 1 << 20},
	} {
		s := newStub(t)
		if r.Op == bio.Read || r.Op == bio.Write {
			r.Data = make([]byte, r.Len)
		}
		flush := &bio.Request{Op: bio.Flush}
		round := func() {
			s.do(r)
			s.do(flush)
		}
		round()
		if n := testing.AllocsPerRun(200, round); n != 0 {
			t.Errorf("%s: %v allocations", name, n)
		}
	}
}

func benchmark(b *testing.B, op bio.Op, length uint64) {
	s := newStub(b)
	r := &bio.Request{Op: op, Len: length, Data: make([]byte, length)}
	b.ReportAllocs()
	b.SetBytes(int64(length))
	b.ResetTimer()
	for i := range b.N {
		r.Off = uint64(i) % 64 * length
		s.do(r)
	}
}

func BenchmarkRead4K(b *testing.B)  { benchmark(b, bio.Read, 4096) }
func BenchmarkWrite4K(b *testing.B) { benchmark(b, bio.Write, 4096) }
func BenchmarkRead1M(b *testing.B)  { benchmark(b, bio.Read, 1<<20) }
