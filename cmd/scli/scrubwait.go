// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"slices"
	"time"

	"github.com/schollz/progressbar/v3"
	"golang.org/x/term"

	"braid/mdm/client"
	"braid/mdm/pb"
)

// Terms of waiting for scrubs.
const (
	scrubLook  = 500 * time.Millisecond
	scrubQuiet = time.Minute // without news a server is gone
)

// isVolume reports whether there is a volume of that name.
func isVolume(ctx context.Context, mdm *client.Client, name string) bool {
	list, err := mdm.ListVolumes(ctx)
	return err == nil && slices.ContainsFunc(list, func(v *pb.Volume) bool { return v.Name == name })
}

// scrubSum is all that scrubs of some devices have found.
type scrubSum struct {
	Devices  int    `json:"devices"`
	Stopped  int    `json:"stopped"` // of these, before the end
	Read     uint64 `json:"bytes_read"`
	Rotten   uint64 `json:"rotten"`
	Mended   uint64 `json:"mended"`
	Unmended uint64 `json:"unmended"`
	total    uint64
	going    bool // some have not ended, or mend what they found
}

func sumScrubs(list []*pb.DeviceScrub, only []uint32) (x scrubSum) {
	for _, d := range list {
		if !slices.Contains(only, d.Device) {
			continue
		}
		s := toScrub(d)
		x.Devices++
		if s.State == "stopped" {
			x.Stopped++
		}
		x.going = x.going || s.State == "waiting" || s.State == "running" || s.Mended+s.Unmended < s.Rotten
		if s.State == "waiting" {
			continue // the rest is of the run before
		}
		x.Read, x.total = x.Read+s.BytesDone, x.total+max(s.BytesTotal, s.BytesDone)
		x.Rotten, x.Mended, x.Unmended = x.Rotten+s.Rotten, x.Mended+s.Mended, x.Unmended+s.Unmended
	}
	return x
}

// awaitScrubs waits until these devices have ended and sums up.
func (a *app) awaitScrubs(ctx context.Context, mdm *client.Client, devices []uint32) error {
	var bar *progressbar.ProgressBar
	if f, ok := a.warn.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
		bar = progressbar.NewOptions64(1, progressbar.OptionSetWriter(f), progressbar.OptionSetDescription("scrub"),
			progressbar.OptionSetWidth(30), progressbar.OptionClearOnFinish(), progressbar.OptionShowBytes(true))
	}
	ticker := time.NewTicker(scrubLook)
	defer ticker.Stop()
	var last scrubSum
	news := time.Now()
	for {
		s, err := mdm.ScrubStatus(ctx)
		if err != nil {
			return err
		}
		x := sumScrubs(s.Devices, devices)
		if bar != nil && x.total > 0 {
			bar.ChangeMax64(int64(x.total) + 1) // it ends when all have ended
			_ = bar.Set64(int64(x.Read))        // a terminal that has gone is no reason to stop
		}
		if x != last {
			last, news = x, time.Now()
		}
		quiet := time.Since(news) > scrubQuiet
		if !x.going || quiet {
			if bar != nil {
				_ = bar.Clear()
			}
			return a.showScrubSum(x, quiet)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return fmt.Errorf("wait for scrubs: %w; they go on, see `scli scrub status`", ctx.Err())
		}
	}
}

func (a *app) showScrubSum(x scrubSum, quiet bool) error {
	if a.json() {
		if err := a.printJSON(x); err != nil {
			return err
		}
	} else {
		fmt.Fprintf(a.out, "%d devices: %s read, %d blocks did not match their checksums, %d of them were mended, "+
			"%d could not be\n", x.Devices, size(x.Read), x.Rotten, x.Mended, x.Unmended)
	}
	switch {
	case quiet:
		return fmt.Errorf("scrub: nothing has happened for %v; `scli scrub status` and `scli status` show which "+
			"device does not go on", scrubQuiet)
	case x.Stopped > 0:
		return fmt.Errorf("scrub: %d of %d devices were stopped before the end", x.Stopped, x.Devices)
	case x.Unmended > 0:
		return fmt.Errorf("scrub: %d blocks could not be mended: no other copy has what matches; `scli events` "+
			"says on which devices", x.Unmended)
	}
	return nil
}
