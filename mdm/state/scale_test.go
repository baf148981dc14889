// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"braid/cluster"
	"braid/mdm/pb"
)

// Goal: what a large cluster costs the metadata manager: sizes of map and
// deltas, etcd writes, planning times, memory. Counts are asserted, times only
// shown. Method: the real state and placement with servers that only register.
// The long form (BRAID_SOAK=1) has 1,000 servers with 10,000 devices and 100,000
// volumes.
func TestScale(t *testing.T) {
	servers, disks, volumes := scale()
	b := newBench(t, 0)
	took := func(what string, f func()) {
		from := time.Now()
		f()
		t.Logf("%-44s %v", what, time.Since(from).Round(time.Millisecond))
	}
	took("servers register", func() {
		for i := range servers {
			r := report(i, disks)
			for d := range r.Devices {
				r.Devices[d].UUID = cluster.UUID{byte(i), byte(i >> 8), byte(d), 1}
			}
			r.Name, r.Addr = fmt.Sprintf("sds%d", i), fmt.Sprintf("10.%d.%d.1:7000", i>>8, i&255)
			b.register(r)
		}
	})
	b.state().Policy = Policy{Evict: true, Resync: true}
	var v *Volume
	took("the first volume: groups are laid out", func() { v = b.create("v", 2) })
	took("one more volume", func() { b.create("w", 2) })
	took("the other volumes, as records", func() {
		for from := 0; from < volumes; from += 1000 {
			tx := b.state().Begin(b.now)
			for i := from; i < min(from+1000, volumes); i++ {
				next := *v
				next.ID, next.Name = cluster.VolumeID(100+i), fmt.Sprintf("volume-%06d", i)
				tx.put(volumeKey(next.ID), next)
			}
			b.commit(tx)
		}
	})
	st := b.state()
	groups := int(st.sets[v.PGSet].Count)
	t.Logf("%d servers, %d devices, %d volumes, %d groups", servers, servers*disks, volumes+2, groups)
	stored, keys := 0, 0
	for _, c := range b.kv {
		stored += len(c.Key) + len(c.Value)
		keys++
	}
	t.Logf("etcd: %d keys, %.1f MiB", keys, float64(stored)/(1<<20))
	var whole *cluster.Delta
	took("the whole map is made", func() { whole = st.Delta(0, nil) })
	size := proto.Size(pb.FromDelta(whole))
	t.Logf("whole map on the wire %.1f MiB; for a client of one volume %.1f MiB", float64(size)/(1<<20),
		float64(proto.Size(pb.FromDelta(st.Delta(0, []cluster.VolumeID{v.ID}))))/(1<<20))
	if per := size / groups; per > 64 {
		t.Errorf("%d bytes of map per group", per)
	}
	var m runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&m)
	t.Logf("heap with the test's own copy of etcd: %.0f MiB", float64(m.HeapAlloc)/(1<<20))

	before := st.MapVersion()
	took("a server is lost: its lease ends", func() { b.commit(st.Expire([]string{"sds1"}, b.now)) })
	var tx *Tx
	took("its copies leave: planned", func() { tx = st.Settle(b.now) })
	puts, bytes, steps := written(tx)
	b.commit(tx)
	delta := proto.Size(pb.FromDelta(st.Delta(before, nil)))
	t.Logf("its copies leave: %d transactions, %d keys, %.1f MiB into etcd, delta %.2f MiB", steps, puts,
		float64(bytes)/(1<<20), float64(delta)/(1<<20))
	if puts > pageCount(uint32(groups))+maxEventsPerLoss || servers >= 20 && delta > size/4 {
		t.Errorf("the loss of a server writes %d keys and %d bytes of delta", puts, delta)
	}
	b.now = b.now.Add(2 * DefaultGrace)
	var plan MovePlan
	took("its copies are to be made anew: planned", func() {
		var err error
		if plan, err = st.PlanMoves(Membership{}, b.now); err != nil {
			t.Fatal(err)
		}
	})
	t.Logf("moves: %d copies, of which %d are of lost devices", plan.Copies, plan.Rebuilt)
	if plan.Copies > plan.Least*115/100 {
		t.Errorf("%d copies move, %d would do", plan.Copies, plan.Least)
	}
	took("a look for what is to do, when nothing is", func() { st.Layout(b.now) })
	took("groups are looked over", func() { b.state().Settle(b.now) })
}

// scale is how large the cluster is.
func scale() (servers, disks, volumes int) {
	switch {
	case os.Getenv("BRAID_SOAK") != "":
		return 1000, 10, 100_000
	case testing.Short():
		return 5, 4, 200
	}
	return 20, 10, 2000
}

// maxEventsPerLoss bounds the events of a lost server: one a device.
const maxEventsPerLoss = 32

func written(tx *Tx) (puts, bytes, steps int) {
	for _, s := range tx.Steps() {
		steps++
		for _, p := range s.Puts {
			puts++
			bytes += len(p.Key) + len(p.Value)
		}
	}
	return puts, bytes, steps
}
