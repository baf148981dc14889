// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"encoding/json"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"time"

	"connectrpc.com/connect"

	"braid/mdm/pb/pbconnect"
)

// Limits of the API.
const (
	maxRequestBytes = 4 << 20
	maxHeaderBytes  = 64 << 10
	headerTimeout   = 10 * time.Second
	pingAfter       = 10 * time.Second // silent HTTP/2 connections are pinged: a dead peer's streams end
	pingTimeout     = 5 * time.Second
)

// newServer makes the API's server: Connect and gRPC over HTTP/2 without TLS,
// JSON over HTTP/1.1 for curl, health and metrics. running ends the streams.
func (m *Member) newServer(running context.Context) *http.Server {
	mux := http.NewServeMux()
	counted := newMetrics(m)
	mux.Handle(pbconnect.NewMdmHandler(&api{m}, connect.WithReadMaxBytes(maxRequestBytes),
		connect.WithInterceptors(counted.interceptor())))
	mux.HandleFunc("GET /healthz", m.health)
	mux.HandleFunc("GET /backup", m.handleBackup)
	mux.HandleFunc("GET /restore", m.handleRestore)
	mux.HandleFunc("POST /restore/map", m.handleRestore)
	mux.HandleFunc("POST /restore/confirm", m.handleRestore)
	mux.Handle("GET /metrics", counted.handler())
	if m.config.Pprof {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	protocols := new(http.Protocols)
	protocols.SetHTTP1(true)
	protocols.SetUnencryptedHTTP2(true)
	return &http.Server{
		Handler: mux, Protocols: protocols, MaxHeaderBytes: maxHeaderBytes,
		ReadHeaderTimeout: headerTimeout,
		HTTP2:             &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
		BaseContext:       func(net.Listener) context.Context { return running },
		ErrorLog:          slog.NewLogLogger(m.config.Log.Handler(), slog.LevelDebug),
	}
}

// health answers 200 where changes can be made through this member: it leads,
// or knows who does.
func (m *Member) health(w http.ResponseWriter, r *http.Request) {
	answer := struct {
		Name   string `json:"name"`
		Leads  bool   `json:"leads"`
		Leader string `json:"leader"`
	}{Name: m.config.Name, Leads: m.leads() != nil, Leader: m.addr}
	if !answer.Leads {
		answer.Leader = m.leaderAddr(r.Context())
	}
	w.Header().Set("Content-Type", "application/json")
	if answer.Leader == "" {
		w.WriteHeader(http.StatusServiceUnavailable)
	}
	json.NewEncoder(w).Encode(answer) //nolint:errcheck // the client is gone then
}
