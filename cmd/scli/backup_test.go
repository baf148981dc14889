// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: a backup's file appears whole, and a cluster that was not restored says so.
func TestBackup(t *testing.T) {
	b := newBench(t, 1)
	path := filepath.Join(t.TempDir(), "meta")
	if code, out, warn := b.scli("backup " + path); code != 0 || !strings.Contains(out, path) {
		t.Fatalf("%d: %s%s", code, out, warn)
	}
	text, err := os.ReadFile(path)
	if err != nil || !strings.Contains(string(text), `"sha256":`) || !strings.HasSuffix(string(text), "\n") {
		t.Errorf("%v: %s", err, text)
	}
	if left, _ := filepath.Glob(path + ".*"); len(left) > 0 {
		t.Errorf("%v are left over", left)
	}
	if code, out, _ := b.scli("restore status"); code != 0 || !strings.Contains(out, "no restore waits") {
		t.Errorf("%d: %s", code, out)
	}
	if code, _, warn := b.scli("restore confirm"); code != 1 || !strings.Contains(warn, "none is waiting") {
		t.Errorf("%d: %s", code, warn)
	}
}
