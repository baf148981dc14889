// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: all three metadata managers are lost with their disks, and come back from a
// backup that is older than a volume and its bytes: I/O goes on without them and while
// the restore is held, nothing that the servers knew is lost, and afterwards one of the
// three may die. Method: exports that are written before, between and after.
func TestRestoreOfThree(t *testing.T) {
	c := up(t, "--mdm", "3", "--size", "256M", "--backing", "file", "--ram")
	c.volume(t, "old", "64M", "--replicas", "2")
	first := c.serve(t, "old")
	write := func(e *export, at, with int) {
		t.Helper()
		c.do(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("write -q -P %d %dM 4M", with, at), "-c", "flush", e.uri)
	}
	reads := func(e *export, at, with int) {
		t.Helper()
		c.do(t, "qemu-io", "-f", "raw", "-c", fmt.Sprintf("read -q -P %d %dM 4M", with, at), e.uri)
	}
	write(first, 0, 1)
	backup := filepath.Join(c.dir, "braid.meta")
	c.do(t, "scli", "backup", backup)
	c.volume(t, "young", "64M", "--replicas", "2")
	second := c.serve(t, "young")
	write(second, 0, 2)

	for _, who := range []string{"mdm1", "mdm2", "mdm3"} {
		c.script(t, "kill", who)
		if err := os.RemoveAll(filepath.Join(c.dir, who)); err != nil {
			t.Fatal(err)
		}
		command := filepath.Join(c.dir, who+".command")
		if err := os.WriteFile(command, []byte(read(t, command)+"--restore\n"+backup+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write(first, 8, 3)
	write(second, 8, 4)
	c.script(t, "up")
	waitFor(t, "all servers have told which map they have", func() bool {
		r := decode[struct {
			Held    bool
			Missing []string
		}](t, c.do(t, "scli", "restore", "status", "-o", "json"))
		return r.Held && len(r.Missing) == 0
	})
	write(first, 16, 5)
	c.refused(t, 1, []string{"scli restore confirm"},
		"scli", "--timeout", "1s", "volume", "create", "x", "--size", "1M")
	c.do(t, "scli", "restore", "confirm")
	waitFor(t, "all is well", func() bool {
		return decode[struct{ Health string }](t, c.do(t, "scli", "status", "-o", "json")).Health == "ok"
	})
	list := c.do(t, "scli", "volume", "list", "-o", "json")
	if !strings.Contains(list, `"old"`) || !strings.Contains(list, `"young"`) {
		t.Errorf("after the restore there are other volumes: %s", list)
	}
	c.script(t, "kill", "mdm2")
	c.volume(t, "late", "16M", "--replicas", "2", "--timeout", "60s") // an election later
	write(second, 16, 6)
	reads(first, 0, 1)
	reads(first, 8, 3)
	reads(first, 16, 5)
	reads(second, 0, 2)
	reads(second, 8, 4)
	reads(second, 16, 6)
}
