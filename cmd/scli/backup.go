// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/mdm/client"
)

func (a *app) backupCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "backup FILE",
		Short: "Write a backup of the metadata",
		Long: `Write a consistent backup of the metadata to FILE, which appears whole or not at
all. It holds where data lies, not the data. mdm serve --restore FILE fills an
empty metadata manager from it; scli restore then lets the cluster go on.`,
		Example: `  scli backup /backup/braid-$(date +%F).meta`,
		Args:    named("file"),
		RunE: func(c *cobra.Command, args []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				n, err := writeBackup(ctx, mdm, args[0])
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(map[string]any{"file": args[0], "bytes": n})
				}
				fmt.Fprintf(a.out, "metadata backed up to %s, %s\n", args[0], size(uint64(n)))
				return nil
			})
		},
	}
}

// writeBackup makes the file appear whole or not at all.
func writeBackup(ctx context.Context, mdm *client.Client, path string) (int64, error) {
	part := path + ".part"
	f, err := os.OpenFile(part, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return 0, fmt.Errorf("back up the metadata: %w", err)
	}
	defer os.Remove(part) // it is gone when all went well
	tail := &lastLine{w: f}
	err = mdm.Backup(ctx, tail)
	var end struct{ SHA256 string }
	if err == nil && (json.Unmarshal(tail.line, &end) != nil || end.SHA256 == "") {
		err = errors.New("back up the metadata: the metadata manager broke off; see its log, and try again")
	}
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return 0, err
	}
	return tail.n, os.Rename(part, path)
}

// lastLine remembers the last line of what passes.
type lastLine struct {
	w    io.Writer
	line []byte
	n    int64
}

func (l *lastLine) Write(p []byte) (int, error) {
	l.n += int64(len(p))
	l.line = append(l.line, p...)
	if at := bytes.LastIndexByte(bytes.TrimRight(l.line, "\n"), '\n'); at >= 0 {
		l.line = append(l.line[:0], l.line[at+1:]...)
	}
	return l.w.Write(p)
}

func (a *app) restoreCommand() *cobra.Command {
	status := &cobra.Command{
		Use:   "status",
		Short: "Show what is known about the age of the backup",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				s, err := mdm.RestoreStatus(ctx)
				if err != nil {
					return err
				}
				return a.showRestore(s)
			})
		},
	}
	force := false
	confirm := &cobra.Command{
		Use:   "confirm",
		Short: "Let the restored cluster go on",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				s, err := mdm.ConfirmRestore(ctx, force)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(s)
				}
				fmt.Fprintln(a.out, "the cluster goes on; scli status shows what catches up")
				return nil
			})
		},
	}
	confirm.Flags().BoolVar(&force, "force", false, "go on without the word of the missing servers")
	g := group("restore", "See and confirm a restore of the metadata", status, confirm)
	g.Long = `After mdm serve --restore FILE nothing changes yet: I/O of clients and servers that
run goes on, and each server that ran through is asked for the map it has. What
changed since the backup is taken from the newest of these.`
	return g
}

func (a *app) showRestore(s client.RestoreStatus) error {
	if a.json() {
		return a.printJSON(s)
	}
	if !s.Held {
		fmt.Fprintln(a.out, "no restore waits to be confirmed")
		return nil
	}
	age := "no server has a newer map than the backup"
	if s.Newest > s.Version {
		age = fmt.Sprintf("servers have map version %d, the backup %d: what changed since comes from them", s.Newest,
			s.Version)
	}
	next := "scli restore confirm"
	pairs := [][2]string{{"backup", "of " + s.Taken.Local().Format(time.DateTime)}, {"age", age},
		{"heard", fmt.Sprintf("%d servers", len(s.Heard))}}
	if len(s.Missing) > 0 {
		pairs = append(pairs, [2]string{"missing", strings.Join(s.Missing, ", ")})
		next = "connect these servers as they run; if they are lost or were restarted: " + next + " --force"
	}
	printPairs(a.out, append(pairs, [2]string{"do", next}))
	return nil
}
