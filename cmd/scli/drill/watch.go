// SPDX-License-Identifier: Apache-2.0

package drill

import (
	"context"
	"time"

	"braid/mdm/client"
	"braid/mdm/pb"
)

// watch follows the cluster's state.
type watch struct {
	mdm    *client.Client
	before *pb.StatusResponse
	last   *pb.StatusResponse
}

// whole: as before the drill, and every copy in sync.
func (w *watch) whole(s *pb.StatusResponse) bool {
	return s.PgsDegraded == 0 && s.PgsRebuilding == 0 && s.DevicesUp >= w.before.DevicesUp
}

// starts sums how often the devices of a server were started.
func (w *watch) starts(ctx context.Context, server string) (n uint64) {
	devices, err := w.mdm.ListDevices(ctx)
	if err != nil {
		return 0
	}
	for _, d := range devices {
		if d.Server == server {
			n += d.StartCounter
		}
	}
	return n
}

// until waits until something is so, and reports whether it is.
func (w *watch) until(ctx context.Context, limit time.Duration, ok func(*pb.StatusResponse) bool) bool {
	ticker := time.NewTicker(poll)
	defer ticker.Stop()
	for end := time.Now().Add(limit); ; {
		if s, err := w.mdm.Status(ctx); err == nil {
			if w.last = s; ok(s) {
				return true
			}
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return false
		}
		if time.Now().After(end) {
			return false
		}
	}
}

// newLeader makes changes for a while, and until they go through again.
func (w *watch) newLeader(ctx context.Context, least, limit time.Duration, r *Report) {
	began := time.Now()
	last, longest := began, time.Duration(0)
	s, err := w.mdm.Settings(ctx)
	for err == nil {
		same := s.Reserve
		if _, err = w.mdm.SetSettings(ctx, &pb.SetSettingsRequest{Reserve: &same}); err == nil {
			longest, last = max(longest, time.Since(last)), time.Now()
		}
		if over := time.Since(began); over > least && err == nil || over > limit {
			break
		}
		select {
		case <-time.After(poll / 4):
			err = nil
		case <-ctx.Done():
			err = ctx.Err()
		}
	}
	r.check(err == nil, "the metadata can be changed again", "the longest time in which it could not: %v%s",
		longest.Round(time.Millisecond), listed(errorText(err)))
}

func errorText(err error) []string {
	if err == nil {
		return nil
	}
	return []string{err.Error()}
}

// rot sums what a server's devices found and mended since they were started, and
// whether none of them scrubs the volume any more.
func (w *watch) rot(ctx context.Context, server, volume string) (found, mended uint64, done bool, err error) {
	devices, err := w.mdm.ListDevices(ctx)
	if err != nil {
		return 0, 0, false, err
	}
	on := map[uint32]bool{}
	for _, d := range devices {
		on[d.Id] = d.Server == server
	}
	st, err := w.mdm.ScrubStatus(ctx)
	if err != nil {
		return 0, 0, false, err
	}
	done = true
	for _, d := range st.Devices {
		if on[d.Device] {
			found, mended = found+d.RotFound, mended+d.RotMended
		}
		done = done && (d.Volume != volume || !d.Waiting && d.Report.GetState() == "done")
	}
	return found, mended, done, nil
}

// scrub has all devices read what rotted of the drill's volume and no client has met.
func (w *watch) scrub(ctx context.Context, t Terms, volume string, foundBefore, mendedBefore uint64, r *Report) {
	t.Say("scrubbing volume %s", volume)
	_, err := w.mdm.Scrub(ctx, &pb.ScrubRequest{Volume: volume})
	found, mended, ok := uint64(0), uint64(0), false
	if err == nil {
		ok = w.until(ctx, t.Patient, func(*pb.StatusResponse) bool {
			all, whole, done, failed := w.rot(ctx, t.Server, volume)
			found, mended, err = all-foundBefore, whole-mendedBefore, failed
			return failed == nil && done && found > 0 && found == mended
		})
	}
	r.check(ok, "rot is found and mended", "%d blocks found, %d mended%s", found, mended, listed(errorText(err)))
}
