// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// braidCluster is one mdm and a few sds, started by scripts/cluster and shared
// by the braid systems, each of which is a volume with an sdc of its own.
type braidCluster struct {
	Root   string // of the checkout
	Bin    string // where the binaries are
	Dir    string
	Sds    int
	Backed string // what scripts/cluster calls loop or file
	Bytes  uint64 // of each server's device
	// Env is what its servers are started with besides: a slow test disk, say.
	Env []string
	up  bool
	env map[string]string
}

func (c *braidCluster) script(ctx context.Context, args ...string) error {
	_, err := call(ctx, 3*time.Minute, append(c.Env, "BRAID_BIN="+c.Bin),
		append([]string{filepath.Join(c.Root, "scripts", "cluster")}, args...)...)
	return err
}

func (c *braidCluster) start(ctx context.Context) error {
	if c.up {
		return nil
	}
	err := c.script(ctx, "up", "--dir", c.Dir, "--sds", strconv.Itoa(c.Sds),
		"--size", strconv.FormatUint(c.Bytes>>20, 10)+"M", "--backing", c.Backed)
	if err != nil {
		return err
	}
	c.up = true
	c.env, err = readEnv(filepath.Join(c.Dir, "env"))
	return err
}

func (c *braidCluster) stop() {
	if !c.up {
		return
	}
	c.up = false
	if err := c.script(context.Background(), "down", "--dir", c.Dir); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

func (c *braidCluster) environ() []string {
	return []string{"BRAID_MDM=" + c.env["BRAID_MDM"], "BRAID_RUN=" + c.env["BRAID_RUN"]}
}

func (c *braidCluster) pids(prefix string) []int {
	files, _ := filepath.Glob(filepath.Join(c.Dir, prefix+"*.pid"))
	var pids []int
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil {
			if pid, err := strconv.Atoi(strings.Fields(string(b) + " 0")[0]); err == nil && pid > 0 {
				pids = append(pids, pid)
			}
		}
	}
	return pids
}

// readEnv reads `export NAME=VALUE` lines; values may be quoted.
func readEnv(path string) (map[string]string, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	env := map[string]string{}
	s := bufio.NewScanner(f)
	for s.Scan() {
		k, v, ok := strings.Cut(strings.TrimPrefix(strings.TrimSpace(s.Text()), "export "), "=")
		if ok {
			env[k] = strings.ReplaceAll(strings.Trim(v, `"'`), `\`, "")
		}
	}
	return env, s.Err()
}

// braid is one volume of a cluster behind `sdc serve`.
type braid struct {
	cluster  *braidCluster
	name     string
	note     string
	replicas int
	size     uint64 // of the volume; 0: the backing's
	d        *daemon
}

func (s *braid) Name() string { return s.name }

func (s *braid) Settings() string {
	note := fmt.Sprintf("%d sds with one device each, 1 mdm, %d copies, checksums on (always)",
		s.cluster.Sds, s.replicas)
	if s.note != "" {
		note += "; " + s.note
	}
	return note
}

func (s *braid) Pids() map[string][]int {
	return map[string][]int{"sdc": {s.d.pid()}, "sds": s.cluster.pids("sds"), "mdm": s.cluster.pids("mdm")}
}

func (s *braid) Stop() {
	s.d.stop()
	s.cluster.stop()
}

func (s *braid) Start(ctx context.Context, b *backing) (target, error) {
	if err := s.cluster.start(ctx); err != nil {
		return target{}, err
	}
	size := s.size
	if size == 0 {
		size = b.Size
	}
	_, err := call(ctx, time.Minute, s.cluster.environ(), filepath.Join(s.cluster.Bin, "scli"), "volume", "create",
		s.name, "--size", strconv.FormatUint(size>>20, 10)+"M", "--replicas", strconv.Itoa(s.replicas))
	if err != nil {
		return target{}, err
	}
	socket := filepath.Join(s.cluster.Dir, s.name+".sock")
	s.d, err = startDaemon(s.cluster.environ(), filepath.Join(s.cluster.Bin, "sdc"),
		"serve", "--volume", s.name, "--socket", socket)
	if err != nil {
		return target{}, err
	}
	return target{URI: "nbd+unix:///?socket=" + socket, Size: size}, s.d.waitSocket(ctx, socket)
}
