// SPDX-License-Identifier: Apache-2.0

package store

import (
	"strings"
	"testing"

	"braid/cluster"
	"braid/server/disk"
)

// Goal: a healthy device checks clean, also after a crash; every kind of damage
// is named; reads never return the wrong bytes as right.
func TestCheck(t *testing.T) {
	g := newRig(t, testSize, Config{LocalResolve: true, VerifyReads: true})
	g.fence(1, 3)
	for i := range uint64(5) {
		g.must(writeReq(1, 3, 1, i, 0, 64<<10, i+1))
	}
	g.flush(1, 3, 1)
	for g.core.Idle() {
		g.run()
	}
	g.must(writeReq(1, 3, 2, 2, 4096, 4096, 77))
	g.disk = g.disk.Crash(g.rnd, g.inflight())
	r, err := Check(g.disk, CheckOptions{Data: true})
	if err != nil || r.Total != 0 || r.Chunks != 5 || r.Blocks != 5*16 {
		t.Fatalf("check after a crash: %+v, %v", r, err)
	}
	rep, err := Inspect(g.disk)
	if err != nil || rep.Problem != "" || rep.ChunksUsed != 5 || len(rep.Volumes) != 1 ||
		rep.Volumes[0].Generation != 3 {
		t.Fatalf("inspect: %+v, %v", rep, err)
	}
	var b strings.Builder
	if err := rep.Print(&b, -1); err != nil || !strings.Contains(b.String(), "generation 3, 5 chunks") {
		t.Fatalf("print: %v\n%s", err, b.String())
	}

	g.open(Config{LocalResolve: true, VerifyReads: true})
	key := chunkKey{1, 4, 0}
	slot, _ := g.core.slots.find(&key)
	g.disk.Corrupt(g.core.lay.dataAt(slot) + 5000)
	r, err = Check(g.disk, CheckOptions{Data: true})
	if err != nil || r.Total != 1 || !strings.Contains(r.Problems[0].String(), "block 1 does not match") {
		t.Fatalf("check with rot: %+v, %v", r, err)
	}
	if st := g.do(readReq(1, 3, 4, 0, 8192)); st != 10 { // transport.StatusRot
		t.Fatalf("read of a rotten block: status %d", st)
	}
	g.disk.Corrupt(superA + 100)
	r, err = Check(g.disk, CheckOptions{})
	if err != nil || r.Total != 1 || r.Problems[0].Where != "superblock A" {
		t.Fatalf("check with a damaged superblock: %+v, %v", r, err)
	}
}

// Goal: damage of each kind of metadata is survived or refused, never believed.
func TestDamagedMetadata(t *testing.T) {
	setup := func() *rig {
		g := newRig(t, testSize, Config{LocalResolve: true, VerifyReads: true})
		g.fence(1, 1)
		for i := range uint64(3) {
			g.must(writeReq(1, 1, 1, i, 0, 64<<10, i+1))
		}
		for i := range uint64(idleTailPages + 4) { // enough for the tail to move when idle
			g.must(writeReq(1, 1, i+1, 2, 0, 64<<10, 3))
			g.flush(1, 1, i+1)
		}
		for g.core.Idle() {
			g.run()
		}
		g.must(writeReq(1, 1, 2, 0, 0, 4096, 9))
		g.flush(1, 1, 2)
		g.must(&Request{Op: OpStop})
		return g
	}
	t.Run("both superblocks", func(t *testing.T) {
		g := setup()
		g.disk.Corrupt(superA + 100)
		g.disk.Corrupt(superB + 100)
		if _, err := Open(g.disk, Config{}); err == nil {
			t.Fatal("opened")
		}
	})
	t.Run("newest header twin", func(t *testing.T) {
		g := setup()
		g.disk.Corrupt(g.core.lay.headerAt(0, uint32(g.core.hdrSeq[0]&1)) + 200)
		g.open(Config{VerifyReads: true})
		if g.core.stats.HeaderRebuilds != 1 {
			t.Fatal("not rebuilt")
		}
		g.want(1, 1, 1, 0, 64<<10, 2)
		g.want(1, 1, 0, 0, 4096, 9)
		g.want(1, 1, 2, 0, 64<<10, 3)
	})
	t.Run("chunk page", func(t *testing.T) {
		g := setup()
		key := chunkKey{1, 1, 0}
		slot, _ := g.core.slots.find(&key)
		g.disk.Corrupt(g.core.lay.pageAt(slot, g.core.slots.info[slot].pageSeq&1) + 200)
		g.open(Config{LocalResolve: true})
		for range 2 {
			if st := g.do(readReq(1, 1, 1, 0, 4096)); st != 10 {
				t.Fatalf("read under a damaged page: status %d", st)
			}
		}
		g.must(writeReq(1, 1, 3, 1, 0, 4096, 5)) // what is written is known again, and no more
		g.want(1, 1, 1, 0, 4096, 5)
		if st := g.do(readReq(1, 1, 1, 4096, 4096)); st != 10 {
			t.Fatalf("read beside it: status %d", st)
		}
		g.must(writeReq(1, 1, 3, 1, 0, cluster.ChunkSize, 6)) // repairs
		g.flush(1, 1, 3)
		for g.core.Idle() {
			g.run()
		}
		g.reopen(Config{LocalResolve: true})
		g.want(1, 1, 1, 0, cluster.ChunkSize, 6)
	})
	t.Run("end of the log after a clean stop", func(t *testing.T) {
		g := setup()
		g.disk.Corrupt(g.core.lay.ringAt(g.core.log.next-1) + 200)
		if _, err := Open(g.disk, Config{}); err == nil {
			t.Fatal("opened a log whose end is missing")
		}
	})
	t.Run("hole in the log", func(t *testing.T) {
		g := setup()
		g.disk.Corrupt(g.core.lay.ringAt(g.core.log.next-2) + 200)
		if _, err := Open(g.disk, Config{}); err == nil {
			t.Fatal("opened a log with a hole")
		}
		if rep, err := Inspect(g.disk); err != nil || rep.Problem == "" {
			t.Fatalf("inspect does not name the hole: %+v, %v", rep, err)
		}
	})
}

// Goal: the check names each structure that is damaged, and what helps.
func TestCheckNames(t *testing.T) {
	for _, x := range []struct {
		name string
		hurt func(g *rig)
		want string
	}{
		{"nothing", func(*rig) {}, ""},
		{"superblock", func(g *rig) { g.disk.Corrupt(superB + 9) },
			"superblock B: damaged; the other copy is used; the next start of sds writes it again"},
		{"header page", func(g *rig) { g.disk.Corrupt(g.core.lay.headerAt(0, 1) + 700) },
			"header table page 0 (slots 0 to 61): twin B is damaged"},
		{"chunk page", func(g *rig) {
			s := g.slotOf(1)
			g.disk.Corrupt(g.core.lay.pageAt(s, g.core.slots.info[s].pageSeq&1) + 300)
		}, "volume 1 chunk 1 (slot 1): no valid checksum page"},
		{"block", func(g *rig) { g.disk.Corrupt(g.core.lay.dataAt(g.slotOf(1)) + 5<<12) },
			"volume 1 chunk 1 (slot 1): block 5 does not match its checksum; a scrub mends it"},
		{"unreadable block", func(g *rig) {
			g.disk.Fail(disk.Fault{Op: "read", Off: g.core.lay.dataAt(g.slotOf(1)) + 3<<12, Len: 4096})
		}, "volume 1 chunk 1 (slot 1): block 3 cannot be read"},
		{"log", func(g *rig) { g.disk.Corrupt(g.core.lay.ringAt(g.core.log.next-1) + 70) },
			"log and tables: metadata is corrupt: the log ends at page"},
	} {
		t.Run(x.name, func(t *testing.T) {
			g := stored(t, Config{LocalResolve: true})
			for i := range uint64(idleTailPages + 4) { // the log's tail passes the chunks' records
				g.must(writeReq(1, 1, 2+i, 2, 0, 4096, i))
				g.flush(1, 1, 2+i)
			}
			g.rest()
			g.must(&Request{Op: OpStop})
			x.hurt(g)
			r, err := Check(g.disk, CheckOptions{Data: true})
			switch {
			case err != nil:
				t.Fatal(err)
			case x.want == "":
				if r.Total != 0 {
					t.Fatalf("%v", r.Problems)
				}
			case r.Total != 1 || !strings.Contains(r.Problems[0].String(), x.want):
				t.Fatalf("%d problems: %v", r.Total, r.Problems)
			}
		})
	}
}
