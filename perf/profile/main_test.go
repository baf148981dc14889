// SPDX-License-Identifier: Apache-2.0

package main

import (
	"strings"
	"testing"
)

// Goal: a stack belongs where the work is, and shares become µs. Method: five made-up
// samples as perf script prints them, one of somebody else.
func TestTable(t *testing.T) {
	const script = `sds 
	ffffffff81000001 finish_task_switch.isra.0
	ffffffff81000002 schedule
	ffffffff81000003 io_cqring_wait
	          4a1b2c internal/runtime/syscall/linux.Syscall6

sds
	ffffffff81000004 _copy_from_iter
	ffffffff81000005 unix_stream_sendmsg
	ffffffff81000006 io_send

iou-wrk-77
	ffffffff81000007 submit_bio
	ffffffff81000008 blkdev_write_iter
	ffffffff81000009 io_write

sds
	          4a1b2d braid/server/store.(*Core).pin
	          4a1b2e braid/server.(*device).submit

sdc
	          4a1b2f github.com/cespare/xxhash/v2.Sum64.abi0

fio
	          4a1b30 something
`
	p, err := read(strings.NewReader(script))
	if err != nil {
		t.Fatal(err)
	}
	costs, err := parseCosts("sdc=10,sds=20")
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := p.table(&out, "load", costs); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"| load, CPU µs per I/O | sdc | all sds | both |",
		"| checksums | 10.0 | 0.0 | 10.0 |", "| sleeping: switches between threads | 0.0 | 5.0 | 5.0 |",
		"| sockets: sending | 0.0 | 5.0 | 5.0 |", "| disk | 0.0 | 5.0 | 5.0 |",
		"| store: index, log, metadata | 0.0 | 5.0 | 5.0 |", "| **sum** | **10.0** | **20.0** | **30.0** |"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("the table lacks %q:\n%s", want, out.String())
		}
	}
	if err := (profile{}).table(&out, "load", costs); err == nil {
		t.Error("a table of nothing")
	}
	if _, err := parseCosts("sdc=10,mdm=1"); err == nil {
		t.Error("costs of a process without a column")
	}
}
