// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
)

// purePackages hold the rules of replication, recovery and placement as state
// machines that can be replayed: method calls in, effects out.
var purePackages = []string{"cluster", "cluster/placement", "cluster/rules",
	"server/gate", "server/resync", "server/store",
	"stripe/core", "stripe/layout", "stripe/rangelock", "mdm/state", "perf/model", "transport/meter"}

// impureImports would let the world in.
var impureImports = []string{"net/http", "os", "os/exec", "os/signal", "syscall", "log",
	"log/slog", "math/rand", "math/rand/v2", "crypto/rand", "context", "sync", "sync/atomic",
	"golang.org/x/sys/unix"}

// pureTime is what a pure package may use of package time: values, no clock.
var pureTime = []string{"Duration", "Nanosecond", "Microsecond", "Millisecond", "Second",
	"Minute", "Hour", "Time", "Unix", "UnixMilli", "RFC3339"}

// pureNet is what it may use of package net: to take addresses apart.
var pureNet = []string{"JoinHostPort", "SplitHostPort", "ParseIP"}

// Goal: pure packages stay replayable. Method: their syntax trees are searched
// for impure imports, clocks, goroutines and channels.
func TestPurePackages(t *testing.T) {
	for _, path := range purePackages {
		files, err := filepath.Glob(filepath.Join(root, path, "*.go"))
		if err != nil || len(files) == 0 {
			t.Errorf("%s: no files (%v)", path, err)
		}
		for _, file := range files {
			if !isTest(file) {
				checkPure(t, file)
			}
		}
	}
}

func checkPure(t *testing.T, path string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, path, nil, 0)
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	for _, spec := range file.Imports {
		name, _ := strconv.Unquote(spec.Path.Value)
		if slices.Contains(impureImports, name) {
			t.Errorf("%s imports %s: a pure package must not", show(set, spec.Pos()), name)
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GoStmt:
			t.Errorf("%s: a goroutine in a pure package", show(set, n.Pos()))
		case *ast.ChanType:
			t.Errorf("%s: a channel in a pure package", show(set, n.Pos()))
		case *ast.SelectorExpr:
			pkg, ok := n.X.(*ast.Ident)
			switch {
			case !ok || pkg.Obj != nil: // a variable that has the name of a package
			case pkg.Name == "time" && !slices.Contains(pureTime, n.Sel.Name),
				pkg.Name == "net" && !slices.Contains(pureNet, n.Sel.Name):
				t.Errorf("%s: %s.%s in a pure package", show(set, n.Pos()), pkg.Name, n.Sel.Name)
			}
		}
		return true
	})
}

// show is a position relative to the project's root.
func show(set *token.FileSet, pos token.Pos) string {
	at := set.Position(pos)
	name, err := filepath.Rel(root, at.Filename)
	if err != nil {
		name = at.Filename
	}
	return name + ":" + strconv.Itoa(at.Line)
}
