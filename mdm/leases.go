// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"maps"
	"sync"
	"time"

	"braid/cluster"
	"braid/mdm/pb"
	"braid/mdm/state"
)

// leases is what the leader remembers and etcd does not: when servers and
// sessions were last heard of, and what servers measured.
type leases struct {
	serverTerm  time.Duration
	sessionTerm time.Duration

	// mu guards what follows. It is never held across a call to etcd: a renewal
	// that came in time counts, however long etcd takes for something else.
	mu       sync.Mutex
	servers  map[string]time.Time // when each lease runs out
	sessions map[cluster.VolumeID]sessionLease
	used     map[cluster.DeviceID]uint64
	persist  map[cluster.VolumeID]cluster.Generation // the newest that any device reported
	learned  map[cluster.DeviceID]uint64             // map version of each device
	freed    map[cluster.VolumeID]map[cluster.DeviceID]bool
	reports  map[cluster.DeviceID]*pb.DeviceReport // the newest of each device
	scrubs   map[cluster.DeviceID]*pb.ScrubOrder   // the newest for each device
	drills   map[string]drill                      // the newest for each server
	rests    map[cluster.DeviceID]time.Time        // none begins by itself before
}

type sessionLease struct {
	generation cluster.Generation
	expires    time.Time
	adopted    uint64 // map version of which the client says: nothing older is outstanding
}

func newLeases(c Config) *leases {
	return &leases{
		serverTerm: c.ServerLease, sessionTerm: c.SessionLease,
		servers:  map[string]time.Time{},
		sessions: map[cluster.VolumeID]sessionLease{},
		used:     map[cluster.DeviceID]uint64{},
		persist:  map[cluster.VolumeID]cluster.Generation{},
		learned:  map[cluster.DeviceID]uint64{},
		freed:    map[cluster.VolumeID]map[cluster.DeviceID]bool{},
		reports:  map[cluster.DeviceID]*pb.DeviceReport{},
		scrubs:   map[cluster.DeviceID]*pb.ScrubOrder{},
		drills:   map[string]drill{},
		rests:    map[cluster.DeviceID]time.Time{},
	}
}

// renewServer starts the term of a server's lease anew.
func (l *leases) renewServer(name string, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.servers[name] = now.Add(l.serverTerm)
}

// forget starts all terms anew: nobody could renew up to now.
func (l *leases) forget() {
	l.mu.Lock()
	defer l.mu.Unlock()
	clear(l.servers)
	clear(l.sessions)
}

// endServer lets a server's lease run out at once: it said that it stops.
func (l *leases) endServer(name string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.servers[name] = time.Time{}
}

func (l *leases) renewSession(id cluster.VolumeID, gen cluster.Generation, adopted uint64, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sessions[id] = sessionLease{generation: gen, expires: now.Add(l.sessionTerm), adopted: adopted}
}

// extend moves all ends: the leader itself stood still for so long, and nobody
// could renew.
func (l *leases) extend(by time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for name, expires := range l.servers {
		if !expires.IsZero() {
			l.servers[name] = expires.Add(by)
		}
	}
	for id, lease := range l.sessions {
		lease.expires = lease.expires.Add(by)
		l.sessions[id] = lease
	}
}

// expired returns the servers and sessions in the state whose lease ran out.
// Those it hears of for the first time, as a new leader does of all, get a full
// term: the leader before may have renewed them a moment ago.
func (l *leases) expired(st *state.State, now time.Time) (servers []string, sessions []cluster.VolumeID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, s := range st.Servers() {
		expires, known := l.servers[s.Name]
		switch {
		case !s.Up:
			delete(l.servers, s.Name)
		case !known:
			l.servers[s.Name] = now.Add(l.serverTerm)
		case now.After(expires):
			servers = append(servers, s.Name)
		}
	}
	alive := map[cluster.VolumeID]bool{}
	for _, s := range st.Sessions() {
		alive[s.Volume] = true
		lease, known := l.sessions[s.Volume]
		switch {
		case !known || lease.generation != s.Generation:
			l.sessions[s.Volume] = sessionLease{generation: s.Generation, expires: now.Add(l.sessionTerm)}
		case now.After(lease.expires):
			sessions = append(sessions, s.Volume)
		}
	}
	maps.DeleteFunc(l.sessions, func(id cluster.VolumeID, _ sessionLease) bool { return !alive[id] })
	return servers, sessions
}

// report remembers what a server measured of a device. It returns the report
// before, or nil.
func (l *leases) report(id cluster.DeviceID, r *pb.DeviceReport) (before *pb.DeviceReport) {
	l.mu.Lock()
	defer l.mu.Unlock()
	before, l.reports[id] = l.reports[id], r
	l.used[id], l.learned[id] = r.Used, r.AdoptedVersion
	for v, gen := range r.Volumes {
		l.persist[cluster.VolumeID(v)] = max(l.persist[cluster.VolumeID(v)], cluster.Generation(gen))
	}
	for _, v := range r.Freed {
		of := cluster.VolumeID(v)
		if l.freed[of] == nil {
			l.freed[of] = map[cluster.DeviceID]bool{}
		}
		l.freed[of][id] = true
	}
	return before
}

// forgettable returns the tombstones of volumes that every device has freed.
func (l *leases) forgettable(st *state.State) []cluster.VolumeID {
	l.mu.Lock()
	defer l.mu.Unlock()
	tombs := st.Tombstones()
	if len(tombs) == 0 {
		clear(l.freed)
		return nil
	}
	devices := st.DeviceIDs()
	var out []cluster.VolumeID
	for _, v := range tombs {
		free := len(devices) > 0
		for _, d := range devices {
			free = free && l.freed[v][d]
		}
		if free {
			out = append(out, v)
		}
	}
	return out
}

// progress returns how far sessions and devices have come with the map.
func (l *leases) progress() state.Progress {
	l.mu.Lock()
	defer l.mu.Unlock()
	p := state.Progress{Devices: maps.Clone(l.learned),
		Sessions: make(map[cluster.VolumeID]state.SessionProgress, len(l.sessions))}
	for id, s := range l.sessions {
		p.Sessions[id] = state.SessionProgress{Generation: s.generation, Adopted: s.adopted}
	}
	return p
}

// usage returns what each device reported as used, in bytes.
func (l *leases) usage() map[cluster.DeviceID]uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.used)
}

// persisted returns the newest generation that any device holds of a volume.
func (l *leases) persisted(id cluster.VolumeID) cluster.Generation {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.persist[id]
}
