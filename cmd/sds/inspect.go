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

// inspection is what `sds inspect -o json` prints. Sizes are bytes.
type inspection struct {
	Path          string             `json:"path"`
	FormatVersion int                `json:"format_version"`
	Device        string             `json:"device"`
	Cluster       string             `json:"cluster"` // empty: none yet
	Superblocks   [2]string          `json:"superblocks"`
	Size          int64              `json:"size"`
	Capacity      int64              `json:"capacity"`
	Metadata      int64              `json:"metadata"`
	Starts        uint64             `json:"starts"`
	Clean         bool               `json:"clean"`
	ChunksUsed    uint32             `json:"chunks_used"`
	Chunks        uint32             `json:"chunks"`
	BlocksUsed    uint64             `json:"blocks_used"`
	LogRecords    map[string]int     `json:"log_records"`
	ActiveRegions int                `json:"active_regions"`
	Volumes       []volumeInspection `json:"volumes"`
	Problem       string             `json:"problem"` // why the metadata cannot be read, or empty
}

type volumeInspection struct {
	ID            uint64 `json:"id"`
	Generation    uint64 `json:"generation"`
	Chunks        uint64 `json:"chunks"`
	Blocks        uint64 `json:"blocks"`
	ActiveRegions int    `json:"active_regions"`
}

func newInspect() *cobra.Command {
	var output string
	var regions int
	cmd := &cobra.Command{
		Use:   "inspect PATH",
		Short: "Say what is on a device",
		Long: `inspect reads the metadata of a device and says whose it is and what it holds:
superblocks, log, chunks, volumes, and the activity log, which lists the regions
that may differ from the other copies. It changes nothing and may be used while
the device is being served; what it prints may then be older than what the
server knows, or torn.`,
		Example: `  sds inspect /dev/sdb
  sds inspect --regions -1 /dev/sdb            # all of the activity log
  sds inspect -o json /dev/sdb | jq .cluster`,
		Args: onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return cli.Usagef("--output %s: want table or json", output)
			}
			return runInspect(cmd.OutOrStdout(), args[0], output, regions)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	cmd.Flags().IntVar(&regions, "regions", 0, "list so many entries of the activity log; -1: all")
	return cmd
}

func runInspect(out io.Writer, path, output string, regions int) (err error) {
	b, _, err := openStore(path, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	r, err := store.Inspect(b)
	if err != nil {
		return fmt.Errorf("inspect %s: %w", path, err)
	}
	if output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		err = enc.Encode(newInspection(path, r))
	} else {
		_, err = fmt.Fprintf(out, "%-22s %s\n", "path", path)
		err = errors.Join(err, r.Print(out, regions))
	}
	if err == nil && r.Problem != "" {
		err = fmt.Errorf("inspect %s: the metadata cannot be read: %s", path, r.Problem)
	}
	return err
}

func newInspection(path string, r *store.Report) inspection {
	v := inspection{Path: path, FormatVersion: r.Version, Device: r.Device, Cluster: r.Cluster,
		Superblocks: r.Superblocks, Size: r.Size, Capacity: r.Capacity, Metadata: r.MetadataBytes,
		Starts: r.Starts, Clean: r.Clean, ChunksUsed: r.ChunksUsed, Chunks: r.Slots,
		BlocksUsed: r.BlocksUsed, LogRecords: r.Log.Records, ActiveRegions: len(r.Regions),
		Volumes: []volumeInspection{}, Problem: r.Problem}
	for _, x := range r.Volumes {
		v.Volumes = append(v.Volumes, volumeInspection{ID: uint64(x.ID), Generation: uint64(x.Generation),
			Chunks: x.Chunks, Blocks: x.Blocks, ActiveRegions: x.Regions})
	}
	return v
}
