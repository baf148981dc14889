// SPDX-License-Identifier: Apache-2.0

//go:build faults

package faults

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"

	model "braid/cluster"
)

// finish ends the cluster and looks at all that is left: the volume is equal to the
// mirror, no buffer is out, everybody ends cleanly, each device is in order, both
// copies of each chunk are equal, and no process, loop device or namespace stays.
func (l *load) finish() {
	l.t.Helper()
	t, c := l.t, l.c
	l.compare()
	l.client.stop(t)
	for _, who := range servers {
		c.noBuffer(t, who)
	}
	for _, who := range append(servers[:len(servers):len(servers)], manager) {
		c.daemons[who].stop(t)
	}
	for _, who := range servers {
		c.check(t, who)
	}
	c.copies(t)
	ids := c.net.ids()
	c.net.close()
	noProcess(t, c.dir)
	noProcess(t, c.disks)
	noLoop(t, c.disks)
	noNamespace(t, ids)
}

// noBuffer: a server that nobody uses has all its buffers.
func (c *cluster) noBuffer(t *testing.T, who string) {
	t.Helper()
	var says []string
	waitFor(t, who+" has its buffers back", func() bool {
		says = nil
		found, out := 0, 0
		for line := range strings.Lines(c.metrics(t, who)) {
			name, value, _ := strings.Cut(strings.TrimSpace(line), "} ")
			if strings.Contains(name, "buffers_out{") {
				says = append(says, line)
				found++
				if value != "0" {
					out++
				}
			}
		}
		return found > 0 && out == 0
	}, func() string { return strings.Join(says, "") })
}

// metrics are a server's metrics.
func (c *cluster) metrics(t *testing.T, who string) string {
	t.Helper()
	conn, err := c.net.nodes[who].dial(metricsAPI)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	fmt.Fprintf(conn, "GET /metrics HTTP/1.0\r\n\r\n")
	answer, err := io.ReadAll(conn)
	if err != nil {
		t.Fatalf("metrics of %s: %v", who, err)
	}
	return string(answer)
}

// check is `sds check`: all is right, and as it was stopped cleanly, nothing is left
// to be settled.
func (c *cluster) check(t *testing.T, who string) {
	t.Helper()
	out := c.run(t, who, "sds", "check", c.disk(who), "-o", "json")
	var found struct{ Chunks, Blocks, Uncertain, Torn, Total int }
	if err := json.Unmarshal([]byte(out), &found); err != nil {
		t.Fatal(err)
	}
	if found.Chunks == 0 || found.Uncertain+found.Torn+found.Total > 0 {
		t.Errorf("%s: sds check says %s", who, out)
	}
}

// copies compares the servers' copies of each chunk. A chunk that one server alone
// has is one of zeroes: the other one has given it back, or never had it.
func (c *cluster) copies(t *testing.T) {
	t.Helper()
	type copied struct {
		who  string
		data []byte
	}
	chunks := map[place][]copied{}
	for _, who := range servers {
		for at, data := range readDevice(t, c.disk(who)) {
			chunks[at] = append(chunks[at], copied{who, data})
		}
	}
	pairs := 0
	zeroes := make([]byte, model.ChunkSize)
	for at, copies := range chunks {
		if len(copies) > 2 {
			t.Errorf("%v has %d copies", at, len(copies))
			continue
		}
		one, other := copies[0], copied{"nobody", zeroes}
		if len(copies) == 2 {
			other = copies[1]
			pairs++
		}
		for i := 0; i < len(zeroes); i += block {
			if !bytes.Equal(one.data[i:i+block], other.data[i:i+block]) {
				t.Errorf("%v: block %d of %s differs from that of %s", at, i/block, one.who, other.who)
			}
		}
	}
	t.Logf("both copies of %d chunks of %d are equal", pairs, len(chunks))
	if pairs < volumeSize/model.ChunkSize {
		t.Errorf("only %d chunks have two copies", pairs)
	}
}
