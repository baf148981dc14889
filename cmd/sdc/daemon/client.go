// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"syscall"
)

// ErrNotRunning: no daemon answers on this host.
var ErrNotRunning = errors.New("the sdc daemon does not run")

// errEnding: the daemon is about to end; a new one has to be started.
var errEnding = errors.New("the sdc daemon is ending")

// Client talks to the daemon of this host.
type Client struct {
	dir  string
	http *http.Client
}

// NewClient returns a client for the daemon whose run directory is dir.
func NewClient(dir string) *Client { return newClient(dir, socketPath(dir)) }

func newClient(dir, socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{dir: dir, http: &http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}}
}

// call sends a request and decodes the reply.
func (c *Client) call(ctx context.Context, method, path string, request, reply any) error {
	var body bytes.Buffer
	if request != nil {
		if err := json.NewEncoder(&body).Encode(request); err != nil {
			return fmt.Errorf("encode a request to the sdc daemon: %w", err)
		}
	}
	r, err := http.NewRequestWithContext(ctx, method, "http://sdc"+path, &body)
	if err != nil {
		return fmt.Errorf("make a request to the sdc daemon: %w", err)
	}
	answer, err := c.http.Do(r)
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return ErrNotRunning
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("talk to the sdc daemon at %s: permission denied: it needs root",
			socketPath(c.dir))
	case err != nil:
		return fmt.Errorf("talk to the sdc daemon at %s: %w", socketPath(c.dir), err)
	}
	defer answer.Body.Close()
	if answer.StatusCode != http.StatusOK {
		var f failure
		if err := json.NewDecoder(answer.Body).Decode(&f); err != nil || f.Error == "" {
			return fmt.Errorf("the sdc daemon answered %s", answer.Status)
		}
		if f.Ending {
			return errEnding
		}
		return errors.New(f.Error)
	}
	if reply == nil {
		return nil
	}
	if err := json.NewDecoder(answer.Body).Decode(reply); err != nil {
		return fmt.Errorf("decode the sdc daemon's reply: %w", err)
	}
	return nil
}

// Attach attaches a volume.
func (c *Client) Attach(ctx context.Context, r AttachRequest) (a Attachment, err error) {
	return a, c.call(ctx, http.MethodPost, "/attach", r, &a)
}

// Detach ends an attachment.
func (c *Client) Detach(ctx context.Context, r DetachRequest) (d DetachReply, err error) {
	return d, c.call(ctx, http.MethodPost, "/detach", r, &d)
}

// List returns the attachments.
func (c *Client) List(ctx context.Context) (list []Attachment, err error) {
	return list, c.call(ctx, http.MethodGet, "/list", nil, &list)
}

// Why tells what an attachment waits for.
func (c *Client) Why(ctx context.Context, device string) (w WhyReply, err error) {
	return w, c.call(ctx, http.MethodGet, "/why?device="+url.QueryEscape(device), nil, &w)
}

// Stop ends a daemon that has no attachments. It returns when the daemon is gone.
func (c *Client) Stop(ctx context.Context) error {
	if err := c.call(ctx, http.MethodPost, "/stop", nil, nil); err != nil {
		return err
	}
	return c.waitGone(ctx)
}

// waitGone waits for the lock that a daemon holds while it lives.
func (c *Client) waitGone(ctx context.Context) error {
	f, err := os.OpenFile(lockPath(c.dir), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("wait for the end of the sdc daemon: %w", err)
	}
	got := make(chan error, 1)
	go func() {
		got <- syscall.Flock(int(f.Fd()), syscall.LOCK_SH)
		_ = f.Close()
	}()
	select {
	case err := <-got:
		return err
	case <-ctx.Done():
		return fmt.Errorf("wait for the end of the sdc daemon: %w", ctx.Err())
	}
}
