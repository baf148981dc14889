// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/nbd/kernel"
)

// saved is what a daemon leaves behind for its successor: enough to go on serving
// a kernel device after a crash. It lies in RUN/nbdN.json from the attach to the
// detach. RUN does not survive a reboot, and neither does the kernel's device.
type saved struct {
	// Attach has the volume's name as it was at the attach, which is what the kernel
	// knows the device by. ID says which volume it is: its name may be another's now.
	Attach     AttachRequest      `json:"attach"`
	ID         cluster.VolumeID   `json:"volume_id,omitempty"`
	Client     string             `json:"client"` // the session's client id
	Generation cluster.Generation `json:"generation"`
}

func savedPath(dir string, index int) string {
	return filepath.Join(dir, fmt.Sprintf("nbd%d.json", index))
}

// save writes the state of a device.
func (s *saved) save(dir string, index int) error {
	b, err := json.Marshal(s)
	if err != nil {
		return fmt.Errorf("encode the state of nbd%d: %w", index, err)
	}
	return replaceFile(savedPath(dir, index), b)
}

// load reads the state of a device; nil without an error when there is none.
func load(dir string, index int) (*saved, error) {
	b, err := os.ReadFile(savedPath(dir, index))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the state of nbd%d: %w", index, err)
	}
	s := &saved{}
	if err := json.Unmarshal(b, s); err != nil {
		return nil, fmt.Errorf("decode the state in %s: %w", savedPath(dir, index), err)
	}
	return s, nil
}

func forgetSaved(dir string, index int) { _ = os.Remove(savedPath(dir, index)) }

// replaceFile writes a file in one step.
func replaceFile(path string, b []byte) error {
	next := path + ".new"
	if err := os.WriteFile(next, b, 0o600); err != nil {
		return fmt.Errorf("write %s: %w", next, err)
	}
	if err := os.Rename(next, path); err != nil {
		return fmt.Errorf("replace %s: %w", path, err)
	}
	return nil
}

// clientID is who the daemons of this run directory are to the metadata managers:
// the same before and after a crash, so that a successor may go on with a session
// that nobody else has taken. The lock sees to it that there is one at a time.
func clientID(dir string) (id [16]byte, err error) {
	path := filepath.Join(dir, "client-id")
	b, err := os.ReadFile(path)
	if err == nil {
		raw, decodeErr := hex.DecodeString(strings.TrimSpace(string(b)))
		if decodeErr == nil && len(raw) == len(id) {
			return [16]byte(raw), nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return id, fmt.Errorf("read the client id: %w", err)
	}
	if _, err := rand.Read(id[:]); err != nil {
		return id, fmt.Errorf("draw a client id: %w", err)
	}
	return id, replaceFile(path, []byte(hex.EncodeToString(id[:])+"\n"))
}

// findOrphans takes the places of the kernel devices that a daemon which died has
// left, before anybody else can ask for them.
func (d *Daemon) findOrphans() {
	for _, c := range d.o.kernel.list() {
		s, err := load(d.o.Dir, c.Index)
		if err == nil && s == nil {
			err = errors.New("its state is not in " + d.o.Dir)
		}
		var a *attachment
		if err == nil {
			a, err = d.place(c.Index, c.Path, s.Attach, s)
		}
		if err != nil {
			d.unresumed[c.Index] = err
			d.o.Log.Warn("a device whose daemon has died is left alone; sdc detach removes it",
				"device", c.Path, "volume", c.Volume, "reason", err)
			continue
		}
		d.orphans = append(d.orphans, a)
	}
}

// resume goes on serving them.
func (d *Daemon) resume(ctx context.Context) {
	for _, a := range d.orphans {
		d.work.Go(func() {
			if err := d.open(ctx, a, a.resumed.Attach); err != nil {
				d.o.Log.Warn("cannot go on serving a device whose daemon has died; sdc detach removes it",
					"device", a.path, "volume", a.resumed.Attach.Volume, "error", err)
				return
			}
			d.o.Log.Info("serving a device again whose daemon had died", "device", a.path)
		})
	}
}

// orphanPatience is how long the end of a dead daemon's session may take.
const orphanPatience = 3 * time.Second

// DetachOrphan disconnects a kernel device whose daemon has died, and ends the
// session that the daemon had. The reply's warning is never empty.
func DetachOrphan(ctx context.Context, dir, device string, force bool) (DetachReply, error) {
	index, _, err := kernel.ParseDevice(device)
	if err != nil {
		return DetachReply{}, err
	}
	unflushed, err := kernel.DetachOrphan(device, force)
	if err != nil {
		return DetachReply{}, err
	}
	reply := DetachReply{Warning: "what was written last may be lost: " + unflushed.Error()}
	s, err := load(dir, index)
	if err != nil || s == nil || s.Attach.Memory > 0 {
		return reply, err
	}
	reply.Volume = s.Attach.Volume
	mdm, err := client.New(s.Attach.Mdm, client.Options{Patience: orphanPatience})
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, orphanPatience)
		defer cancel()
		err = errors.Join(mdm.Detach(ctx, client.Held{Volume: s.ID, Name: s.Attach.Volume, Client: s.Client,
			Generation: s.Generation}), mdm.Close())
	}
	if err != nil {
		reply.Warning += "; its session could not be ended, so the next attach needs --force: " + err.Error()
	}
	forgetSaved(dir, index)
	return reply, nil
}
