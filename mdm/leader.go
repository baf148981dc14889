// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/concurrency"

	"braid/cluster"
	"braid/mdm/state"
)

// leader is one term of leadership. Changes go through it one at a time.
type leader struct {
	store     *store
	guard     guard
	now       func() time.Time
	leases    *leases
	care      *care
	mover     mover
	health    healthWatch
	told      testimony
	pilot     pilot
	scrubLook time.Time          // the tick's: when it looked for scrubs that are due
	end       context.CancelFunc // ends the term
	log       *slog.Logger

	// mu makes plan and commit one step. It is held across calls to etcd, which
	// have a time limit.
	mu sync.Mutex
}

// ballot is what a member puts into the election: who it is and where its API
// is. NAME ADDR.
func ballot(name, addr string) string { return name + " " + addr }

func parseBallot(value []byte) (name, addr string) {
	name, addr, _ = strings.Cut(string(value), " ")
	return name, addr
}

// campaign leads whenever it is elected, until ctx ends.
func (m *Member) campaign(ctx context.Context) {
	for ctx.Err() == nil {
		err := m.lead(ctx)
		m.setLeading(nil)
		if ctx.Err() == nil {
			m.config.Log.Warn("leadership ended or could not be won; trying again", "error", err)
			wait(ctx, tickInterval)
		}
	}
}

// lead campaigns once and leads for as long as etcd agrees.
func (m *Member) lead(ctx context.Context) error {
	session, err := concurrency.NewSession(m.backend.client, concurrency.WithTTL(leaderTerm),
		concurrency.WithContext(ctx))
	if err != nil {
		return fmt.Errorf("open a session with etcd: %w", err)
	}
	var l *leader
	defer func() { // after leadership was given up
		if l != nil {
			l.pilot.hooks.Wait()
		}
	}()
	// The session's own context may be gone: giving up leadership at once spares
	// the others the wait for its lease.
	defer func() {
		session.Orphan()
		ctx, cancel := context.WithTimeout(context.Background(), stopTimeout)
		defer cancel()
		m.backend.client.Revoke(ctx, session.Lease()) //nolint:errcheck // it expires by itself
	}()
	election := concurrency.NewElection(session, state.ElectionPrefix)
	if err := m.bury(ctx); err != nil {
		return err
	}
	won, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(session.Ctx(), cancel)
	defer stop()
	if err := election.Campaign(won, ballot(m.config.Name, m.addr)); err != nil {
		return fmt.Errorf("campaign: %w", err)
	}
	l = &leader{store: m.store, now: m.config.now, pilot: pilot{config: m.config, addr: m.addr},
		leases: newLeases(m.config),
		care:   newCare(m.config), end: cancel, log: m.config.Log,
		guard: guard{key: election.Key(), created: election.Rev()}}
	if err := l.takeOver(won, m); err != nil {
		return err
	}
	m.setLeading(l)
	m.config.Log.Info("this member leads", "name", m.config.Name)
	return l.tick(won)
}

// bury ends the candidacies of this member's earlier process, which died
// without giving up: the lock on the data directory says that it is dead.
func (m *Member) bury(ctx context.Context) error {
	resp, err := m.backend.client.Get(ctx, state.ElectionPrefix+"/", clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read the election: %w", err)
	}
	for _, kv := range resp.Kvs {
		if name, _ := parseBallot(kv.Value); name == m.config.Name {
			if _, err := m.backend.client.Revoke(ctx, clientv3.LeaseID(kv.Lease)); err != nil {
				return fmt.Errorf("end the candidacy of this member's earlier process: %w", err)
			}
		}
	}
	return nil
}

// takeOver catches up with what the leader before wrote, founds the cluster if
// there is none, and starts all leases with a full term.
func (l *leader) takeOver(ctx context.Context, m *Member) error {
	// The first write is also the barrier: nobody else can write any more, it only
	// succeeds on the newest state (its event's number must be free), and change
	// returns when the state shows it.
	if err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.Lead(m.config.Name, m.addr, now), nil
	}); err != nil {
		return err
	}
	uuid, err := newUUID()
	if err != nil {
		return err
	}
	if err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.Found(uuid, now), nil
	}); err != nil {
		return err
	}
	l.store.read(func(st *state.State) { l.leases.expired(st, l.now()) })
	return nil
}

// change plans on the newest state and commits, one change at a time. A
// conflict means that the plan was made on a state that etcd has left behind.
func (l *leader) change(ctx context.Context, plan func(*state.State, time.Time) (*state.Tx, error)) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	var err error
	for range conflictTries {
		var steps []state.Step
		// The conditions have to be those of the state that was planned on.
		l.store.read(func(st *state.State) {
			var tx *state.Tx
			if tx, err = plan(st, l.now()); err == nil {
				steps = tx.Steps()
			}
		})
		if err != nil {
			return err
		}
		err = l.store.commit(ctx, steps, l.guard)
		if errors.Is(err, errDeposed) {
			l.end()
		}
		if !errors.Is(err, errConflict) {
			return err
		}
		if !wait(ctx, rewatchAfter) {
			return ctx.Err()
		}
	}
	return err
}

// tick looks for leases that ran out until ctx ends.
func (l *leader) tick(ctx context.Context) error {
	ticker := time.NewTicker(tickInterval)
	defer ticker.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return errors.New("the session with etcd ended")
		case <-ticker.C:
		}
		// A process that was stopped, or starved, could not take renewals.
		now := time.Now()
		if late := now.Sub(last) - tickInterval; late > tickInterval {
			l.leases.extend(late)
		}
		last = now
		held := false
		l.store.read(func(st *state.State) { held = st.Held() != nil })
		if held {
			continue
		}
		if err := errors.Join(l.expire(ctx), l.tend(ctx), l.tellHealth(ctx), l.tellFill(ctx),
			l.schedule(ctx), l.steer(ctx)); err != nil {
			// It passes: etcd may be without a quorum. The leases stay as they are
			// and the next tick tries again.
			l.log.Warn("leases that ran out could not be ended", "error", err)
		}
	}
}

// expire ends what was not renewed, all of it in one or two transactions.
func (l *leader) expire(ctx context.Context) error {
	var servers []string
	var sessions, forget []cluster.VolumeID
	l.store.read(func(st *state.State) {
		servers, sessions = l.leases.expired(st, l.now())
		forget = l.leases.forgettable(st)
	})
	// What was renewed in between is looked at again: the plan runs later.
	if len(servers) > 0 {
		if err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
			servers, _ = l.leases.expired(st, now)
			return st.Expire(servers, now), nil
		}); err != nil {
			return err
		}
	}
	if len(sessions) > 0 {
		if err := l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
			_, sessions = l.leases.expired(st, now)
			return st.ExpireSessions(sessions, now), nil
		}); err != nil {
			return err
		}
	}
	if len(forget) == 0 {
		return nil
	}
	return l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.Forget(forget, now), nil
	})
}
