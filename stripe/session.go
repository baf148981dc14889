// SPDX-License-Identifier: Apache-2.0

package stripe

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"braid/cluster"
	"braid/mdm/client"
	"braid/stripe/core"
)

// rpcPause is how long a failed call to the metadata manager waits for the next.
const rpcPause = time.Second

// watch follows the map for as long as the volume lives.
func (v *Volume) watch() {
	ids := []cluster.VolumeID{v.volume.ID}
	for {
		// It returns when it is refused for good; a manager restored from a backup
		// may think otherwise later, and until then the last map is good.
		_ = v.cfg.Mdm.WatchMap(v.ctx, ids, func(m *cluster.Map) {
			v.loop.Post(func() { v.adopt(m) })
		})
		if !sleep(v.ctx, rpcPause) {
			return
		}
	}
}

// renewSoonest is how far apart renewals are that the map asks for.
const renewSoonest = 50 * time.Millisecond

// renew keeps the session's lease. A manager that cannot be reached changes
// nothing: only its word that the session is somebody else's does. A volume that is
// lost lets its lease run out, as a client that has died: nobody would answer a resync
// target that asks for a chunk's lock, and groups are shared with other volumes. Its
// session is not ended: the record says that the guest cannot go on.
func (v *Volume) renew() {
	for v.pause(v.lease / 3) {
		state := client.SessionState{Volume: v.volume.ID, Generation: v.gen}
		isLost := false
		v.loop.Call(func() {
			state.AdoptedVersion, state.SoundVersion = v.core.Adopted(), v.core.Sound()
			state.Roomless = v.nowRoomless()
			isLost = v.core.Err() != nil
		})
		if isLost {
			return
		}
		lost, err := v.cfg.Mdm.RenewSession(v.ctx, v.client, []client.SessionState{state})
		if err == nil {
			v.loop.Call(func() { v.told = max(v.told, state.AdoptedVersion) })
		}
		if err != nil || !slices.Contains(lost, v.volume.ID) {
			continue
		}
		by := v.holder()
		v.loop.Call(func() {
			v.core.Fenced(v.loop.Now(), by)
			v.drain()
		})
		return
	}
}

// pause waits for so long, or until the session is to be renewed soon.
func (v *Volume) pause(d time.Duration) bool {
	if !sleep(v.ctx, renewSoonest) {
		return false
	}
	t := time.NewTimer(max(d-renewSoonest, 0))
	defer t.Stop()
	select {
	case <-t.C:
	case <-v.soon:
	case <-v.ctx.Done():
		return false
	}
	return true
}

// tellAdopted has the session renewed at once when the newest map is adopted and
// somebody waits for that: a resync target does (rule 23), and an attach that has
// fenced every device.
func (v *Volume) tellAdopted() {
	version := v.core.Adopted()
	if version <= v.told || version < v.core.Version() {
		return
	}
	v.adopting = false
	if v.told > 0 && !v.core.HasTarget() {
		return
	}
	v.told = version
	select {
	case v.soon <- struct{}{}:
	default: // it is on its way
	}
}

// roomlessFor is for how long writes have not waited for room when that counts as the
// end: the kernel drops requests that take long, and sends them again.
const roomlessFor = int64(3 * time.Second)

// nowRoomless is on which devices writes wait for room.
func (v *Volume) nowRoomless() []cluster.DeviceID {
	now := v.loop.Now()
	if list := v.core.Roomless(); len(list) > 0 {
		v.roomless, v.roomlessUntil = list, now
	} else if now-v.roomlessUntil > roomlessFor {
		v.roomless = nil
	}
	v.toldRoomless = len(v.roomless) > 0
	return v.roomless
}

// tellRoomless has the session renewed at once when writes begin to wait for room. That
// they do no longer the next renewal tells.
func (v *Volume) tellRoomless() {
	v.roomlessUntil = v.loop.Now()
	if v.toldRoomless || !v.core.IsRoomless() {
		return
	}
	v.toldRoomless = true
	select {
	case v.soon <- struct{}{}:
	default: // it is on its way
	}
}

// report tells the metadata manager of a device that cannot be reached, one call
// at a time for each.
func (v *Volume) report(e *core.Effect) {
	if v.reports[e.Device] || v.ended {
		return
	}
	v.reports[e.Device] = true
	trouble := client.DeviceTrouble{Volume: v.volume.ID, Generation: v.gen, Device: e.Device,
		Reason: e.Text, FaultSets: e.FaultSets, Attaching: e.Attaching}
	if p := v.peers[peerKey{e.Device, 0}]; p != nil && p.lastErr != nil {
		trouble.Reason = p.lastErr.Error()
	}
	v.work.Go(func() {
		// An error is no matter: the core reports again while the device is away.
		_, _ = v.cfg.Mdm.ReportDevice(v.ctx, trouble)
		v.loop.Post(func() { delete(v.reports, trouble.Device) })
	})
}

// holder asks who has the volume, for the error text.
func (v *Volume) holder() string {
	c, ok := v.cfg.Mdm.(*client.Client)
	if !ok {
		return "the metadata manager ended the session"
	}
	ctx, cancel := context.WithTimeout(v.ctx, rpcPause)
	defer cancel()
	volumes, err := c.ListVolumes(ctx)
	if err != nil {
		return "the metadata manager ended the session and does not say for whom"
	}
	for _, l := range volumes {
		if l.GetId() == uint64(v.volume.ID) && l.GetAttachedBy() != "" {
			return fmt.Sprintf("by %s since %s", l.GetAttachedBy(), l.GetAttachedSince())
		}
	}
	return "the metadata manager ended the session"
}

// dropReplica reports a device whose copies are broken, until it is heard.
func (v *Volume) dropReplica(dev cluster.DeviceID, why string) {
	v.work.Go(func() {
		for {
			_, last, err := v.cfg.Mdm.DropReplica(v.ctx, client.DropRequest{Volume: v.volume.ID,
				Generation: v.gen, Device: dev, Reason: why})
			if err == nil {
				v.loop.Post(func() {
					v.core.Dropped(v.loop.Now(), dev, last)
					v.drain()
				})
				return
			}
			if !sleep(v.ctx, rpcPause) {
				return
			}
		}
	})
}

// lost tells the owner, and who holds the volume now where that is why.
func (v *Volume) lost(err error) {
	v.ended = true
	if v.cfg.Lost == nil || v.closing {
		return
	}
	if !errors.Is(err, core.ErrFenced) {
		v.loop.Post(func() { v.cfg.Lost(err) })
		return
	}
	v.work.Go(func() {
		by := v.holder()
		v.loop.Post(func() { v.cfg.Lost(fmt.Errorf("%w (%s)", err, by)) })
	})
}
