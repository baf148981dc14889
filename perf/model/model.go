// SPDX-License-Identifier: Apache-2.0

package model

import (
	"math"
	"slices"
)

// Line is a cost that grows with the size of an I/O: Fixed plus PerByte, in
// microseconds of CPU time.
type Line struct{ Fixed, PerByte float64 }

// Through is the line through two measured points; one that would fall is flat.
func Through(bytes1, us1, bytes2, us2 float64) Line {
	slope := max(0, (us2-us1)/(bytes2-bytes1))
	return Line{Fixed: max(0, us1-slope*bytes1), PerByte: slope}
}

// At is the cost of an I/O of that size.
func (l Line) At(bytes float64) float64 { return l.Fixed + l.PerByte*bytes }

// Costs are what one I/O needs of a CPU.
type Costs struct {
	ClientRead, ClientWrite Line // of sdc, for all copies together
	ServerRead              Line // of sds and its kernel threads
	ServerWrite             Line // of one copy
	// Idle latency in microseconds of a 4 KiB I/O: what it takes when nothing waits.
	ReadLatency, WriteLatency float64
}

// Disk is what one device can do.
type Disk struct {
	ReadIOPS, WriteIOPS           float64
	ReadBytes, WriteBytes         float64 // per second
	ReadLatencyUs, WriteLatencyUs float64
}

// Cluster is the hardware.
type Cluster struct {
	Servers, DisksPerServer, CoresPerServer int
	Clients, CoresPerClient                 int
	VolumesPerClient                        int     // each has an event loop of its own: one core at most
	ServerNet, ClientNet                    float64 // bytes per second, each direction
	RoundTripUs                             float64
	Disk                                    Disk
	Replicas                                int
}

// Load is what the clients do, all of them the same.
type Load struct {
	Bytes float64 // of an I/O
	Reads float64 // share, 0 to 1
}

// What a frame adds to its payload: header, a checksum per block, TCP and Ethernet
// once per 1,500 bytes.
const (
	frameHeader = 64
	sumPerBlock = 8
	blockBytes  = 4096
	packetShare = 1538.0 / 1448
)

// wire is the number of bytes that a payload takes on a link.
func wire(bytes float64) float64 {
	return (bytes + frameHeader + sumPerBlock*math.Ceil(bytes/blockBytes)) * packetShare
}

// Limit is a resource and the I/Os per second of the whole cluster at which it is
// busy all the time.
type Limit struct {
	Resource string
	IOPS     float64
}

// Names of resources.
const (
	ClientCPU  = "client CPU"
	VolumeLoop = "volume's event loop"
	ClientIn   = "client network in"
	ClientOut  = "client network out"
	ServerCPU  = "server CPU"
	DeviceLoop = "devices' event loops"
	ServerIn   = "server network in"
	ServerOut  = "server network out"
	DiskTime   = "disk IOPS"
	DiskBytes  = "disk bandwidth"
)

// Limits are the limits of all resources, the tightest first. What the load does
// not use is not among them.
func (c Cluster) Limits(k Costs, l Load) []Limit {
	read, write := l.Reads, 1-l.Reads
	copies := float64(c.Replicas)
	servers, disks := float64(c.Servers), float64(c.Servers*c.DisksPerServer)
	clients := float64(c.Clients)
	clientUs := read*k.ClientRead.At(l.Bytes) + write*k.ClientWrite.At(l.Bytes)
	serverUs := read*k.ServerRead.At(l.Bytes) + write*copies*k.ServerWrite.At(l.Bytes)
	w, header := wire(l.Bytes), wire(0)
	// Demands: what one I/O takes of a resource, in its units, and how much there
	// is of it in a second.
	var limits []Limit
	add := func(name string, available, demand float64) {
		if demand > 0 {
			limits = append(limits, Limit{name, available / demand})
		}
	}
	add(ClientCPU, clients*float64(c.CoresPerClient)*1e6, clientUs)
	add(VolumeLoop, clients*float64(max(1, c.VolumesPerClient))*1e6, clientUs)
	add(ClientOut, clients*c.ClientNet, write*copies*w+read*header)
	add(ClientIn, clients*c.ClientNet, read*w+write*copies*header)
	add(ServerCPU, servers*float64(c.CoresPerServer)*1e6, serverUs)
	add(DeviceLoop, disks*1e6, serverUs)
	add(ServerIn, servers*c.ServerNet, write*copies*w+read*header)
	add(ServerOut, servers*c.ServerNet, read*w+write*copies*header)
	add(DiskTime, disks, read/c.Disk.ReadIOPS+write*copies/c.Disk.WriteIOPS)
	add(DiskBytes, disks, l.Bytes*(read/c.Disk.ReadBytes+write*copies/c.Disk.WriteBytes))
	slices.SortStableFunc(limits, func(a, b Limit) int {
		switch {
		case a.IOPS < b.IOPS:
			return -1
		case a.IOPS > b.IOPS:
			return 1
		}
		return 0
	})
	return limits
}

// Throughput is what the cluster can do, and the resource that ends it.
func (c Cluster) Throughput(k Costs, l Load) Limit { return c.Limits(k, l)[0] }

// Turn is the number of servers from which more of them bring nothing, because a
// resource of the clients is the limit then. It is 0 when that is so from the
// first server on, and limit when it never is up to there.
func (c Cluster) Turn(k Costs, l Load, limit int) int {
	for n := 1; n <= limit; n++ {
		c.Servers = n
		switch c.Throughput(k, l).Resource {
		case ClientCPU, VolumeLoop, ClientIn, ClientOut:
			return n - 1
		}
	}
	return limit
}

// Latency is the mean latency in microseconds at a throughput: the idle latency,
// and at each resource the wait for those before, as in an open network of queues
// with random arrivals. It is +Inf from the limit on.
func (c Cluster) Latency(k Costs, l Load, iops float64) float64 {
	sum := c.idle(k, l)
	for _, r := range c.Limits(k, l) {
		u := iops / r.IOPS
		if u >= 1 {
			return math.Inf(1)
		}
		// Mean time at the resource: its demand, spread over all units of it.
		demand := 1e6 / r.IOPS * float64(c.units(r.Resource))
		sum += demand * u / (1 - u)
	}
	return sum
}

// idle is the latency of an I/O that meets nobody.
func (c Cluster) idle(k Costs, l Load) float64 {
	read := c.RoundTripUs + c.Disk.ReadLatencyUs + k.ReadLatency + l.Bytes/c.ClientNet*1e6 + l.Bytes/c.ServerNet*1e6
	write := c.RoundTripUs + c.Disk.WriteLatencyUs + k.WriteLatency +
		float64(c.Replicas)*l.Bytes/c.ClientNet*1e6 + l.Bytes/c.ServerNet*1e6
	return l.Reads*read + (1-l.Reads)*write
}

// units is how many of a resource work side by side.
func (c Cluster) units(resource string) int {
	switch resource {
	case ClientCPU:
		return c.Clients * c.CoresPerClient
	case VolumeLoop:
		return c.Clients * max(1, c.VolumesPerClient)
	case ClientIn, ClientOut:
		return c.Clients
	case ServerCPU:
		return c.Servers * c.CoresPerServer
	case ServerIn, ServerOut:
		return c.Servers
	}
	return c.Servers * c.DisksPerServer
}

// Knee is the throughput with the best ratio of throughput to latency: beyond it
// latency grows faster than throughput (Kleinrock's power).
func (c Cluster) Knee(k Costs, l Load) (iops, latencyUs float64) {
	limit := c.Throughput(k, l).IOPS
	best := 0.0
	for step := 1; step < 1000; step++ {
		x := limit * float64(step) / 1000
		y := c.Latency(k, l, x)
		if x/y > best {
			best, iops, latencyUs = x/y, x, y
		}
	}
	return iops, latencyUs
}
