// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"braid/cluster"
	"braid/cmd/internal/cli"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// scrub is what -o json prints of a device's newest scrub.
type scrub struct {
	Device     uint32 `json:"device"`
	Name       string `json:"name"`
	Volume     string `json:"volume"` // that alone; empty: everything
	State      string `json:"state"`  // never | waiting | running | done | stopped
	BytesDone  uint64 `json:"bytes_done"`
	BytesTotal uint64 `json:"bytes_total"`
	Started    string `json:"started"`
	Ended      string `json:"ended"`
	Rotten     uint64 `json:"rotten"`
	Mended     uint64 `json:"mended"`
	Unmended   uint64 `json:"unmended"`
	Rate       uint64 `json:"rate"`
	Scrubbed   string `json:"scrubbed"` // start of the newest over everything that ended; empty: never
	// Since the server started, whoever found them.
	RotFound  uint64 `json:"rot_found"`
	RotMended uint64 `json:"rot_mended"`
}

func toScrub(d *pb.DeviceScrub) scrub {
	r := d.GetReport()
	out := scrub{Device: d.Device, Name: d.Name, Volume: d.Volume, State: r.GetState(), BytesDone: r.GetBytesDone(),
		BytesTotal: r.GetBytesTotal(), Rotten: r.GetRotten(), Mended: r.GetMended(), Unmended: r.GetUnmended(),
		Rate: r.GetRate(), RotFound: d.RotFound, RotMended: d.RotMended}
	if d.ScrubbedMs != 0 {
		out.Scrubbed = time.UnixMilli(d.ScrubbedMs).UTC().Format(time.RFC3339)
	}
	if r != nil {
		out.Started = time.UnixMilli(r.StartedMs).UTC().Format(time.RFC3339)
		if r.EndedMs != 0 {
			out.Ended = time.UnixMilli(r.EndedMs).UTC().Format(time.RFC3339)
		}
	}
	switch {
	case d.Waiting:
		out.State = "waiting"
	case out.State == "":
		out.State = "never"
	}
	return out
}

func (a *app) showScrubs(s *pb.ScrubStatusResponse, only []uint32) error {
	list := []scrub{}
	for _, d := range s.Devices {
		if len(only) == 0 || slices.Contains(only, d.Device) {
			list = append(list, toScrub(d))
		}
	}
	if a.json() {
		return a.printJSON(list)
	}
	rows := make([][]string, 0, len(list))
	for _, s := range list {
		done := size(s.BytesDone)
		if s.State == "running" && s.BytesTotal > 0 {
			done += fmt.Sprintf(" of %s (%d %%)", size(s.BytesTotal), min(100*s.BytesDone/s.BytesTotal, 99))
		}
		rows = append(rows, []string{fmt.Sprint(s.Device), s.Name, orDash(s.Volume), s.State, done,
			fmt.Sprint(s.Rotten),
			fmt.Sprint(s.Mended), fmt.Sprint(s.Unmended), orDash(s.Started), orDash(s.Scrubbed)})
	}
	printTable(a.out, []string{">DEVICE", "PATH", "VOLUME", "STATE", "READ", ">ROTTEN", ">MENDED", ">NOT MENDED",
		"STARTED", "LAST AS A WHOLE"}, rows)
	return nil
}

// devicesNamed finds devices by number or SERVER:PATH.
func devicesNamed(ctx context.Context, mdm *client.Client, names []string) (ids []uint32, err error) {
	if len(names) == 0 {
		return nil, nil
	}
	devices, err := mdm.ListDevices(ctx)
	if err != nil {
		return nil, err
	}
	for _, name := range names {
		i := slices.IndexFunc(devices, func(d *pb.Device) bool {
			return strconv.Itoa(int(d.Id)) == name || d.Server+":"+d.Path == name
		})
		if i < 0 {
			return nil, fmt.Errorf("device %s: there is none; `scli device list` shows them", name)
		}
		ids = append(ids, devices[i].Id)
	}
	return ids, nil
}

func (a *app) scrubCommand() *cobra.Command {
	var all, stop, wait bool
	var rate string
	order := func(c *cobra.Command, args []string) error {
		if all == (len(args) > 0) {
			return cli.Usagef("scrub: name the devices or one volume, or give --all")
		}
		r := &pb.ScrubRequest{Stop: stop}
		if rate != "" {
			n, err := cluster.ParseSize(rate)
			if err != nil || n == 0 {
				return cli.Usagef("--rate %s: give bytes per second, as 50M", rate)
			}
			r.Rate = n
		}
		return a.ask(c, func(ctx context.Context, mdm *client.Client) (err error) {
			if r.Devices, err = devicesNamed(ctx, mdm, args); err != nil {
				if len(args) > 1 || !isVolume(ctx, mdm, args[0]) {
					return err
				}
				r.Devices, r.Volume = nil, args[0]
			}
			s, err := mdm.Scrub(ctx, r)
			if err != nil {
				return err
			}
			if wait && !stop {
				return a.awaitScrubs(ctx, mdm, s.Ordered)
			}
			return a.showScrubs(s, s.Ordered)
		})
	}
	c := &cobra.Command{
		Use:   "scrub DEVICE… | VOLUME | --all",
		Short: "Read all that devices hold and mend what does not match its checksums",
		Long: `Read everything that devices hold, compare it with its checksums, and write what
does not match again from another copy. With a volume, only its chunks are read,
on all devices that hold copies of them. It goes on in the background, slower
while clients are served; what is found is among the events, too.

Devices are also scrubbed by themselves, every 14 days unless set otherwise
(scli cluster set scrub-every=7d), one at a time in each fault set. One that is
stopped does not begin again by itself for a day.

With --wait it is waited for; then the exit code is 1 if something could not be
mended.`,
		Example: `  scli scrub --all
  scli scrub db --wait                  all copies of volume db
  scli scrub 3 --rate 20M               20 MiB a second at most
  scli scrub status`,
		RunE: order,
	}
	f := c.Flags()
	f.BoolVar(&all, "all", false, "all devices")
	f.BoolVar(&stop, "stop", false, "end the scrub that is going on")
	f.BoolVar(&wait, "wait", false, "wait for the end, and sum up")
	f.StringVar(&rate, "rate", "", "bytes per second and device at most (default: scrub-rate, or 64M)")
	c.AddCommand(&cobra.Command{
		Use:   "status",
		Short: "Show how far scrubs have come and what they found",
		Args:  cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				s, err := mdm.ScrubStatus(ctx)
				if err != nil {
					return err
				}
				return a.showScrubs(s, nil)
			})
		},
	})
	return c
}
