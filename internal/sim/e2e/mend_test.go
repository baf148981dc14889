// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"context"
	"testing"

	"braid/mdm/pb"
)

// Goal: what rots on one copy is read from the other, is mended on the disk by
// being read, the rest by a scrub, and is told as events. Method: a bit of every
// block on one disk is changed; reads; then a scrub of all devices.
func TestRotIsMended(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	want := random(4<<20, 21)
	for off := 0; off < len(want); off += 1 << 20 {
		Write(t, v, uint64(off), want[off:off+1<<20])
	}
	Flush(t, v)
	disk := c.Node[0].Disk[0]
	sound := func() int { return disk.Count(want) }
	held := sound()
	spoilt := disk.Spoil(want)
	if spoilt == 0 || spoilt != held || sound() != 0 {
		t.Fatalf("%d blocks were spoilt, %d are there", spoilt, held)
	}
	for off := 0; off < len(want); off += 1 << 20 {
		if got := Read(t, v, uint64(off), 1<<20); !bytes.Equal(got, want[off:off+1<<20]) {
			t.Fatalf("wrong bytes in MiB %d", off>>20)
		}
	}
	if v.Stats().BadSums == 0 {
		t.Fatal("no read came across a spoilt block")
	}
	Eventually(t, "a read has a block mended", func() bool { return sound() > 0 })
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	if _, err := c.Api.Scrub(ctx, &pb.ScrubRequest{}); err != nil {
		t.Fatal(err)
	}
	Eventually(t, "the scrub is done and everything is mended", func() bool {
		s, err := c.Api.ScrubStatus(ctx)
		if err != nil || len(s.Devices) != 3 {
			return false
		}
		for _, d := range s.Devices {
			if d.Report.GetState() != "done" {
				return false
			}
		}
		return sound() == held
	})
	kinds := map[string]bool{}
	Eventually(t, "it is among the events", func() bool {
		_ = c.Api.Events(ctx, 0, 0, false, func(e *pb.Event) { kinds[e.Kind] = true })
		return kinds["rot-found"] && kinds["rot-mended"] && kinds["scrub-done"]
	})
}
