// SPDX-License-Identifier: Apache-2.0

package client

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"

	"braid/cluster"
	"braid/mdm/pb"
)

// RestoredKey is the header in which a leader asks watchers for the map that they
// have, because its own comes from a backup: the term of its leadership, so that
// each is asked once.
const RestoredKey = "braid-restored"

// RestoreStatus tells what is known of a restore that waits to be confirmed.
type RestoreStatus struct {
	Held    bool              `json:"held"`
	Taken   time.Time         `json:"taken"`   // when the backup was
	Version uint64            `json:"version"` // of the map in it
	Newest  uint64            `json:"newest"`  // version that any server had
	Heard   map[string]uint64 `json:"heard"`   // version that each server had
	Missing []string          `json:"missing"` // servers that have not told
}

// Backup writes a backup of the metadata to w.
func (c *Client) Backup(ctx context.Context, w io.Writer) error {
	return c.plain(ctx, "back up the metadata", http.MethodGet, "/backup", nil, func(r io.Reader) error {
		_, err := io.Copy(w, r)
		return err
	})
}

// RestoreStatus asks for what is known of a restore.
func (c *Client) RestoreStatus(ctx context.Context) (s RestoreStatus, err error) {
	err = c.plain(ctx, "ask for the restore", http.MethodGet, "/restore", nil, func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&s)
	})
	return s, err
}

// ConfirmRestore lets a restored cluster go on; with force also without the word
// of servers that are away.
func (c *Client) ConfirmRestore(ctx context.Context, force bool) (s RestoreStatus, err error) {
	path := "/restore/confirm"
	if force {
		path += "?force=1"
	}
	err = c.plain(ctx, "confirm the restore", http.MethodPost, path, nil, func(r io.Reader) error {
		return json.NewDecoder(r).Decode(&s)
	})
	return s, err
}

// plain makes a call that is not in the API's protocol, to whoever leads.
func (c *Client) plain(ctx context.Context, op, method, path string, body []byte, read func(io.Reader) error) error {
	trying, cancel := context.WithTimeout(ctx, c.patience)
	defer cancel()
	last := errors.New("nobody answered")
	for try := 0; ; try++ {
		addr := c.candidate(try)
		request, err := http.NewRequestWithContext(ctx, method, "http://"+addr+path, bytes.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := c.http.Do(request)
		if err == nil && resp.StatusCode == http.StatusOK {
			defer resp.Body.Close()
			return read(resp.Body)
		}
		c.setLeader("")
		if last = err; err == nil {
			text, _ := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
			resp.Body.Close()
			last = errors.New(strings.TrimSpace(string(text)))
			if resp.StatusCode != http.StatusServiceUnavailable {
				return fmt.Errorf("%s: %w", op, last)
			}
			c.setLeader(resp.Header.Get(LeaderKey))
		}
		if !pause(trying, firstBackOff) {
			return c.unreachable(op, last, false)
		}
	}
}

// offer tells a leader that restored its metadata which map this server has.
func (w *mapWatch) offer(ctx context.Context, c *Client, addr string, refusal error) {
	var e *connect.Error
	if w.current.Version == 0 || len(w.volumes) > 0 || !errors.As(refusal, &e) {
		return
	}
	term := e.Meta().Get(RestoredKey)
	c.mu.Lock()
	server := c.server
	c.mu.Unlock()
	if term == "" || term == w.offered || server == "" {
		return
	}
	body, err := proto.Marshal(pb.FromDelta(wholeMap(w.current)))
	if err != nil {
		return
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodPost,
		"http://"+addr+"/restore/map?server="+url.QueryEscape(server), bytes.NewReader(body))
	if err != nil {
		return
	}
	resp, err := c.http.Do(request)
	if err != nil {
		return
	}
	resp.Body.Close()
	if resp.StatusCode == http.StatusOK {
		w.offered = term
	}
}

// wholeMap is the delta that makes the map out of nothing.
func wholeMap(m *cluster.Map) *cluster.Delta {
	d := &cluster.Delta{Cluster: m.Cluster, Version: m.Version, Devices: slices.Collect(maps.Values(m.Devices)),
		Sets: slices.Collect(maps.Values(m.Sets)), Volumes: slices.Collect(maps.Values(m.Volumes)),
		RemovedVolumes: slices.Collect(maps.Keys(m.Removed))}
	for _, table := range m.PGs {
		for _, pg := range table {
			if pg != nil {
				d.PGs = append(d.PGs, pg)
			}
		}
	}
	return d
}
