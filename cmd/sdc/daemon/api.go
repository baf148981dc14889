// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"time"
)

// RunDir is where the daemon keeps its socket, lock and log.
func RunDir() string {
	if dir := os.Getenv("BRAID_RUN"); dir != "" {
		return dir
	}
	return "/run/braid"
}

func socketPath(dir string) string { return filepath.Join(dir, "sdc.sock") }
func lockPath(dir string) string   { return filepath.Join(dir, "sdc.lock") }

// LogPath is the log of a daemon that attach has started.
func LogPath(dir string) string { return filepath.Join(dir, "sdc.log") }

// AttachRequest asks for a volume as a kernel device.
type AttachRequest struct {
	Device      string        `json:"device"`
	Volume      string        `json:"volume,omitempty"`
	Mdm         []string      `json:"mdm"`
	Connections int           `json:"connections,omitempty"`
	Timeout     time.Duration `json:"timeout,omitempty"`
	DeadTimeout time.Duration `json:"deadTimeout,omitempty"`
	Force       bool          `json:"force,omitempty"`
	ReadOnly    bool          `json:"readOnly,omitempty"`
	OnFull      OnFull        `json:"onFull,omitempty"`
	Ioctl       bool          `json:"ioctl,omitempty"`
	Memory      uint64        `json:"memory,omitempty"` // a memory device instead of a volume
	BlockSize   int           `json:"blockSize,omitempty"`
}

// OnFull says what a write does that needs space where there is none.
type OnFull string

// It waits until there is some, which is the default, or it fails (ENOSPC).
const (
	OnFullWait  OnFull = "wait"
	OnFullError OnFull = "error"
)

// Check reports whether it is one of these.
func (o OnFull) Check() error {
	if o == "" || o == OnFullWait || o == OnFullError {
		return nil
	}
	return fmt.Errorf("--on-full %s: want %s or %s", o, OnFullWait, OnFullError)
}

// DetachRequest asks for the end of an attachment.
type DetachRequest struct {
	Device string `json:"device"`
	Force  bool   `json:"force,omitempty"`
}

// DetachReply tells what was lost, if anything.
type DetachReply struct {
	Volume  string `json:"volume"`
	Warning string `json:"warning,omitempty"`
}

// State of an attachment.
type State string

// The states. An orphan is a kernel device whose daemon is gone.
const (
	StateAttaching State = "attaching"
	StateAttached  State = "attached"
	StateWaiting   State = "waiting" // requests wait: see sdc why
	StateFailed    State = "failed"  // the volume can serve no longer
	StateDetaching State = "detaching"
	StateOrphan    State = "orphan"
)

// Attachment is what list shows. Sizes are bytes.
type Attachment struct {
	Device      string    `json:"device"`
	Volume      string    `json:"volume"`
	Link        string    `json:"link,omitempty"`
	State       State     `json:"state"`
	Reason      string    `json:"reason,omitempty"` // of StateFailed
	Size        uint64    `json:"size"`
	BlockSize   int       `json:"blockSize,omitempty"`
	ReadOnly    bool      `json:"readOnly"`
	Use         string    `json:"use,omitempty"` // mounted, held
	Since       time.Time `json:"since,omitzero"`
	Connections int       `json:"connections"`
	Reconnects  int       `json:"reconnects"`
	InFlight    int       `json:"inFlight"`
	OldestMS    int64     `json:"oldestMs"`
	Reads       uint64    `json:"reads"`
	Writes      uint64    `json:"writes"`
	Flushes     uint64    `json:"flushes"`
	ReadBytes   uint64    `json:"readBytes"`
	WriteBytes  uint64    `json:"writeBytes"`
	Errors      uint64    `json:"errors"`
}

// Wait is one reason for which requests of an attachment wait.
type Wait struct {
	Device   uint32    `json:"device,omitempty"` // the cluster's number of it
	Server   string    `json:"server,omitempty"`
	Addr     string    `json:"addr,omitempty"`
	Reason   string    `json:"reason"` // a word of core.WaitReason
	Why      string    `json:"why"`
	Next     string    `json:"next,omitempty"`   // what happens next, by itself
	NextAt   time.Time `json:"next_at,omitzero"` // and when, if that is known
	Requests int       `json:"requests"`
	Since    time.Time `json:"since,omitzero"` // of the oldest, which is
	Op       string    `json:"op"`
	Offset   uint64    `json:"offset"`
	Length   uint64    `json:"length"`
}

// WhyReply tells what an attachment waits for.
type WhyReply struct {
	Attachment Attachment `json:"attachment"`
	Waits      []Wait     `json:"waits"`
	MapRefused string     `json:"map_refused,omitempty"` // why a newer map is not taken
}

// failure is the body of a reply that is not 200.
type failure struct {
	Error  string `json:"error"`
	Ending bool   `json:"ending,omitempty"` // ask again: the daemon was just ending
}
