// SPDX-License-Identifier: Apache-2.0

package lint

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// Goal: what the documents say about the code is there. Method: each source file
// that a document names must exist, and each function named behind it in brackets
// must be declared in it.
func TestDocumentsNameWhatExists(t *testing.T) {
	// For example: `stripe/core/piece.go` (makePiece, fanOut)
	mention := regexp.MustCompile("`([a-z][a-z0-9_/]*\\.go)`(?: \\(([A-Za-z]+(?:, [A-Za-z]+)*)\\))?")
	documents, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	if err != nil || len(documents) < 4 {
		t.Fatalf("only %d documents (%v)", len(documents), err)
	}
	for _, document := range append(documents, filepath.Join(root, "README.md")) {
		text, err := os.ReadFile(document)
		if err != nil {
			t.Fatal(err)
		}
		for _, found := range mention.FindAllStringSubmatch(string(text), -1) {
			source, err := os.ReadFile(filepath.Join(root, found[1]))
			if err != nil {
				t.Errorf("%s names %s, which is not there", filepath.Base(document), found[1])
				continue
			}
			for name := range strings.SplitSeq(found[2], ", ") {
				declared := regexp.MustCompile(`(?m)^func (\([^)]*\) )?` + name + `\(`)
				if name != "" && !declared.Match(source) {
					t.Errorf("%s names %s in %s, which has no such function",
						filepath.Base(document), name, found[1])
				}
			}
		}
	}
}

// Goal: links between the documents lead somewhere. Method: each relative link.
func TestDocumentsLinkToWhatExists(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^):#]+)\)`)
	for path, content := range sources(t) {
		if filepath.Ext(path) != ".md" {
			continue
		}
		for _, found := range link.FindAllStringSubmatch(content, -1) {
			target := filepath.Join(root, filepath.Dir(path), found[1])
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s links to %s, which is not there", path, found[1])
			}
		}
	}
}
