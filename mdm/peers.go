// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"net/http"
	"sync"
	"time"

	"connectrpc.com/connect"

	"braid/mdm/pb/pbconnect"
)

// forwardedKey marks a question that a member passes on, so that two members
// with different ideas of who leads do not pass it back and forth.
const forwardedKey = "braid-forwarded"

const (
	forwardTimeout = time.Second
	settleTimeout  = 2 * time.Second
)

// peers asks the leader what only its memory holds.
type peers struct {
	pool *http.Transport
	http *http.Client

	mu      sync.Mutex // guards clients
	clients map[string]pbconnect.MdmClient
}

func newPeers() *peers {
	protocols := new(http.Protocols)
	protocols.SetUnencryptedHTTP2(true)
	pool := &http.Transport{Protocols: protocols}
	return &peers{pool: pool, http: &http.Client{Transport: pool}, clients: map[string]pbconnect.MdmClient{}}
}

func (p *peers) client(addr string) pbconnect.MdmClient {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := p.clients[addr]
	if c == nil {
		c = pbconnect.NewMdmClient(p.http, "http://"+addr)
		p.clients[addr] = c
	}
	return c
}

func (p *peers) close() { p.pool.CloseIdleConnections() }

// settle returns who leads, if that is another member. In the moment after a
// start, or between two leaders, it waits a little: an answer that says that
// nobody leads alarms people.
func (m *Member) settle(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, settleTimeout)
	defer cancel()
	for m.leads() == nil {
		if addr := m.leaderAddr(ctx); addr != "" {
			return addr
		}
		if !wait(ctx, rewatchAfter) {
			break
		}
	}
	return ""
}

// askLeader passes a question on to the leader. nil: this member leads, or the
// leader does not answer, and the member has to say what it knows itself.
func askLeader[Req, Resp any](ctx context.Context, m *Member, req *connect.Request[Req],
	rpc func(pbconnect.MdmClient, context.Context, *connect.Request[Req]) (*connect.Response[Resp], error),
) *connect.Response[Resp] {
	if m.leads() != nil || req.Header().Get(forwardedKey) != "" {
		return nil
	}
	addr := m.settle(ctx)
	if addr == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, forwardTimeout)
	defer cancel()
	passed := connect.NewRequest(req.Msg)
	passed.Header().Set(forwardedKey, m.config.Name)
	resp, err := rpc(m.peers.client(addr), ctx, passed)
	if err != nil {
		return nil
	}
	return connect.NewResponse(resp.Msg)
}
