// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"time"
)

// target is what fio is pointed at: an NBD URI, a block device or file, or what
// Args say of an engine of fio's own.
type target struct {
	URI  string
	Path string
	Args []string
	Env  []string
	Size uint64
	// NoFlush: the server knows no flush command; loads with fsync leave it out.
	NoFlush bool
}

// engine is the part of fio's command line that names the target.
func (t target) engine() []string {
	switch {
	case t.URI != "":
		return []string{"--ioengine=nbd", "--uri=" + t.URI}
	case t.Path != "":
		return []string{"--ioengine=io_uring", "--direct=1", "--filename=" + t.Path}
	}
	return t.Args
}

// direction is one of fio's "read" and "write" sections.
type direction struct {
	IOBytes  uint64  `json:"io_bytes"`
	TotalIOs uint64  `json:"total_ios"`
	RuntimeM float64 `json:"runtime"` // ms
	IOPS     float64 `json:"iops"`
	BWBytes  float64 `json:"bw_bytes"`
	Clat     latency `json:"clat_ns"`
}

type latency struct {
	Mean       float64            `json:"mean"`
	Percentile map[string]float64 `json:"percentile"`
}

type fioOutput struct {
	Jobs []struct {
		Error int       `json:"error"`
		Read  direction `json:"read"`
		Write direction `json:"write"`
		Sync  struct {
			Lat latency `json:"lat_ns"`
		} `json:"sync"`
	} `json:"jobs"`
}

// fioArgs builds the command line of one job.
func fioArgs(t target, l load, runtime time.Duration) []string {
	args := []string{
		"--name=" + l.Name, "--output-format=json", "--group_reporting", "--thread",
		"--rw=" + l.RW, "--bs=" + l.BS, "--time_based", "--randrepeat=0", "--norandommap",
		"--runtime=" + strconv.FormatInt(runtime.Milliseconds(), 10) + "ms",
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
	return append(args, t.engine()...)
}

// fill writes the whole target once, so that no load meets unallocated space.
func fill(ctx context.Context, t target) error {
	args := []string{"--name=fill", "--rw=write", "--bs=1m", "--iodepth=8", "--thread",
		"--size=" + strconv.FormatUint(t.Size, 10), "--refill_buffers", "--output-format=json"}
	if !t.NoFlush {
		args = append(args, "--end_fsync=1")
	}
	_, err := fio(ctx, t.Env, append(args, t.engine()...), 5*time.Minute)
	return err
}

// fio runs fio with its jobs reported as one; limit bounds it in time.
func fio(ctx context.Context, env, args []string, limit time.Duration) (fioOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, "fio", args...)
	cmd.Env = append(os.Environ(), env...)
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
