// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"syscall"
)

// ReadyFD is the descriptor on which a daemon that was started by attach says that
// it is ready, or why not.
const ReadyFD = 3

// maxStarts bounds the attempts against a daemon that keeps ending just then.
const maxStarts = 5

// AttachStarting attaches, and starts the daemon if none runs.
func (c *Client) AttachStarting(ctx context.Context, r AttachRequest) (Attachment, error) {
	for range maxStarts {
		a, err := c.Attach(ctx, r)
		switch {
		case err == nil:
			return a, nil
		case errors.Is(err, ErrNotRunning):
			if err := c.start(ctx); err != nil {
				return a, err
			}
		case errors.Is(err, errEnding):
			if err := c.waitGone(ctx); err != nil {
				return a, err
			}
		default:
			return a, err
		}
	}
	return Attachment{}, errors.New("the sdc daemon ends as soon as it is started; see " + LogPath(c.dir))
}

// start runs `sdc daemon --auto` in a session of its own and waits until it is
// ready. A daemon that somebody else started at the same moment will do.
func (c *Client) start(ctx context.Context) error {
	if err := os.MkdirAll(c.dir, 0o700); err != nil {
		return fmt.Errorf("make the run directory (set BRAID_RUN for another one): %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find my own file, to start the daemon: %w", err)
	}
	log, err := os.OpenFile(LogPath(c.dir), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return fmt.Errorf("open the daemon's log: %w", err)
	}
	defer log.Close()
	ready, theirs, err := os.Pipe()
	if err != nil {
		return fmt.Errorf("pipe to the daemon: %w", err)
	}
	defer ready.Close()
	cmd := exec.Command(self, "daemon", "--auto")
	cmd.Stdout, cmd.Stderr = log, log
	cmd.ExtraFiles = []*os.File{theirs} // ReadyFD
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "BRAID_RUN="+c.dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	_ = theirs.Close()
	if err != nil {
		return fmt.Errorf("start the daemon: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = ready.Close() })
	defer stop()
	said, err := io.ReadAll(io.LimitReader(ready, 4096))
	text := strings.TrimSpace(string(said))
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case text == readyWord:
		return cmd.Process.Release()
	case text == alreadyWord:
		_ = cmd.Wait()
		return nil
	case text != "":
		_ = cmd.Wait()
		return fmt.Errorf("start the daemon: %s", text)
	}
	return fmt.Errorf("the daemon ended before it was ready (%w); see %s", errors.Join(err, cmd.Wait()),
		LogPath(c.dir))
}

// What a daemon says on ReadyFD.
const (
	readyWord   = "ready"
	alreadyWord = "another one runs"
)

// SayReady reports the outcome of the start to whoever started this daemon.
func SayReady(err error) {
	f := os.NewFile(ReadyFD, "ready")
	word := readyWord
	if errors.Is(err, ErrRunning) {
		word = alreadyWord
	} else if err != nil {
		word = err.Error()
	}
	_, _ = f.WriteString(word) // the one who started us may be gone
	_ = f.Close()
}
