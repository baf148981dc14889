// SPDX-License-Identifier: Apache-2.0

package model

import "math"

// Fleet is a cluster as its metadata manager, and its connections, see it.
type Fleet struct {
	Servers, DisksPerServer int
	Volumes                 int // that exist
	Attached                int // that are attached, each by an sdc
	Replicas                int
}

// Traits are what Braid's design fixes, or what was measured of it.
type Traits struct {
	GroupsPerDevice float64 // aimed at, before rounding up to a power of two
	MaxGroups       float64
	GroupBytes      float64 // of map, on the wire
	DeviceBytes     float64
	VolumeBytes     float64
	StoredVolume    float64 // bytes of etcd a volume
	StoredGroup     float64
	EtcdQuota       float64 // bytes
	EtcdWrites      float64 // transactions per second that a majority commits
	ServerLease     float64 // seconds; renewed three times in that
	SessionLease    float64
	KeepAlive       float64 // seconds of silence after which a connection is asked
	PingUs          float64 // CPU of one question and answer, one side
	RenewalUs       float64 // CPU of mdm for one renewal
	LossBytes       float64 // of map delta for a group that loses a copy
	PlanUs          float64 // CPU of mdm for each group when a server is lost
	ManagerNet      float64 // bytes per second out of mdm
	Descriptors     float64 // connections that a process may hold
}

// Measured are Braid's own traits. Sizes and etcd traffic are those that the scale
// test of the metadata manager prints; the rest are constants of the code.
func Measured() Traits {
	return Traits{
		GroupsPerDevice: 64, MaxGroups: 1 << 20, GroupBytes: 20, DeviceBytes: 90, VolumeBytes: 40,
		StoredVolume: 170, StoredGroup: 56, EtcdQuota: 1 << 30, EtcdWrites: 500,
		ServerLease: 6, SessionLease: 30, KeepAlive: 0.4, PingUs: 15, RenewalUs: 100, LossBytes: 15, PlanUs: 2,
		ManagerNet: 1.25e9, Descriptors: 1 << 19,
	}
}

func (f Fleet) devices() float64 { return float64(f.Servers * f.DisksPerServer) }

// Groups is the number of placement groups of the fleet's set.
func (f Fleet) Groups(t Traits) float64 {
	want := f.devices() * t.GroupsPerDevice
	return min(t.MaxGroups, math.Pow(2, math.Ceil(math.Log2(max(1, want)))))
}

// Burden is a quantity that grows with the fleet, and what it must not exceed.
type Burden struct {
	What  string
	Unit  string
	Value float64
	Limit float64 // 0: none, it is only shown
	Why   string  // of the limit
}

// Share is how much of the limit is used.
func (b Burden) Share() float64 {
	if b.Limit == 0 {
		return 0
	}
	return b.Value / b.Limit
}

// Burdens is all that grows with the number of servers, disks and volumes.
func (f Fleet) Burdens(t Traits) []Burden {
	devices, groups := f.devices(), f.Groups(t)
	const mib = 1 << 20
	whole := groups*t.GroupBytes + devices*t.DeviceBytes + float64(f.Volumes)*t.VolumeBytes
	own := groups*t.GroupBytes + devices*t.DeviceBytes // a client's: of its own volume only
	stored := groups*t.StoredGroup + float64(f.Volumes)*t.StoredVolume
	// A volume touches every device once it is larger than a few chunks each.
	connections := min(devices, groups*float64(f.Replicas))
	pings := connections / t.KeepAlive
	affected := groups * float64(f.Replicas) / float64(f.Servers)
	followers := float64(f.Servers + f.Attached)
	return []Burden{
		{"map, whole", "MiB", whole / mib, 256, "a server keeps it in memory beside its tables"},
		{"map, of one volume", "MiB", own / mib, 256, "a client keeps it in memory"},
		{"all volumes attach at once: maps sent", "s", float64(f.Attached) * own / t.ManagerNet, 120,
			"after a power failure"},
		{"loss of a server, map changes sent", "s",
			affected * t.LossBytes * followers / t.ManagerNet, 5,
			"writes wait until the copies of the lost server have left"},
		{"loss of a server, planned by mdm", "s", groups * t.PlanUs / 1e6, 5, "the same"},
		{"connections of a volume", "", connections, t.Descriptors, "open files of sdc"},
		{"connections of a device", "", float64(f.Attached) * connections / devices, t.Descriptors,
			"open files of sds"},
		{"keep-alive of an idle volume, its client", "% of a core", pings * t.PingUs / 1e4, 10,
			"more than idle may cost"},
		{"keep-alive of an idle device, its server", "% of a core",
			float64(f.Attached) * connections / devices / t.KeepAlive * t.PingUs / 1e4, 10, "more than idle may cost"},
		{"renewals at mdm", "% of a core", (float64(f.Servers)/(t.ServerLease/3) +
			float64(f.Attached)/(t.SessionLease/3)) * t.RenewalUs / 1e4, 50, "mdm has other things to do"},
		{"etcd, stored", "MiB", stored / mib, t.EtcdQuota / mib / 2, "half of its quota: old versions need room"},
		{"all volumes attach at once: etcd", "s", float64(f.Attached) / t.EtcdWrites, 120,
			"after a power failure"},
	}
}

// BreaksAt is the least number of servers, up to limit, at which the named burden
// exceeds its limit, with volumes and clients growing alike; 0: it does not.
func (f Fleet) BreaksAt(t Traits, what string, limit int) int {
	broken := func(servers int) bool {
		g := f
		g.Servers = servers
		g.Volumes = max(1, f.Volumes*servers/f.Servers)
		g.Attached = max(1, f.Attached*servers/f.Servers)
		for _, b := range g.Burdens(t) {
			if b.What == what {
				return b.Share() > 1
			}
		}
		return false
	}
	if !broken(limit) {
		return 0
	}
	low, high := 0, limit // broken at high, not at low
	for high-low > 1 {
		if middle := (low + high) / 2; broken(middle) {
			high = middle
		} else {
			low = middle
		}
	}
	return high
}
