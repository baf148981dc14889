// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"braid/mdm/state"
)

var (
	errConflict = errors.New("the state changed at the same time")
	errDeposed  = errors.New("another member leads now")

	errUnreadable = errors.New("a change cannot be applied")
)

// store follows etcd: it holds the state that all members share.
type store struct {
	etcd   *clientv3.Client
	policy state.Policy
	log    *slog.Logger

	mu      sync.RWMutex // guards what follows; never held across a call to etcd
	state   *state.State
	base    int64         // of etcd's revisions to the state's, see state.Restored
	changed chan struct{} // closed and replaced when the state changes
}

func newStore(etcd *clientv3.Client, policy state.Policy, log *slog.Logger) *store {
	s := &store{etcd: etcd, policy: policy, log: log, state: state.New(), changed: make(chan struct{})}
	s.state.Policy = policy
	return s
}

// read calls f with the state, which must not be kept or changed.
func (s *store) read(f func(*state.State)) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	f(s.state)
}

// offset is what the state's revisions are ahead of etcd's.
func (s *store) offset() int64 {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.base
}

// next returns a channel that closes with the next change. Take it before
// reading, so that no change is missed.
func (s *store) next() <-chan struct{} {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.changed
}

func (s *store) update(f func() error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	err := f()
	close(s.changed)
	s.changed = make(chan struct{})
	return err
}

// load reads everything; it returns the revision to watch from.
func (s *store) load(ctx context.Context) (int64, error) {
	resp, err := s.etcd.Get(ctx, state.Prefix, clientv3.WithPrefix())
	if err != nil {
		return 0, fmt.Errorf("read the state from etcd: %w", err)
	}
	all, restored, err := decode(resp.Kvs)
	if err != nil {
		return 0, err
	}
	if restored.Loading {
		return 0, errors.New("a restore has begun and not ended: start a member with --restore and that backup again")
	}
	fresh := state.New()
	fresh.Policy = s.policy
	if err := fresh.Load(all); err != nil {
		return 0, err
	}
	return resp.Header.Revision + 1, s.update(func() error {
		s.state, s.base = fresh, restored.Base
		return nil
	})
}

// follow keeps the state up to date until ctx ends. from is what load returned.
func (s *store) follow(ctx context.Context, from int64) {
	for {
		err := s.watch(ctx, from)
		if ctx.Err() != nil {
			return
		}
		s.log.Warn("the watch on etcd broke and is set up again", "error", err)
		if !wait(ctx, rewatchAfter) {
			return
		}
		if !errors.Is(err, errUnreadable) && !errors.Is(err, rpctypes.ErrCompacted) {
			s.read(func(st *state.State) { from = st.Revision + 1 - s.base })
			continue
		}
		// What was missed is gone: read everything. Streams notice that their
		// version is older than what is known and send whole maps.
		for {
			next, err := s.load(ctx)
			if err == nil {
				from = next
				break
			}
			s.log.Warn("the state cannot be read", "error", err)
			if !wait(ctx, reloadAfter) {
				return
			}
		}
	}
}

func (s *store) watch(ctx context.Context, from int64) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	base := s.offset()
	for resp := range s.etcd.Watch(ctx, state.Prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := resp.Err(); err != nil {
			return err
		}
		changes := make([]state.Change, len(resp.Events))
		for i, e := range resp.Events {
			changes[i] = state.Change{Key: string(e.Kv.Key), Revision: e.Kv.ModRevision + base}
			if e.Type == clientv3.EventTypePut {
				changes[i].Value = e.Kv.Value
			}
			if changes[i].Key == state.RestoredKey {
				if _, restored, err := decode([]*mvccpb.KeyValue{e.Kv}); err != nil || restored.Base != base {
					return fmt.Errorf("%w: a restore has begun", errUnreadable)
				}
			}
		}
		if err := s.update(func() error { return s.state.Apply(changes) }); err != nil {
			return fmt.Errorf("%w: %w", errUnreadable, err)
		}
	}
	return errors.New("etcd closed it")
}

// guard is a key that must still have been created in that revision: leadership.
type guard struct {
	key     string
	created int64
}

// commit runs the steps of a transaction under the guard of leadership and
// returns when the state shows them.
func (s *store) commit(ctx context.Context, steps []state.Step, g guard) error {
	ctx, cancel := context.WithTimeout(ctx, commitTimeout)
	defer cancel()
	base := s.offset()
	for _, step := range steps {
		conditions := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(g.key), "=", g.created)}
		for key, revision := range step.Expect {
			if revision != 0 {
				revision -= base
			}
			conditions = append(conditions, clientv3.Compare(clientv3.ModRevision(key), "=", revision))
		}
		var ops []clientv3.Op
		for _, put := range step.Puts {
			ops = append(ops, clientv3.OpPut(put.Key, string(put.Value)))
		}
		for _, key := range step.Deletes {
			ops = append(ops, clientv3.OpDelete(key))
		}
		if step.EventsUpTo != "" {
			ops = append(ops, clientv3.OpDelete(step.EventsFrom, clientv3.WithRange(step.EventsUpTo)))
		}
		resp, err := s.etcd.Txn(ctx).If(conditions...).Then(ops...).Else(
			clientv3.OpGet(g.key, clientv3.WithKeysOnly())).Commit()
		if err != nil {
			return fmt.Errorf("write to etcd: %w", err)
		}
		if err := s.reach(ctx, resp.Header.Revision+base, resp.Succeeded); err != nil {
			return err
		}
		if !resp.Succeeded {
			got := resp.Responses[0].GetResponseRange().GetKvs()
			if len(got) == 0 || got[0].CreateRevision != g.created {
				return errDeposed
			}
			return errConflict
		}
	}
	return nil
}

// reach waits until the state shows the revision: the next plan builds on it. A
// failed transaction has no revision of its own to wait for.
func (s *store) reach(ctx context.Context, revision int64, own bool) error {
	for own {
		changed, seen := s.next(), int64(0)
		s.read(func(st *state.State) { seen = st.Revision })
		if seen >= revision {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("wait for etcd to tell what was written: %w", ctx.Err())
		}
	}
	return nil
}

// wait pauses; false means that ctx ended first.
func wait(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
