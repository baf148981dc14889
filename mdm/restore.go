// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"braid/cluster"
	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/mdm/state"
)

const (
	restoreStep    = 100 // keys a transaction: an etcd that is not ours allows 128
	restoreTimeout = 10 * time.Minute
	maxMapBytes    = 256 << 20

	// A restored history counts from the second in which it began, times this: that
	// exceeds all of the histories before, of which none had a million changes a second.
	perSecond = 1 << 20
	// aheadOf is the least distance from the backup, should the clock be wrong.
	aheadOf = 1 << 30
)

// decode separates the record of a restore and adds its base to all revisions.
func decode(kvs []*mvccpb.KeyValue) (all []state.Change, restored state.Restored, err error) {
	for _, kv := range kvs {
		if string(kv.Key) == state.RestoredKey {
			if err := json.Unmarshal(kv.Value, &restored); err != nil {
				return nil, restored, fmt.Errorf("read %s from etcd: %w", kv.Key, err)
			}
		}
	}
	all = make([]state.Change, len(kvs))
	for i, kv := range kvs {
		all[i] = state.Change{Key: string(kv.Key), Value: kv.Value, Revision: kv.ModRevision + restored.Base}
	}
	return all, restored, nil
}

// restore fills an empty etcd from a backup. Members that do it at the same time
// write the same; one that is late, or dies on the way, does no harm: each write is
// under the condition that the loading has not ended.
func restore(ctx context.Context, etcd *clientv3.Client, path string, now time.Time) error {
	ctx, cancel := context.WithTimeout(ctx, restoreTimeout)
	defer cancel()
	header, keys, err := readBackup(path)
	if err != nil {
		return err
	}
	mark := state.Restored{Base: max(now.Unix()*perSecond, header.Revision+aheadOf), Taken: header.Taken,
		Version: header.Version, Loading: true, Held: true}
	begun, err := etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(state.RestoredKey), "=", 0),
		clientv3.Compare(clientv3.CreateRevision(state.IdentityKey), "=", 0)).
		Then(clientv3.OpPut(state.RestoredKey, marshal(mark))).
		Else(clientv3.OpGet(state.RestoredKey)).Commit()
	if err != nil {
		return fmt.Errorf("begin the restore: %w", err)
	}
	at := begun.Header.Revision
	if !begun.Succeeded {
		found := begun.Responses[0].GetResponseRange().GetKvs()
		if len(found) == 0 {
			return errors.New("restore: there is a cluster already, and a backup is never written over one; " +
				"start without --restore, or with an empty --data-dir")
		}
		if err := json.Unmarshal(found[0].Value, &mark); err != nil {
			return fmt.Errorf("restore: %w", err)
		}
		if !mark.Taken.Equal(header.Taken) {
			return fmt.Errorf("restore: there is a cluster that was restored from the backup of %v, this one is of "+
				"%v; start without --restore", mark.Taken, header.Taken)
		}
		if at = found[0].ModRevision; !mark.Loading {
			return nil
		}
	}
	loading := clientv3.Compare(clientv3.ModRevision(state.RestoredKey), "=", at)
	for len(keys) > 0 {
		n := min(restoreStep, len(keys))
		ops := make([]clientv3.Op, n)
		for i, key := range keys[:n] {
			ops[i] = clientv3.OpPut(key.Key, string(key.Value))
		}
		resp, err := etcd.Txn(ctx).If(loading).Then(ops...).Commit()
		if err != nil {
			return fmt.Errorf("restore: write to etcd: %w", err)
		}
		if !resp.Succeeded {
			return nil // another member was faster
		}
		keys = keys[n:]
	}
	mark.Loading = false
	if _, err := etcd.Txn(ctx).If(loading).Then(clientv3.OpPut(state.RestoredKey, marshal(mark))).Commit(); err != nil {
		return fmt.Errorf("end the restore: %w", err)
	}
	return nil
}

func marshal(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err) // the types are our own
	}
	return string(text)
}

// testimony is what the leader hears from servers while a restore is held.
type testimony struct {
	mu     sync.Mutex        // guards what follows
	heard  map[string]uint64 // version of each server's map
	newest *cluster.Map
}

// hear notes a server's map.
func (t *testimony) hear(server string, m *cluster.Map) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.heard == nil {
		t.heard = map[string]uint64{}
	}
	t.heard[server] = max(t.heard[server], m.Version)
	if t.newest == nil || m.Version > t.newest.Version {
		t.newest = m
	}
}

// best returns the newest map there is, and which servers told theirs.
func (t *testimony) best(st *state.State) (*cluster.Map, map[string]uint64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	heard := maps.Clone(t.heard)
	if held := st.Held(); t.newest != nil && held != nil && t.newest.Version > held.Version {
		return t.newest, heard, nil
	}
	own, err := st.Map()
	return own, heard, err
}

// heldText is the answer to changes while a restore is held; empty: none is.
func heldText(st *state.State) string {
	held := st.Held()
	if held == nil {
		return ""
	}
	return fmt.Sprintf("the metadata was restored from a backup of %s and waits for `scli restore confirm`; I/O of "+
		"clients and servers that run goes on, changes wait", held.Taken.UTC().Format(time.RFC3339))
}

func (m *Member) held() string {
	text := ""
	m.store.read(func(st *state.State) { text = heldText(st) })
	return text
}

// heldWatch is the answer to a watch while a restore is held: who has a map is
// asked for it, by the leader.
func (a *api) heldWatch(text string) error {
	err := connect.NewError(connect.CodeUnavailable, errors.New(text))
	if l := a.m.leads(); l != nil {
		err.Meta().Set(client.RestoredKey, fmt.Sprint(l.guard.created))
	}
	return err
}

// restoreStatus is what GET /restore answers.
func (l *leader) restoreStatus() (client.RestoreStatus, *cluster.Map, error) {
	var out client.RestoreStatus
	var best *cluster.Map
	var err error
	l.store.read(func(st *state.State) {
		held := st.Held()
		if held == nil {
			return
		}
		out.Held, out.Taken, out.Version = true, held.Taken, held.Version
		if best, out.Heard, err = l.told.best(st); err != nil {
			return
		}
		if out.Newest = held.Version; best.Version < uint64(held.Base) {
			out.Newest = max(held.Version, best.Version)
		}
		out.Missing = st.Unheard(best, out.Heard)
	})
	return out, best, err
}

// confirm ends the holding, on the word of an operator.
func (l *leader) confirm(ctx context.Context, force bool) (client.RestoreStatus, error) {
	status, best, err := l.restoreStatus()
	if err != nil {
		return status, err
	}
	if len(status.Missing) > 0 && !force {
		return status, fmt.Errorf("these servers have not told which map they know: %s. They may know of newer "+
			"changes; connect them as they run, without a restart. Without them (--force): their copies are made "+
			"anew from the others, and what only they knew is lost", strings.Join(status.Missing, ", "))
	}
	err = l.change(ctx, func(st *state.State, now time.Time) (*state.Tx, error) {
		return st.Confirm(best, status.Missing, now)
	})
	if err == nil {
		l.leases.forget()
		l.tendNow(ctx)
	}
	return status, err
}

// handleRestore answers what has to do with a restore; only the leader does.
func (m *Member) handleRestore(w http.ResponseWriter, r *http.Request) {
	l := m.leads()
	if l == nil {
		if addr := m.leaderAddr(r.Context()); addr != "" {
			w.Header().Set(client.LeaderKey, addr)
		}
		http.Error(w, "this member does not lead", http.StatusServiceUnavailable)
		return
	}
	var status client.RestoreStatus
	var err error
	code := http.StatusConflict
	switch r.URL.Path {
	case "/restore/map":
		if err, code = l.hear(w, r), http.StatusBadRequest; err == nil {
			return
		}
	case "/restore/confirm":
		status, err = l.confirm(decided(r.Context()), r.URL.Query().Get("force") != "")
	default:
		status, _, err = l.restoreStatus()
	}
	if err != nil {
		http.Error(w, err.Error(), code)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(status) //nolint:errcheck // the client is gone then
}

func (l *leader) hear(w http.ResponseWriter, r *http.Request) error {
	server := r.URL.Query().Get("server")
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxMapBytes))
	if err != nil {
		return err
	}
	var message pb.MapDelta
	if err := proto.Unmarshal(body, &message); err != nil {
		return err
	}
	delta, err := pb.ToDelta(&message)
	if err != nil {
		return err
	}
	offered, err := cluster.NewMap().Apply(delta)
	if err != nil {
		return err
	}
	var own cluster.UUID
	l.store.read(func(st *state.State) { own = st.Cluster() })
	if offered.Cluster != own || server == "" || delta.From != 0 || offered.Version == 0 {
		return errors.New("that is no whole map of this cluster")
	}
	l.told.hear(server, offered)
	return nil
}
