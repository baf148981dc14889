// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"crypto/rand"
	_ "embed"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"text/template"
	"time"
)

// cephConf is the cluster's configuration: what Ceph offers to be quick on one
// machine (no checksums, no authentication, no debug log), and no cache in the
// client, because no other system here has one.
//
//go:embed ceph.conf.tmpl
var cephConf string

// cephGroups is the number of placement groups of the images' pool.
const cephGroups = 64

// cephCluster is one monitor, one manager and a few OSDs on the loopback address,
// in a folder of its own, with nothing of the machine's own configuration.
type cephCluster struct {
	Dir      string
	OSDs     int
	Replicas int
	up       bool
	mon, mgr *daemon
	osds     []*daemon
}

func (c *cephCluster) env() []string {
	return []string{"CEPH_CONF=" + filepath.Join(c.Dir, "ceph.conf")}
}

func (c *cephCluster) call(ctx context.Context, argv ...string) (string, error) {
	return call(ctx, time.Minute, c.env(), argv...)
}

func (c *cephCluster) daemon(argv ...string) (*daemon, error) {
	return startDaemon(c.env(), append(argv, "--foreground")...)
}

// uuid is a random one, as RFC 9562 writes it.
func uuid() string {
	var b [16]byte
	_, _ = rand.Read(b[:]) // never fails, says its documentation
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

func freePort() (int, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// start brings the cluster up with one device of bytes for each OSD.
func (c *cephCluster) start(ctx context.Context, b *backing, bytes uint64) error {
	if c.up {
		return nil
	}
	c.up = true
	fsid := uuid()
	address, err := c.configure(fsid)
	if err != nil {
		return err
	}
	monmap := filepath.Join(c.Dir, "monmap")
	if _, err := c.call(ctx, "monmaptool", "--create", "--fsid", fsid, "--addv", "a", address, monmap); err != nil {
		return err
	}
	if _, err := c.call(ctx, "ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap); err != nil {
		return err
	}
	if c.mon, err = c.daemon("ceph-mon", "-i", "a"); err != nil {
		return err
	}
	if _, err := c.call(ctx, "ceph", "status"); err != nil {
		return err
	}
	if c.mgr, err = c.daemon("ceph-mgr", "-i", "x"); err != nil {
		return err
	}
	for i := range c.OSDs {
		if err := c.addOSD(ctx, b, i, bytes); err != nil {
			return err
		}
	}
	if _, err := c.call(ctx, "ceph", "osd", "pool", "create", "rbd", strconv.Itoa(cephGroups)); err != nil {
		return err
	}
	if _, err := c.call(ctx, "rbd", "pool", "init", "rbd"); err != nil {
		return err
	}
	return c.waitClean(ctx)
}

// configure writes ceph.conf and returns the monitor's address.
func (c *cephCluster) configure(fsid string) (string, error) {
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return "", err
	}
	port, err := freePort()
	if err != nil {
		return "", err
	}
	address := "[v2:127.0.0.1:" + strconv.Itoa(port) + "]"
	t, err := template.New("ceph.conf").Parse(cephConf)
	if err != nil {
		return "", err
	}
	var text bytes.Buffer
	err = t.Execute(&text, map[string]any{"Dir": c.Dir, "FSID": fsid, "Mon": address, "Replicas": c.Replicas})
	if err != nil {
		return "", err
	}
	return address, os.WriteFile(filepath.Join(c.Dir, "ceph.conf"), text.Bytes(), 0o644)
}

func (c *cephCluster) addOSD(ctx context.Context, b *backing, i int, bytes uint64) error {
	path, err := b.pathOf("ceph"+strconv.Itoa(i), bytes, b.Kind == onTmpfs)
	if err != nil {
		return err
	}
	folder := filepath.Join(c.Dir, "osd"+strconv.Itoa(i))
	if err := os.MkdirAll(folder, 0o755); err != nil {
		return err
	}
	if err := os.Symlink(path, filepath.Join(folder, "block")); err != nil {
		return err
	}
	id := uuid()
	if _, err := c.call(ctx, "ceph", "osd", "new", id, strconv.Itoa(i)); err != nil {
		return err
	}
	osd := []string{"ceph-osd", "-i", strconv.Itoa(i), "--osd-data", folder}
	if _, err := c.call(ctx, append(osd, "--mkfs", "--osd-uuid", id, "--no-mon-config")...); err != nil {
		return err
	}
	d, err := c.daemon(osd...)
	if err != nil {
		return err
	}
	c.osds = append(c.osds, d)
	return nil
}

// waitClean waits until all placement groups are active and clean.
func (c *cephCluster) waitClean(ctx context.Context) error {
	return until(ctx, time.Minute, "clean placement groups in Ceph", func() (bool, error) {
		out, err := c.call(ctx, "ceph", "status", "--format", "json")
		if err != nil {
			return false, err
		}
		var status struct {
			PGs struct {
				States []struct {
					Name  string `json:"state_name"`
					Count int    `json:"count"`
				} `json:"pgs_by_state"`
				Count int `json:"num_pgs"`
			} `json:"pgmap"`
		}
		if err := json.Unmarshal([]byte(out), &status); err != nil {
			return false, fmt.Errorf("ceph status printed no JSON: %w", err)
		}
		s := status.PGs
		return len(s.States) == 1 && s.States[0].Name == "active+clean" && s.Count >= cephGroups, nil
	})
}

func (c *cephCluster) stop() {
	if !c.up {
		return
	}
	c.up = false
	for _, d := range append(c.osds, c.mgr, c.mon) {
		d.stop()
	}
}

func (c *cephCluster) pids() map[string][]int {
	pids := map[string][]int{"ceph-mon, -mgr": {c.mon.pid(), c.mgr.pid()}}
	for _, d := range c.osds {
		pids["ceph-osd"] = append(pids["ceph-osd"], d.pid())
	}
	return pids
}

// ceph is one RBD image, through librbd in fio or through qemu-nbd.
type ceph struct {
	cluster *cephCluster
	direct  bool
	qemu    *daemon
}

func (s *ceph) Name() string {
	if s.direct {
		return "ceph-rbd"
	}
	return "ceph-qemu-nbd"
}

func (s *ceph) Settings() string {
	way := "qemu-nbd --cache=none; fio's nbd engine"
	if s.direct {
		way = "librbd in fio (its CPU time is fio's)"
	}
	return fmt.Sprintf("%d OSDs (BlueStore, 1 GiB of memory target each), %d copies, checksums, authentication,"+
		" debug logs and the client's cache off; %s", s.cluster.OSDs, s.cluster.Replicas, way)
}

func (s *ceph) Pids() map[string][]int {
	pids := s.cluster.pids()
	if s.qemu != nil {
		pids["qemu-nbd"] = []int{s.qemu.pid()}
	}
	return pids
}

func (s *ceph) Start(ctx context.Context, b *backing) (target, error) {
	// Both images with their copies, BlueStore's own 300 MiB, and a third free.
	room := (2*b.Size*uint64(s.cluster.Replicas)/uint64(s.cluster.OSDs)+300<<20)*3/2 + 1<<30
	if err := s.cluster.start(ctx, b, room); err != nil {
		return target{}, err
	}
	image := s.Name()
	_, err := s.cluster.call(ctx, "rbd", "create", image, "--size", strconv.FormatUint(b.Size>>20, 10)+"M")
	if err != nil {
		return target{}, err
	}
	t := target{Size: b.Size, Env: s.cluster.env()}
	if s.direct {
		t.Args = []string{"--ioengine=rbd", "--clientname=admin", "--pool=rbd", "--rbdname=" + image}
		return t, nil
	}
	socket := filepath.Join(s.cluster.Dir, image+".sock")
	s.qemu, err = startDaemon(s.cluster.env(), "qemu-nbd", "--format=raw", "--cache=none", "--discard=unmap",
		"--persistent", "--shared=8", "--export-name=", "--socket="+socket,
		"rbd:rbd/"+image+":conf="+filepath.Join(s.cluster.Dir, "ceph.conf"))
	if err != nil {
		return target{}, err
	}
	t.URI = "nbd+unix:///?socket=" + socket
	return t, s.qemu.waitSocket(ctx, socket)
}

func (s *ceph) Stop() {
	s.qemu.stop()
	s.cluster.stop()
}
