// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"braid/transport/loop"
)

// Exit codes of every command.
const (
	ExitDone   = 0
	ExitFailed = 1
	ExitUsage  = 2
)

// UsageError is a wrong command line, as opposed to a command that failed.
type UsageError struct{ Err error }

func (e UsageError) Error() string { return e.Err.Error() }

// Unwrap returns the cause.
func (e UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return UsageError{fmt.Errorf(format, args...)} }

// Run executes one command line of the program root and returns its exit code. A
// flag that is not right, and a command that does not exist, are wrong usage;
// commands say so of everything else by a UsageError.
func Run(ctx context.Context, root *cobra.Command, args []string, stdout, stderr io.Writer) int {
	root.SilenceUsage, root.SilenceErrors = true, true
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return UsageError{err} })
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)
	err := root.ExecuteContext(ctx)
	var usage UsageError
	switch {
	case err == nil, ctx.Err() != nil && errors.Is(err, context.Canceled):
		return ExitDone // what goes on until it is interrupted has then done its work
	case errors.As(err, &usage), strings.HasPrefix(err.Error(), "unknown command"):
		name := root.Name()
		fmt.Fprintf(stderr, "%s: %v\nRun `%s --help` or `%s COMMAND --help` for how it is used.\n",
			name, strings.TrimPrefix(err.Error(), name+" "), name, name)
		return ExitUsage
	}
	fmt.Fprintf(stderr, "%s: %v\n", root.Name(), err)
	return ExitFailed
}

// NoArgs is the argument check of a command that takes flags only.
func NoArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return Usagef("%s takes no arguments, only flags; got %q", cmd.CommandPath(), args)
	}
	return nil
}

// EnvOr is the value of an environment variable, or otherwise where it is not set.
func EnvOr(name, otherwise string) string {
	if v := os.Getenv(name); v != "" {
		return v
	}
	return otherwise
}

// EnvList is a list from the environment, separated by commas.
func EnvList(name string, otherwise ...string) []string {
	if v := os.Getenv(name); v != "" {
		return strings.Split(v, ",")
	}
	return otherwise
}

// ParseEngine reads an --engine flag.
func ParseEngine(text string) (loop.Engine, error) {
	for _, e := range []loop.Engine{loop.Auto, loop.Uring, loop.Pool} {
		if text == e.String() {
			return e, nil
		}
	}
	return loop.Auto, Usagef("--engine %q: it is auto, io_uring or pool", text)
}
