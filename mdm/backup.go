// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"os"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"braid/cluster"
	"braid/mdm/state"
)

// A backup is text: a line with the header, a line for each key, and a line with
// the number of keys and the SHA-256 of all lines before.

const backupFormat = 1

type backupHeader struct {
	Format   int          `json:"braid_backup"`
	Cluster  cluster.UUID `json:"cluster"`
	Taken    time.Time    `json:"taken"`
	Revision int64        `json:"revision"`
	Version  uint64       `json:"map_version"`
	Mdm      string       `json:"mdm"`
}

type backupKey struct {
	Key   string          `json:"k"`
	Value json.RawMessage `json:"v"`
}

type backupEnd struct {
	Keys   int    `json:"keys"`
	SHA256 string `json:"sha256"`
}

// backup writes all that etcd has at one revision.
func (s *store) backup(ctx context.Context, w io.Writer, now time.Time) error {
	resp, err := s.etcd.Get(ctx, state.Prefix, clientv3.WithPrefix())
	if err != nil {
		return fmt.Errorf("read the state from etcd: %w", err)
	}
	all, restored, err := decode(resp.Kvs)
	if err != nil {
		return err
	}
	if restored.Held || restored.Loading {
		return errors.New("the metadata was restored and is not confirmed yet: `scli restore status`")
	}
	// What cannot be read is no backup.
	st := state.New()
	if err := st.Load(all); err != nil {
		return err
	}
	buffered := bufio.NewWriterSize(w, 1<<20)
	sum := sha256.New()
	lines := json.NewEncoder(io.MultiWriter(buffered, sum))
	lines.SetEscapeHTML(false)
	if err := lines.Encode(backupHeader{Format: backupFormat, Cluster: st.Cluster(), Taken: now.UTC(),
		Revision: st.Revision, Version: st.MapVersion(), Mdm: cluster.Version}); err != nil {
		return err
	}
	end := backupEnd{}
	for _, c := range all {
		if !state.BackedUp(c.Key) {
			continue
		}
		if err := lines.Encode(backupKey{c.Key, c.Value}); err != nil {
			return err
		}
		end.Keys++
	}
	end.SHA256 = hex.EncodeToString(sum.Sum(nil))
	if err := json.NewEncoder(buffered).Encode(end); err != nil {
		return err
	}
	return buffered.Flush()
}

// readBackup reads a whole backup and checks it.
func readBackup(path string) (header backupHeader, keys []backupKey, err error) {
	f, err := os.Open(path)
	if err != nil {
		return header, nil, fmt.Errorf("read the backup: %w", err)
	}
	defer f.Close()
	header, keys, err = parseBackup(f, sha256.New())
	if err != nil {
		return header, nil, fmt.Errorf("read the backup %s: %w; take another one", path, err)
	}
	return header, keys, nil
}

func parseBackup(r io.Reader, sum hash.Hash) (header backupHeader, keys []backupKey, err error) {
	buffered := bufio.NewReaderSize(r, 1<<20)
	for n := 0; ; n++ {
		line, err := buffered.ReadBytes('\n')
		if err != nil {
			return header, nil, fmt.Errorf("it is cut off after %d lines", n)
		}
		if n == 0 {
			if json.Unmarshal(line, &header) != nil || header.Format != backupFormat {
				return header, nil, errors.New("it is no backup that this mdm can read")
			}
			sum.Write(line)
			continue
		}
		var end backupEnd
		if json.Unmarshal(line, &end) == nil && end.SHA256 != "" {
			if end.Keys != len(keys) || end.SHA256 != hex.EncodeToString(sum.Sum(nil)) {
				return header, nil, errors.New("its checksum does not match")
			}
			return header, keys, nil
		}
		var key backupKey
		if err := json.Unmarshal(line, &key); err != nil || !state.BackedUp(key.Key) {
			return header, nil, fmt.Errorf("line %d makes no sense", n+1)
		}
		sum.Write(line)
		keys = append(keys, key)
	}
}

// handleBackup answers GET /backup. Who reads it sees by the last line whether it
// is whole.
func (m *Member) handleBackup(w http.ResponseWriter, r *http.Request) {
	started := &firstWrite{w: w}
	if err := m.store.backup(r.Context(), started, m.config.now()); err != nil {
		if !started.done {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
		}
		m.config.Log.Warn("backup failed", "error", err)
	}
}

type firstWrite struct {
	w    io.Writer
	done bool
}

func (f *firstWrite) Write(p []byte) (int, error) {
	f.done = true
	return f.w.Write(p)
}
