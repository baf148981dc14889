// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const module = "braid"

// rule says which of our own packages a package and those below it may import.
// A name that ends in /... stands for the package and all below it.
type rule struct {
	path    string
	allowed []string
}

// rules: the first that fits a package counts, so inner packages come first.
var rules = []rule{
	{"cmd/internal/...", []string{"cluster", "mdm/client", "transport/...", "cmd/internal/..."}},
	{"cmd/...", []string{"cluster", "mdm/...", "nbd/...", "server/...", "stripe/...",
		"transport/...", "cmd/..."}},
	{"nbd/...", []string{"transport/buf", "transport/loop", "transport/bio", "transport/meter", "nbd/..."}},
	{"stripe/...", []string{"cluster", "cluster/rules", "transport/...", "mdm/client", "stripe/..."}},
	{"server/disk/...", []string{"transport/loop", "transport/buf", "server/disk/..."}},
	{"server/store/...", []string{"cluster", "cluster/rules", "transport", "server/store/..."}},
	{"server/...", []string{"cluster", "cluster/rules", "transport/...", "server/...", "mdm/client"}},
	{"mdm/client/...", []string{"cluster", "mdm/client/...", "mdm/pb/..."}},
	{"mdm/pb/...", []string{"cluster", "mdm/pb/..."}},
	{"mdm/...", []string{"cluster/...", "mdm/..."}},
	{"transport/...", []string{"transport/..."}},
	{"cluster", nil},
	{"cluster/...", []string{"cluster", "cluster/..."}},
	{"internal/...", []string{"..."}},
	{"perf/...", []string{"perf/..."}},
	{"scripts/...", []string{"scripts/..."}},
}

// testsOnly are packages that no package but a test, or one of these, imports.
var testsOnly = []string{"internal/...", "transport/bio/biotest", "perf/...", "scripts/..."}

// fits reports whether the pattern names the package.
func fits(pattern, path string) bool {
	base, all := strings.CutSuffix(pattern, "...")
	if !all {
		return pattern == path
	}
	return strings.HasPrefix(path+"/", base)
}

func fitsAny(patterns []string, path string) bool {
	return slices.ContainsFunc(patterns, func(p string) bool { return fits(p, path) })
}

// listed is what `go list -json` says about a package.
type listed struct {
	ImportPath, Dir                    string
	GoFiles, TestGoFiles, XTestGoFiles []string
	Imports, TestImports, XTestImports []string
}

// own is the path below the module, and whether it is one of our packages.
func own(importPath string) (string, bool) { return strings.CutPrefix(importPath, module+"/") }

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-e", "-json"}, args...)...)
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v", err)
	}
	var packages []listed
	for decoder := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p listed
		switch err := decoder.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatalf("decode what go list says: %v", err)
		}
		packages = append(packages, p)
	}
}

// Goal: the arrows of the architecture hold. Method: each import that go list
// knows of one of our packages by another is looked up in the rules.
func TestImportsFollowTheArchitecture(t *testing.T) {
	packages := list(t, "./...")
	if len(packages) < 10 {
		t.Fatalf("go list sees only %d packages", len(packages))
	}
	for _, p := range packages {
		path, _ := own(p.ImportPath)
		i := slices.IndexFunc(rules, func(r rule) bool { return fits(r.path, path) })
		if i < 0 {
			t.Errorf("%s: no rule in imports_test.go says what it may import", path)
			continue
		}
		for _, imported := range p.Imports {
			checkImport(t, path, imported, rules[i].allowed)
		}
	}
}

func checkImport(t *testing.T, path, imported string, allowed []string) {
	t.Helper()
	target, ours := own(imported)
	switch {
	case strings.HasPrefix(imported, "go.etcd.io/") && !fits("mdm/...", path):
		t.Errorf("%s imports %s: only mdm may import etcd", path, imported)
	case fits("mdm/client/...", path) && strings.HasPrefix(imported, "go.etcd.io/"):
		t.Errorf("%s imports %s: clients must not carry etcd", path, imported)
	case !ours:
	case fitsAny(testsOnly, target) && !fitsAny(testsOnly, path):
		t.Errorf("%s imports %s, which is for tests", path, target)
	case !fitsAny(allowed, target):
		t.Errorf("%s imports %s, which the architecture does not allow (it may: %s)",
			path, target, strings.Join(allowed, " "))
	}
}

// Goal: a data client or server does not drag etcd in by a detour. Method: go
// list -deps of every binary but mdm.
func TestOnlyMdmLinksEtcd(t *testing.T) {
	for _, binary := range []string{"./cmd/sdc", "./cmd/sds", "./cmd/scli"} {
		for _, p := range list(t, "-deps", binary) {
			if strings.HasPrefix(p.ImportPath, "go.etcd.io/") {
				t.Errorf("%s links %s", binary, p.ImportPath)
				break
			}
		}
	}
}

// Goal: the rules themselves tell right from wrong. Method: imports that must and
// must not fit.
func TestPatterns(t *testing.T) {
	for _, c := range []struct {
		pattern, path string
		want          bool
	}{
		{"transport/...", "transport", true},
		{"transport/...", "transport/buf", true},
		{"transport/...", "transportation", false},
		{"transport/buf", "transport/buf/x", false},
		{"...", "anything/at/all", true},
	} {
		if got := fits(c.pattern, c.path); got != c.want {
			t.Errorf("fits(%q, %q) = %v", c.pattern, c.path, got)
		}
	}
}
