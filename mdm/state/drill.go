// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"strings"
	"time"

	"braid/cluster"
)

// Kinds of drills.
const (
	DrillSlow      = "slow-disk"
	DrillRot       = "bitrot"
	DrillPartition = "partition"
	DrillKill      = "kill-sds"
	DrillLeader    = "restart-mdm"
	DrillFull      = "full"
)

// drillServers is how many servers have to be up for a drill that takes one away: with
// two copies each, those left still hold them apart.
const drillServers = 3

// CheckDrill refuses a drill that could cost more than time. running is the server at
// which one goes on; empty: none.
func (s *State) CheckDrill(kind, server, running string) error {
	st := s.Status(nil)
	at := map[string]bool{DrillSlow: true, DrillRot: true, DrillPartition: true, DrillKill: true, DrillLeader: false,
		DrillFull: false}
	_, is := at[kind]
	switch {
	case !is:
		return refuse(ErrInvalid, "there is no drill %q: there are slow-disk, bitrot, partition, kill-sds, "+
			"restart-mdm and full", kind)
	case at[kind] && s.servers[server] == nil:
		return refuse(ErrNotFound, "drill at %q: there is no such server; `scli sds list` shows them", server)
	case running != "":
		return refuse(ErrRefused, "a drill goes on at %s; wait for its end", running)
	case st.GroupsDegraded+st.GroupsRebuilding+st.groupsMoving > 0:
		return refuse(ErrRefused, "%d groups lack copies or move: a fault now could leave the last copy alone; "+
			"wait until `scli status` is ok", max(st.GroupsDegraded, st.GroupsRebuilding, st.groupsMoving))
	case st.partsDown > 0:
		return refuse(ErrRefused, "a server is down, or a device out of service; mend that first (scli status)")
	case kind == DrillLeader:
		return nil
	case kind == DrillFull:
		for _, x := range s.Servers() {
			if !x.Drills {
				return refuse(ErrRefused, "server %s does not allow drills; start it with --allow-drills", x.Name)
			}
		}
		return nil
	}
	return s.checkDrillAt(kind, server, st.ServersUp)
}

func (s *State) checkDrillAt(kind, name string, up int) error {
	server := s.servers[name]
	switch {
	case !server.Drills:
		return refuse(ErrRefused, "server %s does not allow drills; start it with --allow-drills", name)
	case server.Maintenance != "":
		return refuse(ErrRefused, "server %s is in maintenance; end that first", name)
	case up < drillServers && (kind == DrillPartition || kind == DrillKill):
		return refuse(ErrRefused, "%d servers are up: without %s too few are left to hold copies apart, want %d", up,
			name, drillServers)
	}
	on := map[cluster.DeviceID]bool{}
	for _, id := range s.DevicesOn(name) {
		on[id] = true
	}
	for _, number := range s.used() {
		alone := false
		s.each(number, func(_ cluster.PGID, p *placed) {
			alone = alone || len(p.record.InSync) == 1 && on[p.record.InSync[0]]
		})
		if alone {
			return refuse(ErrRefused, "%s holds the only copy of volumes with %d replica: they would stand still", name,
				s.sets[number].Replicas)
		}
	}
	return nil
}

// DrillVolume is the number of a drill's own volume. Others are not touched.
func (s *State) DrillVolume(name string) (uint64, error) {
	v := s.volumeByName(name)
	switch {
	case v == nil:
		return 0, refuse(ErrNotFound, "drill: there is no volume %s", name)
	case !strings.HasPrefix(name, DrillPrefix):
		return 0, refuse(ErrRefused, "volume %s is not a drill's own: their names begin with %s", name, DrillPrefix)
	}
	return uint64(v.ID), nil
}

// DrillPrefix begins the names of the volumes that drills make.
const DrillPrefix = "drill-"

// TellDrill makes an event of the begin of a drill.
func (s *State) TellDrill(kind, server string, during time.Duration, now time.Time) *Tx {
	tx := s.Begin(now)
	where := ""
	if server != "" {
		where = " at server " + server
	}
	if during > 0 {
		where += fmt.Sprintf(" for %v", during)
	}
	tx.event(Warning, "drill", server, "drill: %s%s; what follows is part of it", kind, where)
	return tx
}
