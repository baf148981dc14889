// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"unicode/utf8"

	"braid/cluster"
)

func (a *app) json() bool { return a.output == "json" }

func (a *app) printJSON(value any) error {
	e := json.NewEncoder(a.out)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	return e.Encode(value)
}

// printTable aligns columns; those whose heading begins with '>' to the right.
func printTable(w io.Writer, headings []string, rows [][]string) {
	width := make([]int, len(headings))
	right := make([]bool, len(headings))
	for i, h := range headings {
		headings[i], right[i] = strings.CutPrefix(h, ">")
		width[i] = utf8.RuneCountInString(headings[i])
	}
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	for _, row := range append([][]string{headings}, rows...) {
		var line strings.Builder
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			line.WriteString(cell + "  ")
		}
		fmt.Fprintln(w, strings.TrimRight(line.String(), " "))
	}
}

// printPairs prints one thing, a line per property.
func printPairs(w io.Writer, pairs [][2]string) {
	width := 0
	for _, p := range pairs {
		width = max(width, len(p[0]))
	}
	for _, p := range pairs {
		fmt.Fprintln(w, strings.TrimRight(fmt.Sprintf("%-*s  %s", width, p[0], p[1]), " "))
	}
}

func size(bytes uint64) string { return cluster.FormatSize(bytes) }

func percent(part, whole uint64) string {
	if whole == 0 {
		return "-"
	}
	return fmt.Sprintf("%.0f%%", 100*float64(part)/float64(whole))
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func uuidText(b []byte) string {
	var u cluster.UUID
	if copy(u[:], b) != len(u) {
		return ""
	}
	return u.String()
}
