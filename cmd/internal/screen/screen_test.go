// SPDX-License-Identifier: Apache-2.0

package screen

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"braid/transport/meter"
)

// Goal: numbers are short, and right at their bounds.
func TestNumbers(t *testing.T) {
	for got, want := range map[string]string{
		Micros(0): "-", Micros(85.4): "85us", Micros(999.9): "1.0ms", Micros(12345): "12ms", Micros(2.5e6): "2.5s",
		Number(0): "0", Number(7.46): "7.5", Number(950): "950", Number(12345): "12.3k", Number(1.2e6): "1.2M",
		MB(0): "0", MB(4096): "0.00", MB(12.34e6): "12.3", MB(754e6): "754",
		Ago(400 * time.Millisecond): "0.4s", Ago(12 * time.Second): "12s", Ago(250 * time.Second): "4m10s",
		Ago(185 * time.Minute): "3h05m", Ago(52 * time.Hour): "2d4h",
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
	if Rate(5, 10, time.Second) != 5 || Rate(30, 10, 2*time.Second) != 10 || Rate(1, 0, 0) != 0 {
		t.Error("rates")
	}
}

// Goal: bars show where the durations are, extremes included.
func TestBars(t *testing.T) {
	var h meter.Histogram
	for range 80 {
		h.Record(int64(100 * time.Microsecond))
	}
	for range 10 {
		h.Record(int64(time.Millisecond))
	}
	h.Record(1)
	h.Record(int64(time.Hour))
	if got := Bars(h.Snapshot()); got != "▁   █  ▂            ▁" {
		t.Errorf("bars %q", got)
	}
	if got := Bars(meter.Snapshot{}); strings.TrimSpace(got) != "" || utf8.RuneCountInString(got) != 21 {
		t.Errorf("no bars: %q", got)
	}
}

// Goal: in a pipe views follow one another as plain text, and a step can end it.
func TestPipe(t *testing.T) {
	var out bytes.Buffer
	s := New(&out)
	n := 0
	err := Every(context.Background(), time.Millisecond, func() (bool, error) {
		n++
		return n == 2, s.Draw("view\n")
	})
	s.Close("view\n")
	if err != nil || out.String() != "view\n\nview\n" || s.IsTerminal() {
		t.Errorf("%v: %q", err, out.String())
	}
	wrong := errors.New("wrong")
	if err := Every(context.Background(), time.Hour, func() (bool, error) { return false, wrong }); err != wrong {
		t.Error(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	if err := Every(ctx, time.Hour, func() (bool, error) { cancel(); return false, nil }); err != nil {
		t.Error(err)
	}
}

func TestTable(t *testing.T) {
	got := Table("  ", []string{"NAME", ">N"}, [][]string{{"a", "1"}, {"long", "200"}})
	if want := "  NAME    N\n  a       1\n  long  200\n"; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}
