// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
)

// braidCluster is one mdm and a few sds, started by scripts/cluster and shared
// by the braid systems, each of which is a volume with an sdc of its own.
type braidCluster struct {
	Root   string // of the checkout
	Dir    string
	Sds    int
	Backed string // what scripts/cluster calls loop or file
	Bytes  uint64 // of each server's device
	up     bool
	env    map[string]string
}

func (c *braidCluster) script(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Root, "scripts", "cluster"), args...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("scripts/cluster %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
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

// run calls one of the built binaries with the cluster's environment.
func (c *braidCluster) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, filepath.Join(c.Root, "bin", name), args...)
	cmd.Env = append(os.Environ(), c.environ()...)
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w\n%s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

func (c *braidCluster) environ() []string {
	return []string{"BRAID_MDM=" + c.env["BRAID_MDM"]}
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
			env[k] = strings.Trim(v, `"'`)
		}
	}
	return env, s.Err()
}

// braid is one volume of the cluster behind `sdc serve`.
type braid struct {
	cluster  *braidCluster
	replicas int
	d        *daemon
}

func (s *braid) Name() string { return "braid-r" + strconv.Itoa(s.replicas) }

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
	volume := "bench" + strconv.Itoa(s.replicas)
	err := s.cluster.run(ctx, "scli", "volume", "create", volume,
		"--size", strconv.FormatUint(b.Size>>20, 10)+"M", "--replicas", strconv.Itoa(s.replicas))
	if err != nil {
		return target{}, err
	}
	socket := filepath.Join(s.cluster.Dir, volume+".sock")
	s.d, err = startDaemon(s.cluster.environ(), filepath.Join(s.cluster.Root, "bin", "sdc"),
		"serve", "--volume", volume, "--socket", socket)
	if err != nil {
		return target{}, err
	}
	if err := s.d.waitSocket(ctx, socket); err != nil {
		return target{}, err
	}
	t := target{URI: "nbd+unix:///?socket=" + socket, Size: b.Size}
	return t, fill(ctx, t)
}
