// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"errors"
	"testing"

	"braid/mdm/pb"
	"braid/stripe"
	"braid/transport/bio"
)

// Goal: a cluster that is full says so by its health and by events, refuses only
// what needs space, and goes on where a node with room joins: what was refused is
// written then, and every byte is right. Method: two thin volumes that promise more
// than there is are written until there is no space; then a server joins.
func TestFullClusterGrows(t *testing.T) {
	t.Parallel()
	const piece, size = 1 << 20, 96 << 20
	c := Start(t, Options{DiskSize: 96 << 20})
	first := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: size, Replicas: 2}))
	second := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: size, Replicas: 2}))
	content := func(seed int) []byte { return bytes.Repeat(random(4096, uint64(seed)), piece/4096) }
	try := func(v *stripe.Volume, i, seed int) error {
		err := Begin(v, bio.Request{Op: bio.Write, Off: uint64(i) * piece, Len: piece, Data: content(seed)}).
			Wait(Patience)
		if err != nil && !errors.Is(err, bio.ErrNoSpace) {
			t.Fatalf("write %d: %v; waiting: %+v", i, err, v.Waiting())
		}
		return err
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
		if err := try(first, i, i); err != nil {
			t.Fatalf("the first volume has room: piece %d: %v", i, err)
		}
	}
	written := 0
	for try(second, written, 1000+written) == nil {
		if written++; written == size/piece {
			t.Fatal("the cluster does not get full")
		}
	}
	for i := range 16 {
		if err := try(first, i, 2000+i); err != nil {
			t.Fatalf("overwrite piece %d: %v", i, err)
		}
	}
	Flush(t, first)
	verify(first, 0, 16, 2000)
	verify(second, 0, written, 1000)
	Eventually(t, "the cluster says that it is full", func() bool {
		told := false
		err := c.Api.Events(t.Context(), 0, 0, false, func(e *pb.Event) {
			told = told || e.Kind == "capacity" && e.Severity == "warning"
		})
		return err == nil && told && c.status().Health == "full"
	})
	c.AddNode(1, 384<<20)
	c.AwaitDevices(4)
	upTo := min(written+32, size/piece)
	for i := written; i < upTo; i++ {
		Eventually(t, "there is space", func() bool { return try(second, i, 1000+i) == nil })
	}
	Flush(t, second)
	verify(first, 0, 16, 2000)
	verify(first, 16, size/piece, 0)
	verify(second, 0, upTo, 1000)
}
