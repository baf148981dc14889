// SPDX-License-Identifier: Apache-2.0

package nbd

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"testing"

	"braid/transport/bio"
	"braid/transport/bio/memdev"
	"braid/transport/loop"
)

// What is written is read: lengths around every limit of the implementation, at
// odd offsets, on both engines, with simple and with structured replies.
func TestReadWriteSizes(t *testing.T) {
	lengths := []int{1, 511, 4096, 4097, copyLimit - 1, copyLimit, copyLimit + 1, 100_000, rxSize - 1,
		rxSize + requestHeaderSize, 1 << 20, 1<<20 + 1, 3<<20 - 5, MaxPayload}
	for _, engine := range []loop.Engine{loop.Auto, loop.Pool} {
		t.Run(engine.String(), func(t *testing.T) {
			r := newRig(t, rigOptions{engine: engine})
			simple, structured := r.simple(), r.structured()
			for i, n := range lengths {
				off := uint64(i * 12_345)
				want := bytesAt(off+uint64(n), n)
				simple.write(off, want)
				mustEqual(t, fmt.Sprintf("simple read of %d", n), simple.readSimple(off, uint32(n)), want)
				mustEqual(t, "structured read", structured.readStructured(0, off, uint32(n)), want)
				mustEqual(t, "read with DF", structured.readStructured(cmdFlagDF, off, uint32(n)), want)
			}
			r.atRest()
		})
	}
}

// A burst of small requests in one segment is answered in few sends.
func TestBurst(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	var b []byte
	for i := range 64 {
		h := requestHeader{cmd: cmdWrite, cookie: uint64(i), off: uint64(i) * 512, length: 512}
		head := make([]byte, requestHeaderSize)
		h.encode(head)
		b = append(append(b, head...), bytesAt(h.off, 512)...)
	}
	p.send(b)
	for range 64 {
		if _, errno := p.answer(); errno != 0 {
			t.Fatalf("error %d", errno)
		}
	}
	mustEqual(t, "burst", p.readSimple(0, 64*512), bytesAt(0, 64*512))
	r.loop.Call(func() {
		if c := r.port.Counters(); c.Sends > 16 || c.Receives > 16 {
			t.Errorf("%d sends and %d receives for 65 requests", c.Sends, c.Receives)
		}
	})
}

// DF: one chunk, however many pieces the device saw. Without it a large read comes
// in several.
func TestFragments(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.structured()
	const n = 5<<20 + 17
	if c := p.chunks(p.request(cmdRead, cmdFlagDF, 3, n, nil)); len(c) != 1 || len(c[0].payload) != 8+n {
		t.Errorf("%d chunks with DF", len(c))
	}
	if c := p.chunks(p.request(cmdRead, 0, 3, n, nil)); len(c) != 6 {
		t.Errorf("%d chunks without DF, want one per piece", len(c))
	}
	if errno, _ := chunkErrno(p.chunks(p.request(cmdRead, cmdFlagDF, 0, MaxPayload+1, nil))); errno != errnoOverflow {
		t.Errorf("DF beyond the maximum: error %d", errno)
	}
}

// Flags reach the device, and flush, trim, zeroes and cache do what they say.
func TestCommands(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	const n = 256 << 10
	p.mustDo(cmdWrite, cmdFlagFUA, 0, n, bytesAt(0, n))
	p.mustDo(cmdFlush, 0, 0, 0, nil)
	p.mustDo(cmdCache, 0, 0, n, nil)
	p.mustDo(cmdTrim, cmdFlagFUA, 0, 64<<10, nil)
	p.mustDo(cmdWriteZeroes, cmdFlagFUA|cmdFlagNoHole, 64<<10, 64<<10, nil)
	p.mustDo(cmdWriteZeroes, cmdFlagFastZero, 128<<10, 64<<10, nil)
	want := bytesAt(0, n)
	clear(want[:192<<10])
	mustEqual(t, "after trim and zeroes", p.readSimple(0, n), want)
	r.loop.Call(func() {
		s := r.dev.Stats()
		if s.FUA != 3 || s.Flushes != 1 || s.Caches != 1 || s.Trims != 1 || s.Zeroes != 2 {
			t.Errorf("the device saw %+v", s)
		}
		if a := r.dev.Allocated(); a != 128<<10 {
			t.Errorf("%d bytes allocated: NO_HOLE keeps 64 KiB, the last 64 KiB hold data", a)
		}
	})
}

// Trim and zeroes longer than 32 bits of pieces reach the device in few pieces.
func TestLargeTrim(t *testing.T) {
	r := newRig(t, rigOptions{device: memdev.Options{Size: 3 << 30}})
	p := r.simple()
	p.mustDo(cmdTrim, 0, 1<<20, 2<<30, nil)
	p.mustDo(cmdWriteZeroes, 0, 5, 2<<30, nil)
	r.loop.Call(func() {
		if s := r.dev.Stats(); s.Trims != 65 || s.Zeroes != 65 {
			t.Errorf("%d trims and %d zeroes for 2 GiB in pieces of 32 MiB", s.Trims, s.Zeroes)
		}
	})
	r.atRest()
}

// Zero lengths are harmless.
func TestZeroLength(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	for _, cmd := range []uint16{cmdRead, cmdWrite, cmdTrim, cmdWriteZeroes, cmdCache} {
		p.mustDo(cmd, 0, 100, 0, nil)
	}
	p.mustDo(cmdRead, 0, testSize, 0, nil)
	s := r.structured()
	if c := s.chunks(s.request(cmdRead, 0, 0, 0, nil)); len(c) != 1 || c[0].kind != chunkNone {
		t.Errorf("chunks %+v", c)
	}
	if errno, _ := chunkErrno(s.chunks(s.request(cmdBlockStatus, 0, 0, 0, nil))); errno != errnoInval {
		t.Errorf("block status of nothing: error %d", errno)
	}
}

// Requests that make no sense get the protocol's error, a refused write's payload
// is drained, and the connection goes on.
func TestErrors(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	for _, c := range []struct {
		name       string
		cmd, flags uint16
		off        uint64
		length     uint32
		want       uint32
	}{
		{"read across the end", cmdRead, 0, testSize - 10, 11, errnoInval},
		{"read far beyond", cmdRead, 0, 1 << 60, 512, errnoInval},
		{"read that wraps", cmdRead, 0, 1<<64 - 1, 512, errnoInval},
		{"write across the end", cmdWrite, 0, testSize - 10, 11, errnoNoSpace},
		{"write that wraps", cmdWrite, 0, 1<<64 - 100, 200, errnoNoSpace},
		{"zeroes across the end", cmdWriteZeroes, 0, testSize, 1, errnoNoSpace},
		{"trim across the end", cmdTrim, 0, testSize, 1, errnoInval},
		{"cache across the end", cmdCache, 0, testSize, 1, errnoInval},
		{"unknown command", 99, 0, 0, 0, errnoInval},
		{"unknown flag", cmdWrite, 1 << 9, 0, 512, errnoInval},
		{"no-hole on a write", cmdWrite, cmdFlagNoHole, 0, 512, errnoInval},
		{"fast zero on a trim", cmdTrim, cmdFlagFastZero, 0, 512, errnoInval},
		{"DF without structured replies", cmdRead, cmdFlagDF, 0, 512, errnoInval},
		{"flush with a range", cmdFlush, 0, 0, 512, errnoInval},
		{"too long a read", cmdRead, 0, 0, MaxPayload + 1, errnoInval},
		{"too long a write", cmdWrite, 0, 0, MaxPayload + 1, errnoInval},
		{"block status, not negotiated", cmdBlockStatus, 0, 0, 512, errnoInval},
	} {
		var payload []byte
		if c.cmd == cmdWrite {
			payload = make([]byte, c.length)
		}
		if got := p.do(c.cmd, c.flags, c.off, c.length, payload); got != c.want {
			t.Errorf("%s: error %d, want %d", c.name, got, c.want)
		}
	}
	mustEqual(t, "read after all that", p.readSimple(0, 512), make([]byte, 512))
	s := r.structured()
	chunks := s.chunks(s.request(cmdRead, 0, testSize, 1, nil))
	if errno, text := chunkErrno(chunks); errno != errnoInval || text != errBeyondEnd.Error() {
		t.Errorf("structured error %d %q", errno, text)
	}
	if errno := s.do(cmdWrite, 0, testSize, 4, []byte("four")); errno != errnoNoSpace {
		t.Errorf("write beyond the end: error %d", errno)
	}
	r.atRest()
}

// FUA is accepted on every command, as the protocol demands.
func TestFUAEverywhere(t *testing.T) {
	p := newRig(t, rigOptions{}).structured()
	p.readStructured(cmdFlagFUA, 0, 512)
	for _, cmd := range []uint16{cmdFlush, cmdTrim, cmdCache} {
		p.mustDo(cmd, cmdFlagFUA, 0, 0, nil)
	}
}

// A read-only export refuses changes with EPERM, drains their payload, and reads.
func TestReadOnly(t *testing.T) {
	p := newRig(t, rigOptions{readOnly: true}).simple()
	for _, cmd := range []uint16{cmdWrite, cmdTrim, cmdWriteZeroes} {
		var payload []byte
		if cmd == cmdWrite {
			payload = make([]byte, 100_000)
		}
		if errno := p.do(cmd, 0, 0, 100_000, payload); errno != errnoPerm {
			t.Errorf("command %d: error %d", cmd, errno)
		}
	}
	p.mustDo(cmdFlush, 0, 0, 0, nil)
	mustEqual(t, "read", p.readSimple(0, 4096), make([]byte, 4096))
}

// Errors of the device reach the client, also when only one piece of many fails;
// the connection goes on.
func TestDeviceErrors(t *testing.T) {
	r := newRig(t, rigOptions{})
	p, s := r.simple(), r.structured()
	oneOf := func(at uint64) func(*bio.Request) error {
		return func(q *bio.Request) error {
			if q.Op != bio.Flush && q.Off <= at && at < q.Off+q.Len {
				return bio.ErrIO
			}
			return nil
		}
	}
	r.loop.Call(func() { r.dev.SetFail(oneOf(2<<20 + 5)) })
	const n = 4 << 20
	if errno := p.do(cmdRead, 0, 0, n, nil); errno != errnoIO {
		t.Errorf("simple read: error %d", errno)
	}
	if errno := p.do(cmdWrite, 0, 0, n, make([]byte, n)); errno != errnoIO {
		t.Errorf("write: error %d", errno)
	}
	chunks := s.chunks(s.request(cmdRead, 0, 0, n, nil))
	good := 0
	for _, c := range chunks {
		switch c.kind {
		case chunkOffsetData:
			good++
		case chunkErrorOffset:
			if off := binary.BigEndian.Uint64(c.payload[len(c.payload)-8:]); off != 2<<20 {
				t.Errorf("error at %d", off)
			}
		}
	}
	if errno, _ := chunkErrno(chunks); errno != errnoIO || good != 3 {
		t.Errorf("structured read: error %d, %d good chunks", errno, good)
	}
	if errno, _ := chunkErrno(s.chunks(s.request(cmdRead, cmdFlagDF, 0, n, nil))); errno != errnoIO {
		t.Errorf("read with DF: error %d", errno)
	}
	if errno, _ := chunkErrno(s.chunks(s.request(cmdBlockStatus, 0, 0, n, nil))); errno != errnoIO {
		t.Errorf("block status: error %d", errno)
	}
	for err, want := range map[error]uint32{bio.ErrNoSpace: errnoNoSpace, bio.ErrShutdown: errnoShutdown,
		bio.ErrNotSupported: errnoNotSup} {
		r.loop.Call(func() { r.dev.SetFail(failing(bio.WriteZeroes, err)) })
		if errno := p.do(cmdWriteZeroes, 0, 0, 4096, nil); errno != want {
			t.Errorf("%v: error %d, want %d", err, errno, want)
		}
	}
	r.atRest()
}

// Block status: extents merge across pieces; REQ_ONE gives one; long ranges are
// answered for their start.
func TestBlockStatus(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.structured()
	p.write(1<<20-4096, bytesAt(0, 3<<20))
	status := func(flags uint16, off uint64, length uint32) []uint32 {
		t.Helper()
		c := p.chunks(p.request(cmdBlockStatus, flags, off, length, nil))
		if len(c) != 1 || c[0].kind != chunkBlockStatus ||
			binary.BigEndian.Uint32(c[0].payload) != contextAllocationID {
			t.Fatalf("chunks %+v", c)
		}
		var out []uint32
		for b := c[0].payload[4:]; len(b) > 0; b = b[4:] {
			out = append(out, binary.BigEndian.Uint32(b))
		}
		return out
	}
	check := func(what string, got []uint32, want ...uint32) {
		t.Helper()
		if fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: extents %v, want %v", what, got, want)
		}
	}
	const hole = stateHole | stateZero
	check("all", status(0, 0, 8<<20), 1<<20-4096, hole, 3<<20, 0, 4<<20+4096, hole)
	check("one", status(cmdFlagReqOne, 1<<20, 8<<20), 3<<20-4096, 0)
	check("odd", status(0, 1<<20-4097, 3), 1, hole, 2, 0)
	check("long", status(0, 8<<20, testSize-8<<20), 32<<20, hole)
	r.atRest()
}

// Replies may come in any order, each to its own request.
func TestOutOfOrder(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	held := 0
	r.loop.Call(func() { r.dev.SetHold(func(q *bio.Request) bool { held++; return q.Op == bio.Write }) })
	first := p.request(cmdWrite, 0, 0, 4096, bytesAt(0, 4096))
	second := p.request(cmdWrite, 0, 4096, 4096, bytesAt(4096, 4096))
	third := p.request(cmdRead, 0, 1<<20, 8, nil)
	if c, errno := p.answer(); c != third || errno != 0 {
		t.Fatalf("the first reply is to %#x", c)
	}
	p.read(8)
	r.until("both writes are held", func() bool { return held == 3 })
	r.loop.Call(func() { r.dev.SetHold(nil); r.dev.Release() })
	if c, _ := p.answer(); c != second {
		t.Errorf("then %#x, want %#x: the device completes the newest first", c, second)
	}
	if c, _ := p.answer(); c != first {
		t.Errorf("then %#x, want %#x", c, first)
	}
}

// More requests than there are slots wait, and are all answered.
func TestMoreThanSlots(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	r.loop.Call(func() { r.dev.SetHold(func(*bio.Request) bool { return true }) })
	const n = 3 * requestCount
	go func() {
		var b bytes.Buffer
		for i := range n {
			h := requestHeader{cmd: cmdCache, cookie: uint64(i), length: 1}
			head := make([]byte, requestHeaderSize)
			h.encode(head)
			b.Write(head)
		}
		_, _ = p.conn.Write(b.Bytes())
	}()
	r.until("all slots are taken", func() bool { n, _ := r.port.InFlight(); return n == requestCount })
	r.loop.Call(func() { r.dev.SetHold(nil); r.dev.Release() })
	seen := map[uint64]bool{}
	for range n {
		c, errno := p.answer()
		if seen[c] || errno != 0 {
			t.Fatalf("reply %#x, error %d, twice: %v", c, errno, seen[c])
		}
		seen[c] = true
	}
	r.atRest()
}

// DISC: what is outstanding is answered, then the server hangs up.
func TestDisconnectFinishes(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	r.loop.Call(func() { r.dev.SetHold(func(*bio.Request) bool { return true }) })
	want := p.request(cmdRead, 0, 0, 100_000, nil)
	p.request(cmdDisc, 0, 0, 0, nil)
	r.until("the read is at the device", func() bool { return r.dev.InFlight() == 1 })
	r.loop.Call(func() { r.dev.SetHold(nil); r.dev.Release() })
	if c, errno := p.answer(); c != want || errno != 0 {
		t.Fatalf("reply to %#x, error %d", c, errno)
	}
	p.read(100_000)
	p.expectClosed()
	r.atRest()
}

// Drain: what is outstanding is answered, what comes after is refused with
// ESHUTDOWN, and then the server hangs up.
func TestDrain(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	r.loop.Call(func() { r.dev.SetHold(func(*bio.Request) bool { return true }) })
	first := p.request(cmdRead, 0, 0, 512, nil)
	r.until("the read is at the device", func() bool { return r.dev.InFlight() == 1 })
	drained := make(chan struct{})
	r.loop.Call(func() { r.port.Drain(func() { close(drained) }) })
	if errno := p.do(cmdWrite, 0, 0, 512, make([]byte, 512)); errno != errnoShutdown {
		t.Errorf("write while draining: error %d", errno)
	}
	r.loop.Call(func() { r.dev.SetHold(nil); r.dev.Release() })
	if c, errno := p.answer(); c != first || errno != 0 {
		t.Errorf("reply to %#x, error %d", c, errno)
	}
	p.read(512)
	p.expectClosed()
	r.await("the drain", drained)
}

// A resize shows to requests at once and to new clients.
func TestResize(t *testing.T) {
	r := newRig(t, rigOptions{})
	p := r.simple()
	if errno := p.do(cmdWrite, 0, testSize, 4, []byte("four")); errno != errnoNoSpace {
		t.Errorf("before: error %d", errno)
	}
	r.loop.Call(func() { r.dev.Resize(2 * testSize) })
	p.write(testSize, []byte("four"))
	q := r.dial()
	q.greet(3)
	if size, _ := q.enter("disk"); size != 2*testSize {
		t.Errorf("size %d", size)
	}
}
