// SPDX-License-Identifier: Apache-2.0

package screen

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"
	"unicode/utf8"

	"golang.org/x/sys/unix"
)

// ANSI sequences: the alternate screen without a cursor, and back; to the upper
// left; to the end of the line and of the screen, erased.
const (
	enter     = "\x1b[?1049h\x1b[?25l"
	leave     = "\x1b[?25h\x1b[?1049l"
	home      = "\x1b[H"
	eraseLine = "\x1b[K\r\n"
	eraseRest = "\x1b[J"
)

// Screen draws views.
type Screen struct {
	out   io.Writer
	term  *os.File // nil: not a terminal
	drawn bool
}

// New draws on out, which may be a terminal.
func New(out io.Writer) *Screen {
	s := &Screen{out: out}
	if f, ok := out.(*os.File); ok {
		if _, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ); err == nil {
			s.term = f
		}
	}
	return s
}

// IsTerminal reports whether views replace one another.
func (s *Screen) IsTerminal() bool { return s.term != nil }

// Size is that of the terminal, and something wide elsewhere.
func (s *Screen) Size() (columns, rows int) {
	if s.term != nil {
		if w, err := unix.IoctlGetWinsize(int(s.term.Fd()), unix.TIOCGWINSZ); err == nil && w.Col > 0 {
			return int(w.Col), int(w.Row)
		}
	}
	return 160, 1 << 20
}

// Draw shows a view: in place of the one before on a terminal, cut to its size;
// below it elsewhere, after an empty line.
func (s *Screen) Draw(text string) error {
	first := !s.drawn
	s.drawn = true
	if s.term == nil {
		if !first {
			text = "\n" + text
		}
		_, err := io.WriteString(s.out, text)
		return err
	}
	var b strings.Builder
	if first {
		b.WriteString(enter)
	}
	b.WriteString(home)
	columns, rows := s.Size()
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines[:min(len(lines), rows-1)] {
		if i > 0 {
			b.WriteString(eraseLine)
		}
		b.WriteString(cut(line, columns))
	}
	b.WriteString("\x1b[K" + eraseRest)
	_, err := io.WriteString(s.out, b.String())
	return err
}

func cut(line string, columns int) string {
	if utf8.RuneCountInString(line) <= columns {
		return line
	}
	return string([]rune(line)[:columns])
}

// Close gives the terminal back. The last view stays on it.
func (s *Screen) Close(last string) {
	if s.term != nil && s.drawn {
		_, _ = io.WriteString(s.out, leave+last)
	}
}

// Every calls step at once, and then each interval until ctx ends or step says
// that it was the last time.
func Every(ctx context.Context, interval time.Duration, step func() (last bool, err error)) error {
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		if last, err := step(); last || err != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil
		}
	}
}

// Table aligns columns; those whose heading begins with '>' to the right.
func Table(indent string, headings []string, rows [][]string) string {
	width := make([]int, len(headings))
	right := make([]bool, len(headings))
	names := make([]string, len(headings))
	for i, h := range headings {
		names[i], right[i] = strings.CutPrefix(h, ">")
		width[i] = utf8.RuneCountInString(names[i])
	}
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell))
		}
	}
	var b strings.Builder
	for _, row := range append([][]string{names}, rows...) {
		line := indent
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if right[i] {
				cell = pad + cell
			} else {
				cell += pad
			}
			line += cell + "  "
		}
		fmt.Fprintln(&b, strings.TrimRight(line, " "))
	}
	return b.String()
}
