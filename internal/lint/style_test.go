// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf8"
)

// root is the project's root as seen from this package's folder.
const root = "../.."

// The style asks for files of about 500 lines, functions of 70 and lines of 100
// columns. These are the limits beyond which "about" ends.
const (
	maxFileLines = 600
	maxFuncLines = 85
	maxColumns   = 120
	tabColumns   = 4
)

const license = "SPDX-License-Identifier: Apache-2.0"

// licensed says which files carry the licence line; documents and data do not.
func licensed(path string) bool {
	if path == "Makefile" || strings.HasPrefix(path, ".ci/") {
		return true
	}
	switch filepath.Ext(path) {
	case ".go", ".proto", ".sh", ".c", ".py", ".yml", ".yaml":
		return true
	case "":
		return strings.HasPrefix(path, "scripts/")
	}
	return false
}

// foreign are traces of where the project was made. They are joined here so that
// this file does not contain them.
var foreign = []string{
	"../" + "shared", "shared" + "/design", "shared" + "/style", "shared" + "/replication",
	"shared" + "/machine", "shared" + "/tools", "/wo" + "rk/", "proxy.golang" + ".org",
	"sum.golang" + ".org", "goprox" + "y.", "deb.debian" + ".org", "kgu" + "est", "/tmp/" + "braid/",
}

func isTest(path string) bool { return strings.HasSuffix(path, "_test.go") }

// isGenerated: code by a generator is exempt from style, not from the licence.
func isGenerated(content string) bool {
	head, _, _ := strings.Cut(content, "\npackage ")
	return strings.Contains(head, "// Code generated ") && strings.Contains(head, "DO NOT EDIT.")
}

// sources are all files of the project that git would keep, with their content.
func sources(t *testing.T) map[string]string {
	t.Helper()
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("git ls-files: %v", err)
	}
	files := map[string]string{}
	for name := range strings.SplitSeq(strings.TrimRight(string(out), "\x00"), "\x00") {
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			continue // removed, not committed yet
		}
		files[name] = string(content)
	}
	if len(files) < 20 {
		t.Fatalf("git sees only %d files", len(files))
	}
	return files
}

// Goal: every source file says its licence. Method: its first lines are read.
func TestEveryFileIsLicensed(t *testing.T) {
	for path, content := range sources(t) {
		if !licensed(path) {
			continue
		}
		lines := strings.SplitN(content, "\n", 4)
		if !strings.Contains(strings.Join(lines[:min(3, len(lines))], "\n"), license) {
			t.Errorf("%s: none of the first three lines says %q", path, license)
		}
	}
}

// Goal: the project stands for itself. Method: search for names of places that
// only the machine it was made on has, and for promises instead of code.
func TestNoForeignNames(t *testing.T) {
	for path, content := range sources(t) {
		if path == "go.sum" || !utf8.ValidString(content) {
			continue
		}
		for _, word := range foreign {
			if strings.Contains(content, word) {
				t.Errorf("%s contains %q", path, word)
			}
		}
	}
}

// Goal: files, functions and lines stay readable. Method: counting.
func TestSizes(t *testing.T) {
	for path, content := range sources(t) {
		if filepath.Ext(path) != ".go" || isGenerated(content) {
			continue
		}
		lines := strings.Split(strings.TrimRight(content, "\n"), "\n")
		if len(lines) > maxFileLines {
			t.Errorf("%s has %d lines, more than %d: split it by idea",
				path, len(lines), maxFileLines)
		}
		for i, line := range lines {
			wide := utf8.RuneCountInString(line) + strings.Count(line, "\t")*(tabColumns-1)
			if wide > maxColumns {
				t.Errorf("%s:%d is %d columns wide, more than %d", path, i+1, wide, maxColumns)
			}
		}
		checkSyntax(t, path, content)
	}
}

// checkSyntax looks at what only a syntax tree shows.
func checkSyntax(t *testing.T, path, content string) {
	t.Helper()
	set := token.NewFileSet()
	file, err := parser.ParseFile(set, filepath.Join(root, path), content, parser.ParseComments)
	if err != nil {
		t.Errorf("%v", err)
		return
	}
	for _, decl := range file.Decls {
		function, ok := decl.(*ast.FuncDecl)
		if !ok || function.Body == nil {
			continue
		}
		lines := set.Position(function.End()).Line - set.Position(function.Pos()).Line + 1
		if lines > maxFuncLines {
			t.Errorf("%s: %s has %d lines, more than %d",
				show(set, function.Pos()), function.Name.Name, lines, maxFuncLines)
		}
		if function.Name.Name == "init" && function.Recv == nil {
			t.Errorf("%s: an init function: state that appears by import", show(set, function.Pos()))
		}
	}
	for _, group := range file.Comments {
		for _, comment := range group.List {
			if strings.Contains(comment.Text, "TO"+"DO") || strings.Contains(comment.Text, "FIX"+"ME") {
				t.Errorf("%s: a promise instead of code", show(set, comment.Pos()))
			}
		}
	}
	ast.Inspect(file, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		method, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		receiver, ok := method.X.(*ast.Ident)
		if !ok {
			return true
		}
		switch name := receiver.Name + "." + method.Sel.Name; name {
		case "time.Sleep":
			t.Errorf("%s: %s: wait for what is to happen, not for time", show(set, call.Pos()), name)
		case "t.Skip", "t.Skipf", "t.SkipNow", "b.Skip", "f.Skip":
			t.Errorf("%s: %s: a test that does not run proves nothing", show(set, call.Pos()), name)
		}
		return true
	})
}

// Goal: every package explains itself. Method: each has a package comment.
func TestPackagesAreDocumented(t *testing.T) {
	for _, p := range list(t, "./...") {
		path, _ := own(p.ImportPath)
		documented := len(p.GoFiles) == 0
		for _, name := range p.GoFiles {
			file, err := parser.ParseFile(token.NewFileSet(), filepath.Join(p.Dir, name), nil,
				parser.PackageClauseOnly|parser.ParseComments)
			generated := err == nil && ast.IsGenerated(file)
			if err == nil && file.Doc != nil || generated {
				documented = true
			}
		}
		if !documented {
			t.Errorf("%s: no file has a package comment; it belongs into doc.go", path)
		}
	}
}
