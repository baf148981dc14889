// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"

	"braid/mdm/pb"
	"braid/stripe"
	"braid/stripe/core"
	"braid/transport/bio"
)

// roomless reports whether writes of a volume wait for space.
func roomless(v *stripe.Volume) bool {
	return slices.ContainsFunc(v.Waiting(), func(w stripe.Wait) bool { return w.Reason == core.WaitSpace })
}

// Goal: a cluster that is full says so by its health and by events; what needs space
// waits, and nothing else does; where a node with room joins it goes on by itself, no
// write fails, and every byte is right. Method: two thin volumes that promise more than
// there is are written until writes wait; then a server joins. The writes of a third
// one do not wait, but fail.
func TestFullClusterGrows(t *testing.T) {
	t.Parallel()
	const piece, size = 1 << 20, 64 << 20
	c := Start(t, Options{DiskSize: 64 << 20})
	first := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: size, Replicas: 2}))
	second := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: size, Replicas: 2}))
	content := func(seed int) []byte { return bytes.Repeat(random(4096, uint64(seed)), piece/4096) }
	begin := func(v *stripe.Volume, i, seed int) *Call {
		return Begin(v, bio.Request{Op: bio.Write, Off: uint64(i) * piece, Len: piece, Data: content(seed)})
	}
	verify := func(v *stripe.Volume, from, to, seed int) {
		t.Helper()
		for i := from; i < to; i++ {
			if !bytes.Equal(Read(t, v, uint64(i)*piece, piece), content(seed+i)) {
				t.Fatalf("wrong bytes in piece %d", i)
			}
		}
	}
	for i := range size / piece {
		Write(t, first, uint64(i)*piece, content(i))
	}
	written := 0
	waiting := []*Call{}
	for ; len(waiting) == 0; written++ {
		if written == size/piece {
			t.Fatal("the cluster does not get full")
		}
		call := begin(second, written, 1000+written)
		Eventually(t, "a piece is written, or waits for space", func() bool { return call.Ended() || roomless(second) })
		if !call.Ended() {
			waiting = append(waiting, call)
		} else if call.Err != nil {
			t.Fatalf("piece %d: %v", written, call.Err)
		}
	}
	upTo := min(written+16, size/piece)
	for i := written; i < upTo; i++ {
		waiting = append(waiting, begin(second, i, 1000+i))
	}
	for i := range 16 {
		Write(t, first, uint64(i)*piece, content(2000+i))
	}
	Flush(t, first)
	Flush(t, second)
	verify(first, 0, 16, 2000)
	verify(second, 0, written-1, 1000)
	failsWithoutSpace(t, c, size, content(0))
	Eventually(t, "the cluster says that it is full", func() bool {
		s := c.status()
		return c.told(t, "full: writes that need space") && c.told(t, "writes wait for space") &&
			s.Health == "full" && s.VolumesWaiting == 1
	})
	if !roomless(second) {
		t.Error("no write waits for space any more")
	}
	c.AddNode(1, 256<<20)
	c.AwaitDevices(4)
	for i, call := range waiting {
		if err := call.Wait(Patience); err != nil {
			t.Fatalf("write %d, which waited for space: %v; waiting: %+v", i, err, second.Waiting())
		}
	}
	Eventually(t, "the cluster says that writes go on", func() bool {
		return c.told(t, "its writes go on") && c.status().VolumesWaiting == 0
	})
	for i := upTo; i < min(upTo+16, size/piece); i++ {
		Write(t, second, uint64(i)*piece, content(1000+i))
	}
	Flush(t, second)
	verify(first, 0, 16, 2000)
	verify(first, 16, size/piece, 0)
	verify(second, 0, min(upTo+16, size/piece), 1000)
}

// told reports whether an event about space says that.
func (c *Cluster) told(t *testing.T, text string) (told bool) {
	err := c.Api.Events(t.Context(), 0, 0, false, func(e *pb.Event) {
		told = told || e.Kind == "capacity" && strings.Contains(e.Text, text)
	})
	return err == nil && told
}

// failsWithoutSpace uses a volume whose writes are to fail where there is no space.
func failsWithoutSpace(t *testing.T, c *Cluster, size uint64, data []byte) {
	t.Helper()
	v, err := c.Attach(c.CreateVolume(&pb.CreateVolumeRequest{Size: size, Replicas: 2}),
		func(cfg *stripe.Config) { cfg.FailFull = true })
	if err != nil {
		t.Fatal(err)
	}
	for off := uint64(0); err == nil && off < size; off += uint64(len(data)) {
		err = Begin(v, bio.Request{Op: bio.Write, Off: off, Len: uint64(len(data)), Data: data}).Wait(Patience)
	}
	if !errors.Is(err, bio.ErrNoSpace) {
		t.Errorf("writes to a full cluster that are not to wait end with %v", err)
	}
	if err := Detach(v, Patience); err != nil {
		t.Error(err)
	}
}
