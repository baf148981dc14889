// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"braid/mdm/client"
	"braid/mdm/state"
)

// Terms and intervals.
const (
	defaultServerLease  = 6 * time.Second
	defaultSessionLease = 30 * time.Second
	tickInterval        = 500 * time.Millisecond
	// leaderTerm is how long a dead leader is waited for, seconds. etcd grants no
	// less than one and a half of its election timeouts (1 s).
	leaderTerm     = 3
	commitTimeout  = 4 * time.Second // below the clients' patience with one member
	connectTimeout = 3 * time.Second
	startTimeout   = 60 * time.Second // three members wait for each other
	stopTimeout    = time.Second
	rewatchAfter   = 100 * time.Millisecond
	reloadAfter    = time.Second
	conflictTries  = 4
)

// Config says how a Member runs.
type Config struct {
	DataDir  string
	Listen   string   // HOST:PORT of the API; port 0: any
	Name     string   // of this member; unique in the cluster
	Cluster  string   // NAME=PEER-URL,… of all members; empty: this one alone
	Etcd     []string // URLs of an etcd that runs already; empty: embedded
	Insecure bool     // listen on addresses that others can reach

	// Advertise is the HOST:PORT that the other members name to clients; empty:
	// where it listens.
	Advertise string

	// Restore is the path of a backup that an empty store is filled from; empty: a
	// cluster is founded there.
	Restore string

	ServerLease  time.Duration
	SessionLease time.Duration

	// AutoEvict takes copies that are away or broken out of the in-sync sets and
	// brings them back by resync. Off: groups wait for their copies.
	AutoEvict bool

	// Probe asks whether a data server lives at an address: nil when it answered
	// within the context. mdm asks when a client says that it cannot reach it. nil:
	// one that accepts a connection lives.
	Probe func(ctx context.Context, addr string) error

	// Hook is a program that the autopilot runs when no spare device is left, and that
	// is to bring one; HookTimeout bounds it. Empty: none. It is a flag alone: who may
	// talk to the API must not choose what runs here.
	Hook        string
	HookTimeout time.Duration

	AllowDrills bool // faults may be ordered through the API

	Pprof bool // serve Go's profiles below /debug/pprof/ of the API's port

	Log *slog.Logger

	now      func() time.Time // tests turn the clock
	between  func()           // tests change the state between the two plans of tend
	skipSync bool             // tests do not wait for the disk
}

func (c Config) withDefaults() (Config, error) {
	if c.DataDir == "" {
		return c, errors.New("no data directory: give --data-dir DIR")
	}
	c.Listen = cmp.Or(c.Listen, client.DefaultAddr)
	c.ServerLease = cmp.Or(c.ServerLease, defaultServerLease)
	c.SessionLease = cmp.Or(c.SessionLease, defaultSessionLease)
	if c.Log == nil {
		c.Log = slog.Default()
	}
	if c.now == nil {
		c.now = time.Now
	}
	if c.Probe == nil {
		c.Probe = connects
	}
	if c.Cluster != "" && len(c.Etcd) > 0 {
		return c, errors.New("--cluster is for the embedded etcd, --etcd for one that runs already: " +
			"give one of them")
	}
	if c.Name == "" && c.Cluster != "" {
		return c, errors.New("--cluster needs --name, which says which of its members this one is")
	}
	if c.Name == "" {
		host, err := os.Hostname()
		if err != nil {
			return c, fmt.Errorf("find a name for this member: %w; give --name", err)
		}
		c.Name = host
		if len(c.Etcd) > 0 {
			c.Name += ":" + c.Listen // several may share a host
		}
	}
	if strings.ContainsAny(c.Name, "/=, ") {
		return c, fmt.Errorf("member name %q: it may not contain '/', '=', ',' or spaces", c.Name)
	}
	return c, allowListen("--listen", c.Listen, c.Insecure)
}

// connects is the plainest Probe.
func connects(ctx context.Context, addr string) error {
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	return conn.Close()
}

// policy is what the state machine is to do by itself.
func (c Config) policy() state.Policy {
	return state.Policy{Evict: c.AutoEvict, Resync: c.AutoEvict}
}

// reachable is the address that others are told: where the API listens, or
// where that says "everywhere", an address of this host.
func (c Config) reachable(listening net.Addr) (string, error) {
	if c.Advertise != "" {
		return c.Advertise, nil
	}
	tcp, ok := listening.(*net.TCPAddr)
	if !ok || !tcp.IP.IsUnspecified() {
		return listening.String(), nil
	}
	port := strconv.Itoa(tcp.Port)
	if c.Cluster != "" {
		own, err := c.peerURL()
		if err != nil {
			return "", err
		}
		if ip := net.ParseIP(own.Hostname()); ip == nil || !ip.IsUnspecified() {
			return net.JoinHostPort(own.Hostname(), port), nil
		}
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		return "", fmt.Errorf("find an address of this host to tell others: %w; give --advertise", err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.IsGlobalUnicast() {
			return net.JoinHostPort(n.IP.String(), port), nil
		}
	}
	return net.JoinHostPort("127.0.0.1", port), nil
}

// allowListen refuses addresses that other hosts can reach, as long as there is
// no mutual TLS.
func allowListen(flag, addr string, insecure bool) error {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return fmt.Errorf("%s %s: %w; write it as HOST:PORT", flag, addr, err)
	}
	if insecure || host == "localhost" {
		return nil
	}
	if ip := net.ParseIP(host); ip != nil && ip.IsLoopback() {
		return nil
	}
	return fmt.Errorf("%s %s: anyone who reaches that address could change the cluster, there is no "+
		"authentication yet; listen on 127.0.0.1, or accept the risk on a trusted network with --insecure",
		flag, addr)
}

// peerURL finds this member in NAME=URL,… and checks the list.
func (c Config) peerURL() (*url.URL, error) {
	var own *url.URL
	names := map[string]bool{}
	for part := range strings.SplitSeq(c.Cluster, ",") {
		name, text, found := strings.Cut(strings.TrimSpace(part), "=")
		u, err := url.Parse(text)
		if !found || name == "" || err != nil || u.Scheme != "http" || u.Port() == "" {
			return nil, fmt.Errorf("--cluster: %q is not NAME=http://HOST:PORT", part)
		}
		if names[name] {
			return nil, fmt.Errorf("--cluster: the name %s appears twice", name)
		}
		names[name] = true
		if name == c.Name {
			own = u
		}
	}
	if own == nil {
		return nil, fmt.Errorf("--cluster %s: --name %s is not in it", c.Cluster, c.Name)
	}
	return own, allowListen("--cluster "+c.Name+"=", own.Host, c.Insecure)
}
