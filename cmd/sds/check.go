// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/server/store"
)

// finding is what `sds check -o json` prints.
type finding struct {
	Path      string   `json:"path"`
	Chunks    uint64   `json:"chunks"`
	Blocks    uint64   `json:"blocks"`    // compared with their checksums
	Uncertain uint64   `json:"uncertain"` // left open by a crash; the next start settles them
	Torn      uint64   `json:"torn"`      // header pages that a crash has torn; the next start makes them good
	Total     uint64   `json:"total"`     // problems
	Problems  []string `json:"problems"`  // the first of them
}

// shownProblems bounds what is printed for people.
const shownProblems = 20

func newCheck() *cobra.Command {
	var metadataOnly bool
	var output string
	cmd := &cobra.Command{
		Use:   "check PATH",
		Short: "Verify every structure and checksum of a device",
		Long: `check reads a device that is not being served and verifies its metadata and the
checksum of every block. It changes nothing. The exit code is 1 when something is
wrong; each line names the structure, what is wrong with it, and what helps.

After a crash, blocks that were being written are uncertain until the next start
compares them, and a page of the header table may be torn; they are counted and are
no problem.`,
		Example: `  sds check /dev/sdb
  sds check --metadata-only /dev/sdb      # seconds instead of a whole read`,
		Args: onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return cli.Usagef("--output %s: want table or json", output)
			}
			return runCheck(cmd, args[0], output, !metadataOnly)
		},
	}
	cmd.Flags().BoolVar(&metadataOnly, "metadata-only", false, "do not read the data")
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func runCheck(cmd *cobra.Command, path, output string, withData bool) (err error) {
	b, _, err := openStore(path, false) // locked: nobody may write meanwhile
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	bar := newProgress(cmd.ErrOrStderr(), "checking "+path)
	r, err := store.Check(b, store.CheckOptions{Data: withData, Progress: bar.set})
	bar.end()
	if err != nil {
		return fmt.Errorf("check %s: %w", path, err)
	}
	f := finding{Path: path, Chunks: r.Chunks, Blocks: r.Blocks, Uncertain: r.Uncertain, Torn: r.Torn, Total: r.Total,
		Problems: []string{}}
	for _, p := range r.Problems {
		f.Problems = append(f.Problems, p.String())
	}
	if err := f.print(cmd.OutOrStdout(), output); err != nil {
		return err
	}
	if f.Total > 0 {
		return fmt.Errorf("check %s: %d problems", path, f.Total)
	}
	return nil
}

func (f *finding) print(out io.Writer, output string) error {
	if output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(f)
	}
	for i, p := range f.Problems {
		if i == shownProblems {
			fmt.Fprintf(out, "... and %d more (-o json lists up to 1000)\n", f.Total-shownProblems)
			break
		}
		fmt.Fprintln(out, p)
	}
	_, err := fmt.Fprintf(out, "%s: %d chunks, %d blocks compared, %d uncertain, %d pages torn, "+
		"%d problems\n", f.Path, f.Chunks, f.Blocks, f.Uncertain, f.Torn, f.Total)
	return err
}
