// SPDX-License-Identifier: Apache-2.0

package loop

import (
	"encoding/hex"
	"testing"
	"unsafe"
)

// The structures that the kernel reads lie byte by byte as their tables say.
func TestRingLayout(t *testing.T) {
	s := sqe{
		op: 0x01, flags: 0x02, ioprio: 0x0403, fd: 0x08070605, off: 0x100f0e0d0c0b0a09,
		addr: 0x1817161514131211, len: 0x1c1b1a19, opFlags: 0x201f1e1d,
		userData: 0x2827262524232221, bufIndex: 0x2a29, persona: 0x2c2b, file: 0x302f2e2d,
	}
	got := hex.EncodeToString((*[sqeSize]byte)(unsafe.Pointer(&s))[:])
	want := ""
	for i := range 48 {
		want += hex.EncodeToString([]byte{byte(i + 1)})
	}
	for range 16 {
		want += "00"
	}
	if got != want {
		t.Errorf("a submission is\n%s, want\n%s", got, want)
	}
	c := *(*cqe)(unsafe.Pointer(&[2]uint64{0x0807060504030201, 0x100f0e0d0c0b0a09}))
	if c.userData != 0x0807060504030201 || c.res != 0x0c0b0a09 || c.flags != 0x100f0e0d {
		t.Errorf("a completion reads as %+v", c)
	}
	var p ringParams
	var a getEventsArg
	for _, f := range []struct {
		name       string
		is, should uintptr
	}{
		{"size of sqe", unsafe.Sizeof(s), 64},
		{"size of cqe", unsafe.Sizeof(c), 16},
		{"size of params", unsafe.Sizeof(p), 120},
		{"params.features", unsafe.Offsetof(p.features), 20},
		{"params.sq", unsafe.Offsetof(p.sq), 40},
		{"params.sq.array", unsafe.Offsetof(p.sq) + unsafe.Offsetof(p.sq.array), 64},
		{"params.cq", unsafe.Offsetof(p.cq), 80},
		{"params.cq.cqes", unsafe.Offsetof(p.cq) + unsafe.Offsetof(p.cq.cqes), 100},
		{"size of events argument", unsafe.Sizeof(a), 24},
		{"time limit", unsafe.Offsetof(a.ts), 16},
	} {
		if f.is != f.should {
			t.Errorf("%s: %d, want %d", f.name, f.is, f.should)
		}
	}
}

// A late identity finds nothing once its slot has been used again.
func TestSlotReuse(t *testing.T) {
	table := newSlotTable(1)
	first, second := &Op{}, &Op{}
	table.put(first)
	id := table.id(first)
	if table.lookup(id) != first {
		t.Fatal("an active op is not found")
	}
	table.drop(first)
	table.put(second)
	if first.slot != second.slot || table.lookup(id) != nil {
		t.Fatal("an old identity finds the next op in the slot")
	}
	for _, bad := range []uint64{0, wakeID, cancelID, 1 << 20} {
		if table.lookup(bad) != nil {
			t.Errorf("identity %#x finds an op", bad)
		}
	}
	for range 100 { // grows
		table.put(&Op{})
	}
	if table.lookup(table.id(second)) != second {
		t.Fatal("an op was lost when the table grew")
	}
}
