// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// root is the project's root.
func root(t *testing.T) string {
	t.Helper()
	dir, err := filepath.Abs("../..")
	if err != nil {
		t.Fatalf("find the project's root: %v", err)
	}
	return dir
}

// cluster is a running cluster of this test.
type cluster struct {
	dir string
	bin string
	mdm string
	run string
}

// up starts a cluster that ends with the test.
func up(t *testing.T, options ...string) *cluster {
	t.Helper()
	dir, err := os.MkdirTemp("", "braid-interop-")
	if err != nil {
		t.Fatal(err)
	}
	c := &cluster{dir: dir, bin: filepath.Join(root(t), "bin")}
	t.Cleanup(func() {
		if t.Failed() {
			t.Log(c.tails())
		}
		c.script(t, "down", "--remove")
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	c.script(t, append([]string{"up"}, options...)...)
	for line := range strings.Lines(read(t, filepath.Join(dir, "env"))) {
		line = strings.TrimSpace(line)
		if value, ok := strings.CutPrefix(line, "export BRAID_MDM="); ok {
			c.mdm = strings.ReplaceAll(value, `\`, "")
		}
		if value, ok := strings.CutPrefix(line, "export BRAID_RUN="); ok {
			c.run = strings.ReplaceAll(value, `\`, "")
		}
	}
	return c
}

func read(t *testing.T, path string) string {
	t.Helper()
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(content)
}

// script calls scripts/cluster.
func (c *cluster) script(t *testing.T, args ...string) {
	t.Helper()
	c.scriptWith(t, "", args...)
}

// scriptWith does so with one more variable, NAME=VALUE, in the environment.
func (c *cluster) scriptWith(t *testing.T, variable string, args ...string) {
	t.Helper()
	cmd := exec.Command(filepath.Join(root(t), "scripts", "cluster"), append(args, "--dir", c.dir)...)
	if variable != "" {
		cmd.Env = append(os.Environ(), variable)
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("scripts/cluster %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// tails are the ends of the daemons' logs.
func (c *cluster) tails() string {
	logs, _ := filepath.Glob(filepath.Join(c.dir, "*.log"))
	var all strings.Builder
	for _, log := range logs {
		content, err := os.ReadFile(log)
		if err == nil {
			lines := strings.Split(strings.TrimRight(string(content), "\n"), "\n")
			fmt.Fprintf(&all, "%s:\n  %s\n", log,
				strings.Join(lines[max(0, len(lines)-10):], "\n  "))
		}
	}
	return all.String()
}

// command is a command with the cluster's environment and a time limit.
func (c *cluster) command(t *testing.T, name string, args ...string) *exec.Cmd {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Dir = c.dir
	cmd.Env = append(os.Environ(), "BRAID_MDM="+c.mdm, "BRAID_RUN="+c.run,
		"PATH="+c.bin+":"+os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	if cmd.Err != nil && !strings.Contains(name, "/") {
		cmd.Path, cmd.Err = filepath.Join(c.bin, name), nil
	}
	return cmd
}

// do runs a command that must succeed and returns what it prints.
func (c *cluster) do(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := c.command(t, name, args...)
	var errors bytes.Buffer
	cmd.Stderr = &errors
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s%s", name, strings.Join(args, " "), err, out, errors.Bytes())
	}
	return string(out)
}

// decode parses JSON that a command printed.
func decode[T any](t *testing.T, text string) T {
	t.Helper()
	var value T
	if err := json.Unmarshal([]byte(text), &value); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, text)
	}
	return value
}

// volume creates a volume.
func (c *cluster) volume(t *testing.T, name, size string, options ...string) {
	t.Helper()
	c.do(t, "scli", append([]string{"volume", "create", name, "--size", size}, options...)...)
}

// refused runs a command that must fail with that code and say all the words.
func (c *cluster) refused(t *testing.T, code int, words []string, name string, args ...string) {
	t.Helper()
	cmd := c.command(t, name, args...)
	out, err := cmd.CombinedOutput()
	line := name + " " + strings.Join(args, " ")
	if err == nil || cmd.ProcessState.ExitCode() != code {
		t.Errorf("%s: exit code %d, want %d:\n%s", line, cmd.ProcessState.ExitCode(), code, out)
	}
	for _, word := range words {
		if !strings.Contains(string(out), word) {
			t.Errorf("%s does not say %q:\n%s", line, word, out)
		}
	}
}
