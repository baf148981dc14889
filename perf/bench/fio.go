// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"strconv"
	"time"
)

// target is what fio is pointed at: an NBD URI, or a block device or file.
type target struct {
	URI  string
	Path string
	Size uint64
	// NoFlush: the server knows no flush command; loads with fsync leave it out.
	NoFlush bool
}

// direction is one of fio's "read" and "write" sections.
type direction struct {
	IOBytes  uint64  `json:"io_bytes"`
	TotalIOs uint64  `json:"total_ios"`
	RuntimeM float64 `json:"runtime"` // ms
	IOPS     float64 `json:"iops"`
	BWBytes  float64 `json:"bw_bytes"`
	Clat     struct {
		Mean       float64            `json:"mean"`
		Percentile map[string]float64 `json:"percentile"`
		N          float64            `json:"N"`
	} `json:"clat_ns"`
}

type fioOutput struct {
	Jobs []struct {
		Error int       `json:"error"`
		Read  direction `json:"read"`
		Write direction `json:"write"`
	} `json:"jobs"`
}

// fioArgs builds the command line of one job.
func fioArgs(t target, l load, runtime time.Duration) []string {
	args := []string{
		"--name=" + l.Name, "--output-format=json", "--group_reporting", "--thread",
		"--rw=" + l.RW, "--bs=" + l.BS, "--time_based", "--randrepeat=0", "--norandommap",
		"--runtime=" + strconv.FormatFloat(runtime.Seconds(), 'f', 1, 64),
		"--size=" + strconv.FormatUint(t.Size, 10),
		"--numjobs=" + strconv.Itoa(l.Conns), "--iodepth=" + strconv.Itoa(max(1, l.Depth/l.Conns)),
		"--percentile_list=50:99:99.9",
	}
	if l.RW == "randrw" {
		args = append(args, "--rwmixread="+strconv.Itoa(l.Mix))
	}
	if l.Fsync > 0 {
		args = append(args, "--fsync="+strconv.Itoa(l.Fsync))
	}
	if t.URI != "" {
		return append(args, "--ioengine=nbd", "--uri="+t.URI)
	}
	return append(args, "--ioengine=io_uring", "--direct=1", "--filename="+t.Path)
}

// fill writes the whole target once, so that no load meets unallocated space.
func fill(ctx context.Context, t target) error {
	args := []string{"--name=fill", "--rw=write", "--bs=1m", "--iodepth=8", "--thread",
		"--size=" + strconv.FormatUint(t.Size, 10), "--refill_buffers", "--output-format=json"}
	if !t.NoFlush {
		args = append(args, "--end_fsync=1")
	}
	if t.URI != "" {
		args = append(args, "--ioengine=nbd", "--uri="+t.URI)
	} else {
		args = append(args, "--ioengine=io_uring", "--direct=1", "--filename="+t.Path)
	}
	_, err := fio(ctx, args, 5*time.Minute)
	return err
}

// fio runs fio and merges its jobs; limit bounds it in time.
func fio(ctx context.Context, args []string, limit time.Duration) (fioOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return fioOutput{}, fmt.Errorf("fio %v: %w: %s", args, err, stderr.String())
	}
	// fio may print warnings before the JSON.
	b := stdout.Bytes()
	if i := bytes.IndexByte(b, '{'); i > 0 {
		b = b[i:]
	}
	var out fioOutput
	if err := json.Unmarshal(b, &out); err != nil {
		return out, fmt.Errorf("fio printed no JSON: %w", err)
	}
	if len(out.Jobs) == 0 {
		return out, fmt.Errorf("fio reported no job: %s", stderr.String())
	}
	for _, j := range out.Jobs {
		if j.Error != 0 {
			return out, fmt.Errorf("fio reports error %d: %s", j.Error, stderr.String())
		}
	}
	return out, nil
}
