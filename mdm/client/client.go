// SPDX-License-Identifier: Apache-2.0

package client

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"

	"braid/mdm/pb/pbconnect"
)

// DefaultAddr is where mdm listens and where its clients look for it.
const DefaultAddr = "127.0.0.1:7400"

// LeaderKey is the metadata key under which a member that does not lead names
// the one that does.
const LeaderKey = "braid-leader"

// How long things take at most.
const (
	defaultPatience = 15 * time.Second
	attemptTimeout  = 5 * time.Second // one member, one try; it may be waiting for etcd
	firstBackOff    = 50 * time.Millisecond
	longestBackOff  = time.Second
	dialTimeout     = 2 * time.Second
	pingAfter       = 5 * time.Second // a silent connection is pinged, so that a hung peer is noticed
	pingTimeout     = 3 * time.Second
)

// Options change how a Client behaves. The zero value is right for daemons.
type Options struct {
	// Patience is how long a call keeps trying while no member answers, where
	// its context does not end first. 0 means 15 s.
	Patience time.Duration
}

// Client talks to the metadata managers of one cluster.
type Client struct {
	addrs    []string
	patience time.Duration
	http     *http.Client
	pool     *http.Transport

	mu      sync.Mutex // guards what follows; never held across a call
	leader  string     // who answered last, or was named as the leader; empty: unknown
	members map[string]pbconnect.MdmClient
	server  string // the data server that this is the client of; empty: none
}

// New returns a client of the members at addrs (HOST:PORT). It does not
// connect yet.
func New(addrs []string, o Options) (*Client, error) {
	c := &Client{patience: o.Patience, members: map[string]pbconnect.MdmClient{}}
	if c.patience == 0 {
		c.patience = defaultPatience
	}
	for _, list := range addrs {
		for addr := range strings.SplitSeq(list, ",") {
			addr = strings.TrimSuffix(strings.TrimPrefix(strings.TrimSpace(addr), "http://"), "/")
			if addr == "" || slices.Contains(c.addrs, addr) {
				continue
			}
			if _, _, err := net.SplitHostPort(addr); err != nil {
				return nil, fmt.Errorf("metadata manager's address %q: %w; write it as HOST:PORT, "+
					"several separated by commas", addr, err)
			}
			c.addrs = append(c.addrs, addr)
		}
	}
	if len(c.addrs) == 0 {
		return nil, errors.New("no address of a metadata manager: give --mdm HOST:PORT[,…] " +
			"or set BRAID_MDM")
	}
	// h2c with prior knowledge: calls and watches share one connection.
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	c.pool = &http.Transport{
		Protocols:   protocols,
		DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext,
		HTTP2:       &http.HTTP2Config{SendPingTimeout: pingAfter, PingTimeout: pingTimeout},
	}
	c.http = &http.Client{Transport: c.pool}
	return c, nil
}

// Close ends the connections.
func (c *Client) Close() error {
	c.pool.CloseIdleConnections()
	return nil
}

// Addrs returns the addresses that the client was given.
func (c *Client) Addrs() []string { return slices.Clone(c.addrs) }

func (c *Client) member(addr string) pbconnect.MdmClient {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.members[addr]
	if m == nil {
		m = pbconnect.NewMdmClient(c.http, "http://"+addr)
		c.members[addr] = m
	}
	return m
}

func (c *Client) setLeader(addr string) {
	c.mu.Lock()
	c.leader = addr
	c.mu.Unlock()
}

// candidate returns the member for the n-th try: whoever is thought to lead
// first, then one address after the other.
func (c *Client) candidate(n int) string {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.leader != "" {
		return c.leader
	}
	return c.addrs[n%len(c.addrs)]
}

// call tries members until one answers. Every call may be sent again after its
// answer was lost: requests that make something new carry an identity.
func call[Req, Resp any](ctx context.Context, c *Client, op string, req *Req,
	rpc func(pbconnect.MdmClient, context.Context, *connect.Request[Req]) (*connect.Response[Resp], error),
) (*Resp, error) {
	caller := ctx
	ctx, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	backOff := firstBackOff
	var last error
	repeated := false
	for try := 0; ; try++ {
		addr := c.candidate(try)
		resp, err := attempt(ctx, c.member(addr), req, rpc)
		if err == nil {
			c.setLeader(addr)
			return resp.Msg, nil
		}
		if answered(err) {
			c.setLeader(addr)
			return nil, &OpError{Op: op, Kind: kindOf(err), Err: err, Repeated: repeated}
		}
		repeated = repeated || !unsent(err)
		if last == nil || ctx.Err() == nil {
			last = err // what the deadline cut short teaches less than what came before
		}
		if leader := leaderOf(err); leader != "" && leader != addr {
			c.setLeader(leader)
			if try < 2*len(c.addrs) {
				continue
			}
		} else {
			c.setLeader("")
		}
		if !pause(ctx, backOff) {
			if caller.Err() != nil {
				return nil, &OpError{Op: op, Err: caller.Err(), Repeated: repeated}
			}
			return nil, c.unreachable(op, last, repeated)
		}
		backOff = min(2*backOff, longestBackOff)
	}
}

func attempt[Req, Resp any](ctx context.Context, m pbconnect.MdmClient, req *Req,
	rpc func(pbconnect.MdmClient, context.Context, *connect.Request[Req]) (*connect.Response[Resp], error),
) (*connect.Response[Resp], error) {
	ctx, cancel := context.WithTimeout(ctx, attemptTimeout)
	defer cancel()
	return rpc(m, ctx, connect.NewRequest(req))
}

func (c *Client) unreachable(op string, err error, repeated bool) error {
	return &OpError{Op: op, Addrs: c.addrs, Kind: ErrUnreachable, Err: err, Repeated: repeated}
}

// leaderOf returns the leader that a member named when it refused a call.
func leaderOf(err error) string {
	var e *connect.Error
	if errors.As(err, &e) {
		return e.Meta().Get(LeaderKey)
	}
	return ""
}

// pause waits; false means that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
