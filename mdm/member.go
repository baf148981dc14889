// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"braid/cluster"
	"braid/mdm/state"
)

// Member is one metadata manager.
type Member struct {
	config  Config
	addr    string // where clients reach the API
	lock    *os.File
	backend *backend
	store   *store
	server  *http.Server
	peers   *peers

	cancel  context.CancelFunc
	running sync.WaitGroup
	failed  chan error // one: why the member cannot go on

	mu      sync.Mutex // guards leading
	leading *leader    // nil: this member does not lead
}

// Start runs a member until Close. When it returns, the API answers, and a
// leader is known or about to be.
func Start(ctx context.Context, c Config) (*Member, error) {
	c, err := c.withDefaults()
	if err != nil {
		return nil, err
	}
	listener, err := listen(c.Listen)
	if err != nil {
		return nil, err
	}
	m := &Member{config: c, failed: make(chan error, 1)}
	if m.addr, err = c.reachable(listener.Addr()); err != nil {
		return nil, errors.Join(err, listener.Close())
	}
	if err := m.start(ctx, listener); err != nil {
		return nil, errors.Join(err, listener.Close(), m.Close())
	}
	return m, nil
}

func listen(addr string) (net.Listener, error) {
	l, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("listen for the API: %w; is another mdm running? Choose another "+
			"address with --listen", err)
	}
	return l, nil
}

func (m *Member) start(ctx context.Context, listener net.Listener) (err error) {
	if m.lock, err = lockDir(m.config.DataDir); err != nil {
		return err
	}
	if err := checkIdentity(m.config); err != nil {
		return err
	}
	if m.backend, err = openEtcd(ctx, m.config); err != nil {
		return err
	}
	if m.config.Restore != "" {
		if err := restore(ctx, m.backend.client, m.config.Restore, m.config.now()); err != nil {
			return err
		}
	}
	m.store = newStore(m.backend.client, m.config.policy(), m.config.Log)
	from, err := m.store.load(ctx)
	if err != nil {
		return err
	}
	running, cancel := context.WithCancel(context.Background())
	m.cancel = cancel
	m.peers = newPeers()
	m.server = m.newServer(running)
	m.running.Go(func() { m.store.follow(running, from) })
	m.running.Go(func() {
		if err := m.backend.await(running); err != nil {
			m.fail(err)
		}
	})
	m.running.Go(func() { m.campaign(running) })
	m.running.Go(func() {
		if err := m.server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			m.fail(fmt.Errorf("the API ended: %w", err))
		}
	})
	return m.awaitLeader(ctx)
}

// awaitLeader returns when changes can be made, here or at another member.
func (m *Member) awaitLeader(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	for {
		changed := m.store.next()
		var founded bool
		m.store.read(func(st *state.State) { founded = !st.Cluster().IsZero() })
		if founded && (m.leads() != nil || m.leaderAddr(ctx) != "") {
			return m.join(ctx)
		}
		select {
		case <-changed:
		case <-time.After(rewatchAfter):
		case <-ctx.Done():
			return fmt.Errorf("no member leads after %v: %w", startTimeout, ctx.Err())
		}
	}
}

// join records this member's address, for people and for the other members. It
// is the one write that is not the leader's, to a key that nobody else writes.
func (m *Member) join(ctx context.Context) error {
	var steps []state.Step
	m.store.read(func(st *state.State) {
		steps = st.Join(state.Member{Name: m.config.Name, Addr: m.addr, Version: cluster.Version},
			m.config.now()).Steps()
	})
	for _, step := range steps {
		for _, put := range step.Puts {
			if _, err := m.backend.client.Put(ctx, put.Key, string(put.Value)); err != nil {
				return fmt.Errorf("record this member in etcd: %w", err)
			}
		}
	}
	return nil
}

// Failed tells why the member cannot go on, should that happen. Close it then.
func (m *Member) Failed() <-chan error { return m.failed }

func (m *Member) fail(err error) {
	select {
	case m.failed <- err:
	default: // one reason is enough
	}
}

// Addr is where clients reach the API.
func (m *Member) Addr() string { return m.addr }

// Cluster is the identity of the cluster.
func (m *Member) Cluster() cluster.UUID {
	var uuid cluster.UUID
	m.store.read(func(st *state.State) { uuid = st.Cluster() })
	return uuid
}

// Close ends the API and its streams, gives up leadership, and stops etcd.
func (m *Member) Close() error {
	var err error
	if m.cancel != nil {
		m.cancel()
	}
	if m.server != nil {
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		if m.server.Shutdown(ctx) != nil {
			err = m.server.Close()
		}
		cancel()
	}
	// Giving up leadership needs a quorum. Without one it waits for etcd, which
	// closing etcd ends.
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		m.running.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(stopTimeout):
	}
	if m.backend != nil {
		err = errors.Join(err, m.backend.close())
	}
	<-ended
	if m.peers != nil {
		m.peers.close()
	}
	if m.lock != nil {
		err = errors.Join(err, m.lock.Close())
	}
	return err
}

func (m *Member) setLeading(l *leader) {
	m.mu.Lock()
	m.leading = l
	m.mu.Unlock()
}

// leads returns the term of leadership, or nil.
func (m *Member) leads() *leader {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.leading
}

// leaderAddr asks etcd who leads; empty: nobody, or it cannot be known.
func (m *Member) leaderAddr(ctx context.Context) string {
	resp, err := m.backend.client.Get(ctx, state.ElectionPrefix+"/", append(clientv3.WithFirstCreate(),
		clientv3.WithSerializable())...) // what this member knows is enough for a hint
	if err != nil || len(resp.Kvs) == 0 {
		return ""
	}
	name, addr := parseBallot(resp.Kvs[0].Value)
	if name == m.config.Name {
		return "" // about to lead, or about to give up
	}
	return addr
}

func newUUID() (u cluster.UUID, err error) {
	if _, err := rand.Read(u[:]); err != nil {
		return u, fmt.Errorf("make an identity for the cluster: %w", err)
	}
	u[6], u[8] = u[6]&0x0f|0x40, u[8]&0x3f|0x80 // RFC 9562, version 4
	return u, nil
}
