// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Goal: figures replace what stood between their marks and nothing else. Method: a
// page with a known, an unknown and an unclosed mark.
func TestReplaceFigures(t *testing.T) {
	page := "a\n<!-- figures: x -->\nold\n<!-- end -->\nb\n<!-- figures: y -->\nkept\n<!-- end -->\nc\n" +
		"<!-- figures: x -->\nopen\n"
	want := strings.Replace(page, "old", "new", 1)
	if got := replaceFigures(page, map[string]string{"x": "new\n"}); got != want {
		t.Errorf("got:\n%s\nexpected:\n%s", got, want)
	}
}

// Goal: pages come from results. Method: a made-up run; its figures, and those of
// the model that it feeds, stand in the pages, and doing it twice changes nothing.
func TestPages(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	page := ""
	for _, name := range []string{"run", "targets", "core", "profile", "costs", "throughput", "one-client", "burdens"} {
		page += "<!-- figures: " + name + " -->\n<!-- end -->\n"
	}
	write("performance.md", page)
	write("scaling.md", page)
	var samples []string
	for _, load := range []string{"4k-randread-qd1", "4k-randread-qd32", "4k-randwrite-qd1", "4k-randwrite-qd32",
		"1m-read-qd8", "1m-write-qd8"} {
		samples = append(samples, `{"system":"braid-r2","load":"`+load+`","iops":4321,"mib_per_s":17,"mean_us":230,`+
			`"cpu_us_per_io":{"sdc":11,"sds":13,"system":24}}`,
			`{"system":"raw","load":"`+load+`","iops":9999,"mean_us":30,"cpu_us_per_io":{}}`)
	}
	write("results.json", `{"started":"then","systems":["raw","braid-r2"],"targets":[{"name":"speed","value":1.5,
		"unit":"x","target":1,"verdict":"met"}],"samples":[`+strings.Join(samples, ",")+`]}`)
	write("profile.md", "| disk | 2.5 |\n")
	if err := run(dir, dir); err != nil {
		t.Fatal(err)
	}
	first, _ := os.ReadFile(filepath.Join(dir, "scaling.md"))
	for _, want := range []string{"| speed | 1.5 x | ≥ 1 |", "| braid-r2 | 4321 | 4321 |", "| disk | 2.5 |",
		"adds 200 µs to a read",
		"| sds, write, each copy | 6.5 |", "| 1000 | 100 Gbit/s |", "connections of a volume"} {
		if !strings.Contains(string(first), want) {
			t.Errorf("the page lacks %q:\n%s", want, first)
		}
	}
	if err := run(dir, dir); err != nil {
		t.Fatal(err)
	}
	if second, _ := os.ReadFile(filepath.Join(dir, "scaling.md")); string(second) != string(first) {
		t.Error("a second time changes the page")
	}
	for _, name := range []string{"throughput.svg", "latency.svg", "burdens.svg"} {
		if plot, err := os.ReadFile(filepath.Join(dir, "scaling", name)); err != nil || len(plot) < 1000 {
			t.Errorf("%s: %d bytes, %v", name, len(plot), err)
		}
	}
}
