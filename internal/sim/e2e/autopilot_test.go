// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"testing"

	"braid/mdm/pb"
)

// Goal: a cluster that fills up takes its spare by itself before writes wait, data
// spreads to it, and every byte is right. Method: a spare server beside three small
// ones, and a volume that is written.
func TestAutopilotAddsSpare(t *testing.T) {
	t.Parallel()
	const piece, size = 1 << 20, 96 << 20
	c := Start(t, Options{DiskSize: 96 << 20})
	c.AddSpare(1, 256<<20)
	c.AwaitDevices(4)
	mode, ceiling, threshold, cooldown := "on", uint32(4), uint32(50), uint64(1000)
	if _, err := c.Api.SetAutopilot(t.Context(), &pb.SetAutopilotRequest{Mode: &mode, Ceiling: &ceiling,
		Threshold: &threshold, CooldownMs: &cooldown}); err != nil {
		t.Fatal(err)
	}
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: size, Replicas: 2}))
	content := func(i int) []byte { return bytes.Repeat(random(4096, uint64(i)), piece/4096) }
	last := func() *pb.Device {
		devices, err := c.Api.ListDevices(t.Context())
		if err != nil || len(devices) != 4 {
			t.Fatal(devices, err)
		}
		return devices[3]
	}
	for i := range size / piece {
		Write(t, v, uint64(i)*piece, content(i))
		if i == 20 && (!last().Spare || last().Used > 0) {
			t.Error("the spare is used though there is room")
		}
	}
	Flush(t, v)
	Eventually(t, "data lies on what was the spare", func() bool { return !last().Spare && last().Used > 16<<20 })
	c.AwaitHealthy()
	for i := range size / piece {
		if !bytes.Equal(Read(t, v, uint64(i)*piece, piece), content(i)) {
			t.Fatalf("wrong bytes in piece %d", i)
		}
	}
	p, err := c.Api.Autopilot(t.Context())
	if err != nil || len(p.History) != 1 || p.History[0].Device != last().Id || p.Devices != 4 || p.Spares != 0 {
		t.Errorf("%+v, %v", p, err)
	}
}
