// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"testing"

	"braid/cluster"
	"braid/mdm/client"
)

// Goal: a volume is renamed while its client holds it, another one takes the old
// name, and the holder attaches again and detaches by number, and touches only its
// own. A client of an older version, which knows names only, still can.
func TestRenamedVolumeIsHeld(t *testing.T) {
	leaks(t)
	c := newClient(t, startMember(t, testConfig(t)).Addr())
	register(t, c, 1)
	register(t, c, 2)
	create(t, c, "a", 2)
	create(t, c, "b", 2)
	attach := func(r client.AttachRequest) *client.Session {
		t.Helper()
		r.Client, r.Host = "c", "h"
		s, err := c.Attach(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	a, b := attach(client.AttachRequest{Volume: "a"}), attach(client.AttachRequest{Volume: "b"})
	maps := follow(t, c, a.Volume.ID)
	for _, x := range [][2]string{{"a", "x"}, {"b", "a"}} {
		if _, err := c.RenameVolume(t.Context(), x[0], x[1]); err != nil {
			t.Fatal(err)
		}
	}
	maps.until(t, "the new name", func(m *cluster.Map) bool {
		v := m.Volumes[a.Volume.ID]
		return v != nil && v.Name == "x"
	})
	again := attach(client.AttachRequest{Volume: "a", ID: a.Volume.ID, GuestAlive: true})
	if again.Volume.ID != a.Volume.ID || again.Volume.Name != "x" || again.Generation != a.Generation+1 {
		t.Errorf("attached again: %+v", again)
	}
	h := client.Held{Volume: a.Volume.ID, Name: "a", Client: "c", Generation: again.Generation}
	if err := c.Detach(t.Context(), h); err != nil {
		t.Fatal(err)
	}
	volumes, err := c.ListVolumes(t.Context())
	if err != nil || len(volumes) != 2 || volumes[0].Name != "a" || volumes[0].AttachedBy == "" ||
		volumes[1].Name != "x" || volumes[1].AttachedBy != "" {
		t.Fatalf("volumes %v, %v", volumes, err)
	}
	if err := c.Abandon(t.Context(), client.Held{Name: "a", Client: "c", Generation: b.Generation}); err != nil {
		t.Error(err)
	}
}
