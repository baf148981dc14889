// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"braid/server"
	"braid/server/disk"
	"braid/server/store"
)

// openStore opens a device that must hold a store.
func openStore(path string, readOnly bool) (disk.Backing, store.Identity, error) {
	// Force: the probes would look at what clients have stored, too. Whose the
	// device is, the superblock says.
	b, err := disk.Open(path, disk.Options{ReadOnly: readOnly, Force: true})
	if err != nil {
		return nil, store.Identity{}, err
	}
	id, err := store.ReadIdentity(b)
	if err == nil {
		return b, id, nil
	}
	if errors.Is(err, store.ErrNotFormatted) {
		if what, perr := disk.Probe(b); perr == nil && what != "" {
			err = fmt.Errorf("%w; it holds %s", err, what)
		}
		err = fmt.Errorf("%w (`sds format %s` makes it a Braid device)", err, path)
	}
	return nil, store.Identity{}, errors.Join(fmt.Errorf("device %s: %w", path, err), b.Close())
}

// openDisks opens what can be opened. A device that cannot is logged and left
// out, so that one dead disk does not keep a server from starting; with none
// left that is an error.
func openDisks(ctx context.Context, paths []string, log *slog.Logger) ([]server.Disk, error) {
	ctx, cancel := context.WithTimeout(ctx, releaseWait)
	defer cancel()
	var disks []server.Disk
	var errs []error
	for _, path := range paths {
		b, err := openReleased(ctx, path, log)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		disks = append(disks, server.Disk{Path: path, Backing: b})
	}
	if len(disks) == 0 {
		return nil, errors.Join(errs...)
	}
	for _, err := range errs {
		log.Error("device left out; the others are served", "error", err)
	}
	return disks, nil
}

// releaseWait bounds how long a start waits for devices that are in use. The
// kernel lets go of the devices of a killed process only when its io_uring has
// been torn down, which is some time after the process is gone.
const releaseWait = 5 * time.Second

// openReleased opens a store, and waits if something still holds the device.
func openReleased(ctx context.Context, path string, log *slog.Logger) (disk.Backing, error) {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for told := false; ; told = true {
		b, _, err := openStore(path, false)
		if !errors.Is(err, disk.ErrInUse) {
			return b, err
		}
		if !told {
			log.Info("device is in use; waiting for its release", "device", path, "for", releaseWait)
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-tick.C:
		}
	}
}

func closeDisks(disks []server.Disk) error {
	var errs []error
	for _, d := range disks {
		errs = append(errs, d.Backing.Close())
	}
	return errors.Join(errs...)
}

// openFresh opens a device to be formatted. Without force it must hold nothing.
func openFresh(path string, force bool) (disk.Backing, error) {
	b, err := disk.Open(path, disk.Options{Force: true})
	if err != nil || force {
		return b, err
	}
	if err := refuseUsed(path, b); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b, nil
}

// refuseUsed says what a device holds, if anything.
func refuseUsed(path string, b disk.Backing) error {
	id, err := store.ReadIdentity(b)
	switch {
	case err == nil && id.Cluster.IsZero():
		return fmt.Errorf("format %s: it is formatted already (device %v, of no cluster yet); "+
			"`sds serve --device %s` uses it as it is, --force formats it again", path, id.Device, path)
	case err == nil:
		return fmt.Errorf("format %s: it holds a Braid store: device %v of cluster %v; "+
			"if its data is not needed, give --force", path, id.Device, id.Cluster)
	case !errors.Is(err, store.ErrNotFormatted):
		return fmt.Errorf("format %s: it holds a Braid store that cannot be read (%w); "+
			"if its data is not needed, give --force", path, err)
	}
	what, err := disk.Probe(b)
	if err != nil {
		return fmt.Errorf("format %s: %w", path, err)
	}
	if what != "" {
		return fmt.Errorf("format %s: %w: %s; if it is not needed, give --force, which destroys it",
			path, disk.ErrForeign, what)
	}
	return nil
}
