// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"slices"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// headerTime bounds the header of a request.
const headerTime = 5 * time.Second

// Errors of Check.
var (
	ErrAddress = errors.New("it must be HOST:PORT")
	ErrExposed = errors.New("it can be reached from other machines, and there is neither encryption nor " +
		"authentication yet: give --insecure if the network is trusted")
	ErrNoListener = errors.New("--pprof needs --metrics HOST:PORT: profiles are shown there")
)

// Check looks at the flags before anything is done.
func Check(addr string, profiles, insecure bool) error {
	if addr == "" {
		if profiles {
			return ErrNoListener
		}
		return nil
	}
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("--metrics %s: %w", addr, ErrAddress)
	}
	if insecure {
		return nil
	}
	ips, err := net.LookupIP(host)
	if err != nil && host != "" {
		return fmt.Errorf("--metrics %s: %w", addr, err)
	}
	if host == "" || slices.ContainsFunc(ips, func(ip net.IP) bool { return !ip.IsLoopback() }) {
		return fmt.Errorf("--metrics %s: %w", addr, ErrExposed)
	}
	return nil
}

// Serve shows what the collectors say, and the Go runtime's and the process's own
// metrics, until stop is called. Without an address it does nothing.
func Serve(addr string, profiles bool, from ...prometheus.Collector) (url string, stop func(), err error) {
	if addr == "" {
		return "", func() {}, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return "", nil, fmt.Errorf("listen for metrics on %s: %w", addr, err)
	}
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	for _, c := range from {
		reg.MustRegister(c)
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	if profiles {
		Profiles(mux)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: headerTime}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(ln) // ends with Close
	}()
	return "http://" + ln.Addr().String() + "/metrics", func() {
		_ = server.Close()
		<-done
	}, nil
}

// Profiles adds Go's profiles to a listener, below /debug/pprof/.
func Profiles(mux *http.ServeMux) {
	mux.HandleFunc("GET /debug/pprof/", pprof.Index)
	mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
}
