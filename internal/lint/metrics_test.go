// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"testing"
)

// exporters are the files that make metrics, with how the names stand there and
// what is put before them.
var exporters = []struct{ path, prefix, pattern string }{
	{"server/metrics.go", "braid_sds_", `send\([^"\n]*"([a-z0-9_]+)", "[A-Z0-9]`},
	{"server/metrics.go", "braid_sds_", `\{"([a-z0-9_]+)", "[A-Z0-9]`},
	{"server/metrics.go", "", `NewDesc\("(braid_sds_[a-z0-9_]*[a-z0-9])"`},
	{"cmd/sdc/daemon/metrics.go", "braid_sdc_", `send\([cg], "([a-z0-9_]+)"`},
	{"cmd/sdc/daemon/metrics.go", "", `NewDesc\("(braid_sdc_[a-z0-9_]*[a-z0-9])"`},
	{"mdm/metrics.go", "braid_", `add\("([a-z0-9_]+)"`},
	{"mdm/metrics.go", "", `Name: "(braid_[a-z0-9_]+)"`},
}

// Goal: each metric is in the table of docs/operations.md, and nothing else is.
// Method: the names in the sources against the names in the table.
func TestMetricsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile(filepath.Join(root, "docs", "operations.md"))
	if err != nil {
		t.Fatal(err)
	}
	told := []string{}
	for _, m := range regexp.MustCompile("(?m)^\\| `(braid_[a-z0-9_]+)`").FindAllSubmatch(doc, -1) {
		told = append(told, string(m[1]))
	}
	made := []string{}
	for _, e := range exporters {
		source, err := os.ReadFile(filepath.Join(root, e.path))
		if err != nil {
			t.Fatal(err)
		}
		found := regexp.MustCompile(e.pattern).FindAllSubmatch(source, -1)
		if len(found) == 0 {
			t.Errorf("%s: nothing fits %s", e.path, e.pattern)
		}
		for _, m := range found {
			made = append(made, e.prefix+string(m[1]))
		}
	}
	for _, name := range made {
		if !slices.Contains(told, name) {
			t.Errorf("%s is not in the table of docs/operations.md", name)
		}
	}
	for _, name := range told {
		if !slices.Contains(made, name) {
			t.Errorf("docs/operations.md names %s, which nobody exports", name)
		}
	}
	if len(made) < 50 {
		t.Errorf("only %d metrics were found: do the patterns still fit?", len(made))
	}
}
