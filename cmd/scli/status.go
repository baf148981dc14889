// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"braid/cmd/internal/cli"
	"braid/cmd/internal/screen"
	"braid/mdm/client"
	"braid/mdm/pb"
)

// status is what -o json prints.
type status struct {
	Cluster     string     `json:"cluster"`
	Health      string     `json:"health"`
	Reasons     []string   `json:"reasons"`
	Servers     uint32     `json:"servers"`
	ServersUp   uint32     `json:"servers_up"`
	Devices     uint32     `json:"devices"`
	DevicesUp   uint32     `json:"devices_up"`
	Capacity    uint64     `json:"capacity"`
	Used        uint64     `json:"used"`
	Volumes     uint32     `json:"volumes"`
	Attached    uint32     `json:"attached"`
	Waiting     uint32     `json:"volumes_waiting_for_space"`
	PGs         uint32     `json:"pgs"`
	PGsDegraded uint32     `json:"pgs_degraded"`
	MapVersion  uint64     `json:"map_version"`
	Leader      string     `json:"leader"`
	Members     []member   `json:"members"`
	Exposure    []exposure `json:"exposure"`
	CatchUp     []catchUp  `json:"catch_up"`
	Moves       *moves     `json:"moves"` // null: not known
	Settings    settings   `json:"settings"`
	Scrub       oldScrub   `json:"scrub"`
	Serve       []serving  `json:"serve"`
	Next        []string   `json:"next"` // what the operator should do, the most urgent first
}

type member struct {
	Name string `json:"name"`
	Addr string `json:"addr"`
}

// exposure is groups that have fewer copies than they should.
type exposure struct {
	Copies  uint32 `json:"copies"` // in sync on devices that are up
	Wanted  uint32 `json:"wanted"`
	Groups  uint32 `json:"groups"`
	Seconds int64  `json:"seconds"` // since when, of the one that has waited longest; -1: not known
}

// catchUp is a device that is brought in sync.
type catchUp struct {
	Device   uint32 `json:"device"`
	Name     string `json:"name"`
	Groups   uint32 `json:"groups"`
	Compared uint32 `json:"compared"`
	Left     uint64 `json:"bytes_left"` // at most
	Copied   uint64 `json:"bytes_copied"`
	// Measured over some seconds, 0: not yet: by which bytes_left falls, and of it
	// what differed and was copied.
	Rate       uint64 `json:"bytes_per_second"`
	CopiedRate uint64 `json:"copied_per_second"`
	Pace       uint64 `json:"pace"`         // bytes per second that would be allowed; 0: all that goes
	Seconds    int64  `json:"seconds_left"` // -1: not known
	Stuck      string `json:"stuck"`
}

// oldScrub is of the device that was scrubbed as a whole the longest ago.
type oldScrub struct {
	Device  uint32 `json:"device"`  // 0: there are no devices
	Seconds int64  `json:"seconds"` // since its start; -1: never
}

// serving is what a server can do, and why.
type serving struct {
	Server  string `json:"server"`
	State   string `json:"state"` // up, down, maintenance
	Devices int    `json:"devices"`
	Up      int    `json:"devices_up"`
	Serves  string `json:"serves"`
}

func (a *app) statusCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "status",
		Short: "Show the cluster's health, and what to do",
		Long: `Show the cluster's health and size, what is missing, how far it is being mended,
and what to do.

Health is one of
  ok           every copy is there
  rebalancing  copies are being moved; none is missing
  rebuilding   copies are missing and are being made; nothing is down
  degraded     something is down; I/O goes on with fewer copies
  full         a device is nearly full, or writes wait for space (they say so: "writers wait")
  unavailable  for some data no copy is up: I/O to it waits, nothing is lost

Exposure says how much of the data has how few copies, and since when. Bytes left
are at most what is left: blocks that turn out to be equal are not copied. The rate
is that of the last seconds.`,
		Args: cli.NoArgs,
		RunE: func(c *cobra.Command, _ []string) error {
			return a.ask(c, func(ctx context.Context, mdm *client.Client) error {
				s, err := a.newStatus(ctx, mdm)
				if err != nil {
					return err
				}
				if a.json() {
					return a.printJSON(s)
				}
				_, err = fmt.Fprint(a.out, s.text())
				return err
			})
		},
	}
}

// newStatus asks for all there is to know. Where only the first answer comes, the
// rest is left out: a member that does not lead knows less.
func (a *app) newStatus(ctx context.Context, mdm *client.Client) (*status, error) {
	m, err := mdm.Status(ctx)
	if err != nil {
		return nil, err
	}
	s := fromStatus(m, time.Now())
	if m, err := mdm.Moves(ctx); err == nil {
		moving := toMoves(m)
		s.Moves = &moving
	}
	servers, err := mdm.ListServers(ctx)
	if err != nil {
		return s, nil
	}
	if devices, err := mdm.ListDevices(ctx); err == nil {
		s.serving(servers, devices)
		s.advise(devices)
	}
	return s, nil
}

func fromStatus(m *pb.StatusResponse, now time.Time) *status {
	s := &status{Cluster: uuidText(m.Cluster), Health: m.Health, Reasons: append([]string{}, m.Reasons...),
		Servers: m.Servers, ServersUp: m.ServersUp, Devices: m.Devices, DevicesUp: m.DevicesUp,
		Capacity: m.Capacity, Used: m.Used, Volumes: m.Volumes, Attached: m.Attached, PGs: m.Pgs,
		Waiting: m.VolumesWaiting, PGsDegraded: m.PgsDegraded,
		MapVersion: m.MapVersion, Leader: m.Leader, Members: []member{},
		Exposure: []exposure{}, CatchUp: []catchUp{}, Serve: []serving{}, Next: []string{}}
	for _, text := range m.Members {
		name, addr, _ := strings.Cut(text, " ")
		s.Members = append(s.Members, member{name, addr})
	}
	s.Settings = toSettings(m.Settings)
	s.Scrub = oldScrub{Device: m.ScrubDevice, Seconds: -1}
	if m.ScrubbedMs != 0 {
		s.Scrub.Seconds = max(int64(now.Sub(time.UnixMilli(m.ScrubbedMs)).Seconds()), 0)
	}
	s.progress(m, now)
	return s
}

// serving says of each server what it can do, and why not more.
func (s *status) serving(servers []*pb.Server, devices []*pb.Device) {
	for _, server := range servers {
		x := serving{Server: server.Name, State: upDown(server.Up)}
		var notes []string
		for _, d := range devices {
			if d.Server != server.Name {
				continue
			}
			x.Devices++
			if d.Up {
				x.Up++
			}
			notes = append(notes, s.notes(d)...)
		}
		if s.Moves != nil {
			for _, name := range s.Moves.Maintenance {
				if name == server.Name {
					notes = append(notes, "in maintenance: its copies are not made anew elsewhere")
				}
			}
		}
		switch {
		case !server.Up:
			x.Serves = "nothing: it does not renew its lease at the metadata manager"
		case x.Devices == 0:
			x.Serves = "nothing: it has no devices"
		case x.Up == 0:
			x.Serves = "nothing"
		default:
			x.Serves = "reads and writes"
		}
		if len(notes) > 0 {
			x.Serves += "; " + strings.Join(notes, "; ")
		}
		s.Serve = append(s.Serve, x)
	}
}

// notes are what is special about a device.
func (s *status) notes(d *pb.Device) (notes []string) {
	if d.Failed != "" {
		notes = append(notes, fmt.Sprintf("device %d is out of service: %s", d.Id, d.Failed))
	}
	if d.Removing {
		notes = append(notes, fmt.Sprintf("device %d is being emptied, then removed", d.Id))
	}
	for _, c := range s.CatchUp {
		if c.Device == d.Id {
			notes = append(notes, fmt.Sprintf("device %d takes writes and serves no reads in %d groups that it "+
				"catches up with", d.Id, c.Groups))
		}
	}
	return notes
}

// advise says what to do, the most urgent first.
func (s *status) advise(devices []*pb.Device) {
	do := func(format string, args ...any) { s.Next = append(s.Next, fmt.Sprintf(format, args...)) }
	var down []string
	for _, x := range s.Serve {
		if x.State == "down" {
			down = append(down, x.Server)
		}
	}
	if s.Leader == "" {
		do("start the metadata managers that are down: most of them must be up for changes")
	}
	switch {
	case len(down) > 0 && s.Health == "unavailable":
		do("start %s: I/O that waits goes on by itself, nothing is lost; do not remove or format anything",
			strings.Join(down, ", "))
	case len(down) > 0:
		do("start %s%s", strings.Join(down, ", "), s.grace())
	}
	for _, d := range devices {
		if d.Failed != "" {
			do("look at device %d (%s:%s); if the disk is broken put a new one in (sds format, sds serve --device) "+
				"and give this one up: scli device remove %d", d.Id, d.Server, d.Path, d.Id)
		}
	}
	switch {
	case s.Waiting > 0:
		do("add devices (sds format, sds serve --device), or free space (scli volume delete, fstrim): " +
			"the writes that wait go on by themselves")
	case s.Health == "full":
		do("add devices (sds format, sds serve --device), or free space (scli volume delete, fstrim)")
	}
	for _, c := range s.CatchUp {
		if c.Stuck != "" {
			do("see why device %d cannot catch up: %s", c.Device, c.Stuck)
		}
	}
	if m := s.Moves; m != nil && m.State == "paused" {
		do("let data move on: scli rebalance resume")
	}
	if len(s.Next) > 0 {
		return
	}
	if s.Devices == 0 {
		do("prepare disks and start data servers: sds format, sds serve")
		return
	}
	switch s.Health {
	case "ok":
		if len(s.Reasons) > 0 {
			do("nothing at once: see the remarks above")
			return
		}
		do("nothing")
	case "rebuilding", "rebalancing":
		do("nothing: it goes on by itself%s", s.remaining())
	default:
		do("see the reasons above, and scli events")
	}
}

// grace says what happens to the copies of a server that stays away.
func (s *status) grace() string {
	if s.Moves == nil || s.Moves.GraceMS == 0 {
		return ""
	}
	return fmt.Sprintf(" within %s of its end; after that its copies are made anew on other devices, if there are "+
		"some", screen.Ago(time.Duration(s.Moves.GraceMS)*time.Millisecond))
}

func (s *status) remaining() string {
	most := int64(-1)
	for _, c := range s.CatchUp {
		most = max(most, c.Seconds)
	}
	if most < 0 {
		return ""
	}
	return ", for about " + clock(most)
}

// clock is a duration as 00:41, or 3:07:00.
func clock(seconds int64) string {
	if seconds < 3600 {
		return fmt.Sprintf("%02d:%02d", seconds/60, seconds%60)
	}
	return fmt.Sprintf("%d:%02d:%02d", seconds/3600, seconds/60%60, seconds%60)
}

// gb is an amount of data for people.
func gb(bytes uint64) string {
	switch {
	case bytes >= 1e12:
		return fmt.Sprintf("%.1f TB", float64(bytes)/1e12)
	case bytes >= 1e9:
		return fmt.Sprintf("%.1f GB", float64(bytes)/1e9)
	}
	return fmt.Sprintf("%.0f MB", float64(bytes)/1e6)
}

func (e *exposure) text() string {
	copies := fmt.Sprintf("%d of %d copies", e.Copies, e.Wanted)
	switch e.Copies {
	case 0:
		copies = "no copy that is up"
	case 1:
		copies = "a single copy"
	}
	if e.Seconds < 0 {
		return fmt.Sprintf("%d groups have %s", e.Groups, copies)
	}
	return fmt.Sprintf("%d groups have %s for %s", e.Groups, copies, clock(e.Seconds))
}

func (c *catchUp) text() string {
	t := fmt.Sprintf("device %d (%s): %d groups", c.Device, c.Name, c.Groups)
	if c.Compared < c.Groups {
		t += fmt.Sprintf(", %d of them compared", c.Compared)
	}
	t += ", " + gb(c.Left) + " left"
	if c.Rate > 0 {
		t += ", goes at " + gb(c.Rate) + "/s, of which " + gb(c.CopiedRate) + "/s differ and are copied"
	}
	if c.Seconds >= 0 {
		t += ", about " + clock(c.Seconds)
	}
	if c.Stuck != "" {
		t += "; stuck: " + c.Stuck
	}
	return t
}

// settings are those that explain what goes on.
func (s *status) settings() (lines []string) {
	if x := s.Settings.ScrubEveryMS; x > 0 && s.Scrub.Device != 0 {
		last := "never yet"
		if s.Scrub.Seconds >= 0 {
			last = screen.Ago(time.Duration(s.Scrub.Seconds)*time.Second) + " ago"
		}
		lines = append(lines, fmt.Sprintf("each device is scrubbed every %s; device %d was %s, the others since",
			often(x), s.Scrub.Device, last))
	}
	if x := s.Settings.ResyncRate; x > 0 {
		lines = append(lines, fmt.Sprintf("resyncs go at %s a second and device at most (scli cluster set "+
			"resync-rate=none)", size(x)))
	}
	if x := s.Settings.ResyncP99US; x > 0 {
		lines = append(lines, fmt.Sprintf("resyncs slow down where clients' 99th percentile exceeds %s (scli cluster "+
			"set resync-p99=auto)", patience(x)))
	}
	return lines
}

// text is what people read, also at three in the morning.
func (s *status) text() string {
	pairs := [][2]string{{"health", s.Health}}
	add := func(name string, lines ...string) {
		for i, line := range lines {
			if i > 0 {
				name = ""
			}
			pairs = append(pairs, [2]string{name, line})
		}
	}
	for _, reason := range s.Reasons {
		add("", "- "+reason)
	}
	left, lines := uint64(0), []string{}
	for i := range s.CatchUp {
		left += s.CatchUp[i].Left
		lines = append(lines, s.CatchUp[i].text())
	}
	for i := range s.Exposure {
		text := s.Exposure[i].text()
		if i == 0 && left > 0 {
			text += ", " + gb(left) + " left to copy"
		}
		add(map[bool]string{true: "exposure"}[i == 0], text)
	}
	add("catch-up", lines...)
	if m := s.Moves; m != nil && m.State != "balanced" {
		add("moves", movesText(*m))
	}
	add("do", s.Next...)
	names := make([]string, len(s.Members))
	for i, m := range s.Members {
		names[i] = m.Name + " " + m.Addr
		if m.Addr == s.Leader {
			names[i] += " (leads)"
		}
	}
	add("servers", fmt.Sprintf("%d of %d up", s.ServersUp, s.Servers))
	add("devices", fmt.Sprintf("%d of %d up", s.DevicesUp, s.Devices))
	add("space", fmt.Sprintf("%s of %s used (%s), all copies counted", size(s.Used), size(s.Capacity),
		percent(s.Used, s.Capacity)))
	add("volumes", fmt.Sprintf("%d, %d attached", s.Volumes, s.Attached))
	add("groups", fmt.Sprintf("%d, %d degraded", s.PGs, s.PGsDegraded))
	add("settings", s.settings()...)
	add("metadata", strings.Join(names, ", "))
	add("cluster", fmt.Sprintf("%s, map version %d", s.Cluster, s.MapVersion))
	var b strings.Builder
	printPairs(&b, pairs)
	rows := [][]string{}
	for _, x := range s.Serve {
		rows = append(rows, []string{x.Server, x.State, fmt.Sprintf("%d of %d up", x.Up, x.Devices), x.Serves})
	}
	if len(rows) > 0 && (s.Health != "ok" || len(rows) <= 16) {
		b.WriteByte('\n')
		printTable(&b, []string{"SERVER", "STATE", "DEVICES", "SERVES"}, rows)
	}
	return b.String()
}
