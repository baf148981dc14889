// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// listen opens a socket for messages on a node.
func listen(t *testing.T, n *node) (c *net.UDPConn) {
	t.Helper()
	var err error
	n.do(func() { c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.ParseIP(n.addr)}) })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// arrives sends messages until one is there. Where one is expected, as many are sent
// as patience allows: who did not find an address asks for it again after a second.
// Otherwise a fifth of a second without one is enough.
func arrives(from, to *net.UDPConn, isExpected bool) bool {
	const wait = 20 * time.Millisecond
	tries := 10
	if isExpected {
		tries = int(patience / wait)
	}
	buf := make([]byte, 16)
	for range tries {
		_, _ = from.WriteTo([]byte("hello"), to.LocalAddr()) // an error is a message that does not arrive
		_ = to.SetReadDeadline(time.Now().Add(wait))
		if _, _, err := to.ReadFrom(buf); err == nil {
			for err == nil { // what else has come is no answer to the next question
				_, _, err = to.ReadFrom(buf)
			}
			return true
		}
	}
	return false
}

// ids are the namespaces of all nodes.
func (w *network) ids() (ids []string) {
	for _, n := range w.nodes {
		ids = append(ids, n.id)
	}
	return append(ids, w.hub.id)
}

// noNamespace waits until no thread of any process, and no open file of this one,
// holds one of the namespaces.
func noNamespace(t *testing.T, ids []string) {
	t.Helper()
	var held []string
	waitFor(t, "no namespace is left", func() bool {
		held = held[:0]
		links, _ := filepath.Glob("/proc/[0-9]*/task/[0-9]*/ns/net")
		files, _ := filepath.Glob("/proc/self/fd/*")
		for _, link := range append(links, files...) {
			if id, err := os.Readlink(link); err == nil && slices.Contains(ids, id) {
				held = append(held, link)
			}
		}
		return len(held) == 0
	}, func() string { return strings.Join(held, "\n") })
}

// noProcess: nobody runs who was started with this folder in the command line or
// the environment.
func noProcess(t *testing.T, dir string) {
	t.Helper()
	procs, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range procs {
		words, err := os.ReadFile(filepath.Join(p, "cmdline"))
		if err != nil || len(words) == 0 {
			continue
		}
		env, _ := os.ReadFile(filepath.Join(p, "environ"))
		if strings.Contains(string(words), dir) || strings.Contains(string(env), dir) {
			t.Errorf("%s still runs: %q", p, words)
		}
	}
}

// noLoop: no loop device is over a file of this folder.
func noLoop(t *testing.T, dir string) {
	t.Helper()
	loops, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, l := range loops {
		if path, err := os.ReadFile(l); err == nil && strings.Contains(string(path), dir) {
			t.Errorf("%s is over %s", l, path)
		}
	}
}
