// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"braid/cluster"
)

// inspection is what `sds inspect -o json` prints.
type inspection struct {
	Path     string `json:"path"`
	Device   string `json:"device"`
	Cluster  string `json:"cluster"` // empty: none yet
	Size     int64  `json:"size"`
	Capacity int64  `json:"capacity"`
	Starts   uint64 `json:"starts"`
	Clean    bool   `json:"clean"`
}

func newInspect() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "inspect PATH",
		Short: "Say what is on a device",
		Long: `inspect reads a device's superblock and says whose it is. It changes nothing and
may be used while the device is being served; what it prints may then be older
than what the server knows.`,
		Example: `  sds inspect /dev/sdb
  sds inspect -o json /dev/sdb | jq .cluster`,
		Args: onePath,
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "table" && output != "json" {
				return usagef("--output %s: want table or json", output)
			}
			return runInspect(cmd, args[0], output)
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "table", "table or json")
	return cmd
}

func runInspect(cmd *cobra.Command, path, output string) (err error) {
	b, id, err := openStore(path, true)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close()) }()
	v := inspection{Path: path, Device: id.Device.String(), Size: id.Size, Capacity: id.Capacity,
		Starts: id.Starts, Clean: id.Clean}
	if !id.Cluster.IsZero() {
		v.Cluster = id.Cluster.String()
	}
	out := cmd.OutOrStdout()
	if output == "json" {
		enc := json.NewEncoder(out)
		enc.SetIndent("", "  ")
		return enc.Encode(v)
	}
	belongs := v.Cluster
	if belongs == "" {
		belongs = "none yet; it joins that of the first metadata manager it is served to"
	}
	stopped := "no: it is being served, or was not stopped; the next start recovers"
	if v.Clean {
		stopped = "yes"
	}
	for _, row := range [][2]string{
		{"path", v.Path}, {"device", v.Device}, {"cluster", belongs},
		{"size", cluster.FormatSize(uint64(v.Size))}, {"for data", cluster.FormatSize(uint64(v.Capacity))},
		{"starts", fmt.Sprint(v.Starts)}, {"stopped cleanly", stopped},
	} {
		fmt.Fprintf(out, "%-16s %s\n", row[0], row[1])
	}
	return nil
}
