// SPDX-License-Identifier: Apache-2.0

//go:build interop

package interop

import (
	"io"
	"net/http"
	"regexp"
	"strings"
	"testing"
	"time"
)

type latency struct {
	Count uint64
	P99US float64 `json:"p99_us"`
}

type topOfClient struct {
	Volumes []struct {
		Volume, State string
		Read, Write   latency
		Devices       []struct {
			Server, State string
			Write         latency
			Steps         map[string]latency
		}
	}
}

type topOfServers struct {
	Health  string
	Devices []struct {
		Server, State string
		Read, Write   latency
	}
}

type slowRequest struct {
	Volume, Op string
	TotalUS    int64 `json:"total_us"`
	Hops       []struct {
		Server, Status string
		SentUS         int64 `json:"sent_us"`
		AnsweredUS     int64 `json:"answered_us"`
		NetworkUS      int64 `json:"network_us"`
		ServerUS       int64 `json:"server_us"`
		StoreUS        int64 `json:"store_us"`
	}
}

type whyReply struct {
	Attachment struct{ State string }
	Waits      []wait
}

// wait is one of its entries.
type wait struct {
	Server, Reason, Why, Next, Op string
	Requests                      int
}

// Goal: top, trace and the metrics show a load as it runs: on the client, on each
// server, and step by step. Method: fio on an export of a cluster of processes.
func TestWatchALoad(t *testing.T) {
	c := up(t)
	c.volume(t, "db", "64M")
	e := c.serve(t, "db", "--metrics", "127.0.0.1:0", "--pprof")
	load := c.launch(t, "fio", "--name=load", "--ioengine=nbd", "--uri="+e.uri, "--rw=randrw", "--bs=4k",
		"--iodepth=8", "--size=32m", "--time_based", "--runtime=60", "--fsync=64", "--thread")
	load.until(t, "top shows the load", func() bool {
		v := decode[topOfClient](t, c.do(t, "sdc", "top", "--once", "--interval", "300ms", "-o", "json")).Volumes
		if len(v) != 1 || v[0].Volume != "db" || v[0].Read.Count == 0 || v[0].Write.P99US <= 0 ||
			len(v[0].Devices) != 3 {
			return false
		}
		busy := 0
		for _, d := range v[0].Devices {
			if d.State == "connected" && d.Write.Count > 0 && d.Steps["store"].Count > 0 {
				busy++
			}
		}
		return busy == 3
	})
	servers := decode[topOfServers](t, c.do(t, "scli", "top", "--once", "--interval", "500ms", "-o", "json"))
	for _, d := range servers.Devices {
		if d.State != "up" || d.Write.Count == 0 || d.Write.P99US <= 0 {
			t.Errorf("a device that is under load is shown as %+v", d)
		}
	}
	if len(servers.Devices) != 3 || servers.Health != "ok" {
		t.Errorf("servers %+v", servers)
	}
	if text := c.do(t, "scli", "top", "--once", "--interval", "300ms"); !strings.Contains(text, "sds3") {
		t.Errorf("scli top shows\n%s", text)
	}
	checkTrace(t, decode[[]slowRequest](t, c.do(t, "sdc", "trace", "--op", "write", "-o", "json")))
	page := e.metricsPage(t)
	for _, line := range []string{`braid_sdc_request_seconds_count\{op="write",volume="db"\} [1-9]`,
		`braid_sdc_device_connected\{device="[1-3]",server="sds2",volume="db"\} 1`,
		`braid_sdc_step_seconds_count\{step="cluster",volume="db"\} [1-9]`} {
		if !regexp.MustCompile(line).MatchString(page) {
			t.Errorf("the metrics have nothing like %s", line)
		}
	}
	_ = load.cmd.Process.Kill()
	<-load.ended
}

// checkTrace looks at the slowest writes: two servers each, whose times fit.
func checkTrace(t *testing.T, list []slowRequest) {
	t.Helper()
	writes := 0
	for _, r := range list {
		if r.Volume != "db" || r.TotalUS <= 0 {
			t.Errorf("slow request %+v", r)
		}
		if r.Op != "write" {
			t.Errorf("asked for writes, sdc trace shows %+v", r)
			continue
		}
		writes++
		if len(r.Hops) != 2 || r.Hops[0].Server == r.Hops[1].Server {
			t.Errorf("a write has the hops %+v", r.Hops)
		}
		for _, h := range r.Hops {
			took := h.AnsweredUS - h.SentUS
			if h.Status != "ok" || h.NetworkUS+h.ServerUS+h.StoreUS > took+2 || h.AnsweredUS > r.TotalUS+1 {
				t.Errorf("hop %+v of a write that took %d", h, r.TotalUS)
			}
		}
	}
	if writes == 0 {
		t.Errorf("no write is among the slowest requests: %+v", list)
	}
}

// metricsPage reads what the export says to Prometheus.
func (e *export) metricsPage(t *testing.T) string {
	t.Helper()
	url := regexp.MustCompile(`http://[0-9.:]+/metrics`).FindString(e.log.String())
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	page, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(page)
}

// Goal: when the only copy's server is dead, why names it, the reason and what
// comes next; status says what to do; both are content when it is back. Method: a
// volume of one copy, kill -9 of all servers under load.
func TestWhyAndStatusOfAnOutage(t *testing.T) {
	c := up(t, "--sds", "1")
	c.volume(t, "one", "64M", "--replicas", "1")
	e := c.serve(t, "one")
	c.script(t, "kill", "sds1")
	io := c.launch(t, "qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", "-c", "flush", e.uri)
	var why whyReply
	io.until(t, "why names the server", func() bool {
		why = decode[whyReply](t, c.do(t, "sdc", "why", "--volume", "one", "-o", "json"))
		return len(why.Waits) > 0 && why.Waits[0].Reason == "not-connected"
	})
	w := why.Waits[0]
	if w.Server != "sds1" || w.Requests < 1 || w.Op != "write" || !strings.Contains(w.Next, "only its return helps") ||
		why.Attachment.State != "waiting" {
		t.Errorf("why says %+v", why)
	}
	if text := c.do(t, "sdc", "why", "--volume", "one"); !strings.Contains(text, "of sds1") ||
		!strings.Contains(text, "next:") {
		t.Errorf("why says\n%s", text)
	}
	type status struct {
		Health string
		Next   []string
	}
	io.until(t, "status has noticed", func() bool {
		s := decode[status](t, c.do(t, "scli", "status", "-o", "json"))
		return s.Health == "unavailable" && len(s.Next) > 0 && strings.Contains(s.Next[0], "start sds1")
	})
	if text := c.do(t, "scli", "status"); !strings.Contains(text, "nothing is lost") ||
		!strings.Contains(text, "down") {
		t.Errorf("status says\n%s", text)
	}
	if events := c.do(t, "scli", "events"); !strings.Contains(events, "sds1") ||
		!strings.Contains(events, "server-down") {
		t.Errorf("events say\n%s", events)
	}
	c.script(t, "start", "sds1")
	select {
	case <-io.ended:
	case <-time.After(patience):
		t.Fatal("the write did not go on when the server was back")
	}
	if code := io.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("the write ended with %d", code)
	}
	if text := c.do(t, "sdc", "why", "--volume", "one"); !strings.Contains(text, "no request is in flight") {
		t.Errorf("why says afterwards\n%s", text)
	}
}
