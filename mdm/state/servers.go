// SPDX-License-Identifier: Apache-2.0

package state

import (
	"net"
	"slices"
	"strings"
	"time"

	"braid/cluster"
)

// ServerReport is what a data server says when it registers.
type ServerReport struct {
	Name     string
	Addr     string
	FaultSet string
	Version  string
	Cluster  cluster.UUID
	Devices  []DeviceReport
	Spare    bool // devices that join now take no copies yet
	Drills   bool // it takes part in drills
}

// DeviceReport is what it says of a device.
type DeviceReport struct {
	UUID         cluster.UUID
	Path         string
	Size         uint64
	Incarnation  cluster.Incarnation
	StartCounter uint64
	StartID      uint64 // drawn at the newest start; 0: not known
	Failed       string
}

// Registered is the answer to a server.
type Registered struct {
	Devices []cluster.DeviceID // in the order of the report; 0: refused
	Refused []string           // why
}

// Found makes the cluster: its identity, once and for good.
func (s *State) Found(uuid cluster.UUID, now time.Time) *Tx {
	tx := s.Begin(now)
	if s.identity.UUID.IsZero() {
		tx.put(identityKey, identity{UUID: uuid, Layout: layout, Created: tx.now})
		tx.put(countersKey, counters{Device: 1, Volume: 1, Set: 1})
		tx.event(Info, "cluster-created", uuid.String(), "cluster %s was created", uuid)
	}
	return tx
}

// Join records where a metadata manager can be reached.
func (s *State) Join(m Member, now time.Time) *Tx {
	tx := s.Begin(now)
	if known := s.members[m.Name]; known == nil || *known != m {
		tx.put(memberKey(m.Name), m)
	}
	return tx
}

// Lead records who leads from now on.
func (s *State) Lead(name, addr string, now time.Time) *Tx {
	tx := s.Begin(now)
	tx.event(Info, "leader", name, "metadata manager %s at %s leads", name, addr)
	return tx
}

// Register plans the (re)appearance of a server.
func (s *State) Register(r ServerReport, lease uint64, now time.Time) (*Tx, Registered, error) {
	tx := s.Begin(now)
	if err := s.checkServer(r); err != nil {
		return nil, Registered{}, err
	}
	known := s.servers[r.Name]
	server := Server{Name: r.Name, Addr: r.Addr, FaultSet: faultSet(r),
		Version: r.Version, LeaseID: lease, Up: true, Since: tx.now, Drills: r.Drills}
	if known != nil {
		server.Maintenance = known.Maintenance
	}
	tx.put(serverKey(r.Name), server)
	if known == nil {
		tx.event(Info, "server-joined", r.Name, "server %s at %s joined, fault set %s, %d devices",
			r.Name, r.Addr, faultSet(r), len(r.Devices))
	} else {
		tx.event(Info, "server-up", r.Name, "server %s at %s is up", r.Name, r.Addr)
	}
	answer := Registered{}
	next := s.counters
	for _, report := range r.Devices {
		id, refused := s.registerDevice(tx, r, report, &next)
		answer.Devices = append(answer.Devices, id)
		answer.Refused = append(answer.Refused, refused)
	}
	if next != s.counters {
		tx.put(countersKey, next)
	}
	s.missingDevices(tx, r)
	return tx, answer, nil
}

func faultSet(r ServerReport) string {
	if r.FaultSet == "" {
		return r.Name
	}
	return r.FaultSet
}

func (s *State) checkServer(r ServerReport) error {
	if !validServerName(r.Name) {
		return refuse(ErrInvalid, "register server: the name %q is not usable: 1 to 253 letters, "+
			"digits, '.', ':', '_', '-' or brackets", r.Name)
	}
	if _, port, err := net.SplitHostPort(r.Addr); err != nil || port == "" || port == "0" {
		return refuse(ErrInvalid, "register server %s: its address %q is not HOST:PORT", r.Name, r.Addr)
	}
	if !r.Cluster.IsZero() && r.Cluster != s.identity.UUID {
		return refuse(ErrRefused, "register server %s: its devices belong to cluster %s, this is "+
			"cluster %s; point sds to the metadata managers of its own cluster, or give the devices "+
			"up with `sds format --force`", r.Name, r.Cluster, s.identity.UUID)
	}
	known := s.servers[r.Name]
	if known == nil || !known.Up || known.Addr == r.Addr || s.sharesDevice(r) {
		return nil
	}
	return refuse(ErrRefused, "register server %s: a server of that name is up at %s with other "+
		"devices; give this one a name of its own with --name", r.Name, known.Addr)
}

// sharesDevice reports whether the server of that name had one of the devices.
func (s *State) sharesDevice(r ServerReport) bool {
	had := false
	for _, d := range s.devices {
		if d.Server != r.Name {
			continue
		}
		had = true
		if slices.ContainsFunc(r.Devices, func(x DeviceReport) bool { return x.UUID == d.UUID }) {
			return true
		}
	}
	return !had
}

func validServerName(name string) bool {
	return len(name) > 0 && len(name) <= 253 && strings.Trim(name,
		"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.:_-[]") == ""
}

func (s *State) deviceByUUID(uuid cluster.UUID) *Device {
	for _, d := range s.devices {
		if d.UUID == uuid {
			return d
		}
	}
	return nil
}

func (s *State) registerDevice(tx *Tx, r ServerReport, report DeviceReport, next *counters,
) (cluster.DeviceID, string) {
	refuseDevice := func(text string) (cluster.DeviceID, string) {
		tx.event(Warning, "device-refused", report.Path, "%s on server %s: %s", report.Path, r.Name, text)
		return 0, text
	}
	known := s.deviceByUUID(report.UUID)
	switch {
	case report.UUID.IsZero():
		return refuseDevice("it has no identity; format it with `sds format`")
	case s.retired[report.UUID]:
		return refuseDevice("it was removed from this cluster; format it anew with " +
			"`sds format --force` to give it back empty")
	case known == nil:
		d := Device{ID: next.Device, UUID: report.UUID, Scrubbed: tx.now, Spare: r.Spare}
		next.Device++
		d.take(r.Name, report)
		tx.put(deviceKey(d.ID), d)
		tx.event(Info, "device-joined", deviceName(&d), "device %d, %s of %s on server %s, joined%s",
			d.ID, report.Path, cluster.FormatSize(report.Size), r.Name, map[bool]string{true: " as a spare"}[d.Spare])
		return d.ID, ""
	}
	if other := s.servers[known.Server]; known.Server != r.Name && other != nil && other.Up {
		return refuseDevice("server " + known.Server + ", which is up, has a device of the same " +
			"identity; is the disk shared, or a copy of the other?")
	}
	d := *known
	d.take(r.Name, report)
	s.deviceChanged(tx, known, &d)
	return d.ID, ""
}

func deviceName(d *Device) string { return d.Server + ":" + d.Path }

func (d *Device) take(server string, r DeviceReport) {
	d.Server, d.Path, d.Size, d.Incarnation = server, r.Path, r.Size, r.Incarnation
	d.StartCounter, d.StartID, d.Failed = r.StartCounter, r.StartID, r.Failed
}

// deviceChanged writes what is new about a device and what follows from it.
func (s *State) deviceChanged(tx *Tx, old, d *Device) {
	if *old == *d {
		return
	}
	switch {
	case d.Failed == "":
		d.FailedAt = time.Time{}
	case old.Failed == "":
		d.FailedAt = tx.now
	}
	switch {
	case d.Failed != "" && old.Failed == "":
		tx.event(Error, "device-failed", deviceName(d), "device %d, %s on server %s, is out of "+
			"service: %s", d.ID, d.Path, d.Server, d.Failed)
	case d.Failed == "" && old.Failed != "":
		tx.event(Info, "device-up", deviceName(d), "device %d, %s on server %s, serves again",
			d.ID, d.Path, d.Server)
	}
	if d.StartCounter < old.StartCounter ||
		d.StartCounter == old.StartCounter && d.StartID != old.StartID && d.StartID != 0 && old.StartID != 0 {
		// Rule 21: a counter that went back means an older image of the disk, and so
		// does another start under the same one: the image before that start was started
		// again. What it holds is not what was acked, so it is taken out wherever it can be.
		// Nor is it brought back: its tags can be those of newer bytes, which no compare
		// by tags would find.
		d.RolledBack = true
		groups, left, last := s.regroup(), 0, 0
		for _, h := range s.inSync(d.ID, nil) {
			if len(h.g.InSync) == 1 {
				last++
				continue
			}
			groups.leave(h.id, d.ID)
			left++
		}
		tx.event(Error, "device-rolled-back", deviceName(d), "device %d, %s on server %s, counts %d "+
			"starts, it had %d: an older image of the disk came back; taken out of %d groups, and "+
			"%d have no other copy; `scli device remove %d --force`, then format it anew", d.ID,
			d.Path, d.Server, d.StartCounter, old.StartCounter, left, last, d.ID)
		groups.put(tx)
	}
	tx.put(deviceKey(d.ID), *d)
}

// missingDevices marks what the server had before and no longer reports.
func (s *State) missingDevices(tx *Tx, r ServerReport) {
	for _, old := range s.sortedDevices() {
		if old.Server != r.Name || slices.ContainsFunc(r.Devices, func(x DeviceReport) bool {
			return x.UUID == old.UUID
		}) {
			continue
		}
		d := *old
		d.Failed = missing
		s.deviceChanged(tx, old, &d)
	}
}

// Renew plans what a renewal's reports change, which is mostly nothing: usage
// and the like never get here. false: the server's lease is not known.
func (s *State) Renew(name string, lease uint64, reports []DeviceReport, now time.Time) (*Tx, bool) {
	tx := s.Begin(now)
	server := s.servers[name]
	if server == nil || !server.Up || server.LeaseID != lease {
		return tx, false
	}
	for _, report := range reports {
		old := s.deviceByUUID(report.UUID)
		if old == nil || old.Server != name {
			continue
		}
		d := *old
		d.take(name, report)
		s.deviceChanged(tx, old, &d)
	}
	return tx, true
}

// Expire plans the loss of servers' leases: one key each, however many devices
// they have, and all in one transaction.
func (s *State) Expire(names []string, now time.Time) *Tx {
	tx := s.Begin(now)
	for _, name := range names {
		server := s.servers[name]
		if server == nil || !server.Up {
			continue
		}
		devices := s.devicesOf(name)
		if devices == 0 {
			tx.remove(serverKey(name))
			tx.event(Info, "server-left", name, "server %s at %s, which had no devices, is gone", name, server.Addr)
			continue
		}
		down := *server
		down.Up, down.Since = false, tx.now
		tx.put(serverKey(name), down)
		tx.event(Warning, "server-down", name, "server %s at %s, with %d devices, does not renew its "+
			"lease and counts as down", name, server.Addr, devices)
	}
	return tx
}

func (s *State) devicesOf(server string) int {
	n := 0
	for _, d := range s.devices {
		if d.Server == server {
			n++
		}
	}
	return n
}

// RemoveDevice plans taking a device out of the cluster for good.
func (s *State) RemoveDevice(id cluster.DeviceID, force bool, now time.Time) (*Tx, error) {
	d := s.devices[id]
	if d == nil {
		return nil, refuse(ErrNotFound, "remove device %d: there is none; `scli device list` shows them", id)
	}
	tx := s.Begin(now)
	member, last, groups := 0, 0, s.regroup()
	for _, number := range s.used() {
		s.each(number, func(pg cluster.PGID, p *placed) {
			if !p.value.Member(id) {
				return
			}
			member++
			switch {
			case !p.value.Has(id):
			case len(p.value.InSync) == 1:
				last++
				return
			default:
				groups.leave(pg, id)
			}
			groups.forget(pg, id)
		})
	}
	if n := last; n > 0 {
		return nil, refuse(ErrRefused, "remove device %d (%s): it holds the only in-sync copy of %d "+
			"groups, and their data would be lost; delete the volumes that use them first, or bring "+
			"the other copies back", id, deviceName(d), n)
	}
	if member > 0 && !force {
		return nil, refuse(ErrRefused, "remove device %d (%s): it holds copies of %d groups; --force "+
			"takes it out at once and leaves these groups with one copy less", id, deviceName(d), member)
	}
	groups.put(tx)
	s.retireDevice(tx, d)
	tx.event(Warning, "device-removed", deviceName(d), "device %d, %s on server %s, was removed; it "+
		"left %d groups", id, d.Path, d.Server, member)
	return tx, nil
}
