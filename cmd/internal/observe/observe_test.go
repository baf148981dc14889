// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"errors"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func get(t *testing.T, url string) (int, string) {
	t.Helper()
	r, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer r.Body.Close()
	b, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	return r.StatusCode, string(b)
}

// Goal: metrics are served; profiles only where they were asked for.
func TestServe(t *testing.T) {
	for _, profiles := range []bool{false, true} {
		gauge := prometheus.NewGauge(prometheus.GaugeOpts{Name: "braid_test", Help: "A test."})
		gauge.Set(7)
		url, stop, err := Serve("127.0.0.1:0", profiles, gauge)
		if err != nil {
			t.Fatal(err)
		}
		if code, body := get(t, url); code != 200 || !strings.Contains(body, "braid_test 7") ||
			!strings.Contains(body, "go_goroutines") {
			t.Errorf("metrics: %d\n%s", code, body)
		}
		want := map[bool]int{false: 404, true: 200}[profiles]
		if code, _ := get(t, strings.Replace(url, "/metrics", "/debug/pprof/", 1)); code != want {
			t.Errorf("profiles %v: code %d", profiles, code)
		}
		stop()
	}
	if url, stop, err := Serve("", false); url != "" || err != nil {
		t.Error(url, err)
	} else {
		stop()
	}
}

// Goal: an address that others can reach has to be asked for.
func TestCheck(t *testing.T) {
	for _, c := range []struct {
		addr               string
		profiles, insecure bool
		want               error
	}{
		{"", false, false, nil},
		{"", true, false, ErrNoListener},
		{"127.0.0.1:0", true, false, nil},
		{"localhost:9", false, false, nil},
		{"0.0.0.0:9", false, false, ErrExposed},
		{":9", false, false, ErrExposed},
		{":9", false, true, nil},
		{"nonsense", false, true, ErrAddress},
	} {
		if err := Check(c.addr, c.profiles, c.insecure); !errors.Is(err, c.want) {
			t.Errorf("%q, profiles %v, insecure %v: %v", c.addr, c.profiles, c.insecure, err)
		}
	}
}
