// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

// Goal: the exit code tells wrong usage from failure, and the text says where help
// is only in the first case.
func TestRun(t *testing.T) {
	for line, want := range map[string]struct {
		code int
		text string
	}{
		"good":        {ExitDone, ""},
		"bad":         {ExitFailed, "prog: it broke\n"},
		"wrong":       {ExitUsage, "prog: no such thing\nRun `prog --help`"},
		"good extra":  {ExitUsage, "prog: good takes no arguments"},
		"good --fast": {ExitUsage, "unknown flag: --fast"},
		"odd":         {ExitUsage, `unknown command "odd"`},
	} {
		root := &cobra.Command{Use: "prog", Args: cobra.NoArgs,
			RunE: func(*cobra.Command, []string) error { return nil }}
		for name, err := range map[string]error{"good": nil, "bad": errors.New("it broke"),
			"wrong": Usagef("no such %s", "thing")} {
			root.AddCommand(&cobra.Command{Use: name, Args: NoArgs,
				RunE: func(*cobra.Command, []string) error { return err }})
		}
		var stderr bytes.Buffer
		code := Run(t.Context(), root, strings.Fields(line), &bytes.Buffer{}, &stderr)
		if code != want.code || !strings.Contains(stderr.String(), want.text) {
			t.Errorf("%s: code %d, %q; want %d, %q", line, code, stderr.String(), want.code, want.text)
		}
	}
}

func TestEnvironment(t *testing.T) {
	t.Setenv("BRAID_A", "")
	t.Setenv("BRAID_B", "x,y")
	if EnvOr("BRAID_A", "z") != "z" || EnvOr("BRAID_B", "z") != "x,y" {
		t.Error("EnvOr")
	}
	if EnvList("BRAID_A") != nil || !slices.Equal(EnvList("BRAID_A", "z"), []string{"z"}) ||
		!slices.Equal(EnvList("BRAID_B", "z"), []string{"x", "y"}) {
		t.Error("EnvList")
	}
	for text, ok := range map[string]bool{"auto": true, "io_uring": true, "pool": true, "steam": false} {
		if _, err := ParseEngine(text); (err == nil) != ok {
			t.Errorf("engine %s: %v", text, err)
		}
	}
}
