// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"braid/mdm/client"
	"braid/mdm/pb"
	"braid/stripe"
)

// Goal: mdm is lost with its disk and comes back from a backup that is older than
// what happened since: a server joined and got copies, another went away and
// missed writes, a volume was created and attached. While the restore waits, I/O
// goes on and changes are refused; afterwards no session is lost, the copy that
// missed writes is not believed, and every byte is there.
func TestRestore(t *testing.T) {
	t.Parallel()
	c := Start(t, Options{DiskSize: 512 << 20})
	v := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 64 << 20, Replicas: 2}))
	l := startLoad(c, v, 2, 8<<20)
	c.balanced("at first")
	path, before := filepath.Join(t.TempDir(), "meta"), c.status()
	var text bytes.Buffer
	if err := c.Api.Backup(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}

	c.AddNode(1, 512<<20)
	c.AwaitDevices(4)
	Eventually(t, "the one that joined has copies", func() bool { return c.balanced("after one joined")[4] > 0 })
	w := c.MustAttach(c.CreateVolume(&pb.CreateVolumeRequest{Size: 16 << 20, Replicas: 2}))
	data := random(1<<20, 5)
	Write(t, w, 0, data)
	c.Node[1].Stop()
	Eventually(t, "the copies of the server that stopped have left", func() bool {
		s := c.status()
		return s.DevicesUp == 3 && s.PgsDegraded > 0 && s.PgsRebuilding == 0
	})
	Write(t, v, 32<<20, data) // the one that stopped misses this
	last := c.status().MapVersion

	c.StopMdm()
	c.mdmDir, c.restore = t.TempDir(), path
	c.StartMdm()
	hasty, err := client.New([]string{c.mdmAddr}, client.Options{Patience: 300 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer hasty.Close()
	if _, err := hasty.CreateVolume(t.Context(), &pb.CreateVolumeRequest{Name: "x", Size: 1 << 20}); err == nil ||
		!strings.Contains(err.Error(), "scli restore confirm") {
		t.Errorf("a volume was created while the restore waits: %v", err)
	}
	var status client.RestoreStatus
	Eventually(t, "the servers have told which map they have", func() bool {
		status, err = c.Api.RestoreStatus(t.Context())
		return err == nil && len(status.Missing) == 0
	})
	if !status.Held || status.Version < before.MapVersion || status.Version >= last || status.Newest < last ||
		len(status.Heard) != 3 {
		t.Errorf("restore: %+v; the backup has version %d at least, the last was %d", status, before.MapVersion,
			last)
	}
	Write(t, w, 4<<20, data)
	if _, err := c.Api.ConfirmRestore(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	c.Node[1].Start()
	c.AwaitDevices(4)
	c.balanced("after the restore")
	if s := c.status(); s.MapVersion <= last || s.Volumes != 2 || s.Attached != 2 {
		t.Errorf("after the restore: %v; the last version was %d", s, last)
	}
	c.Node[0].Stop() // what is read now comes from the copies that were made since, too
	for what, got := range map[string][]byte{"missed by one": Read(t, v, 32<<20, len(data)),
		"of the new volume": Read(t, w, 0, len(data)), "while it waited": Read(t, w, 4<<20, len(data))} {
		if !bytes.Equal(got, data) {
			t.Errorf("%s: other bytes", what)
		}
	}
	l.check()
	c.Node[0].Start()
	for _, volume := range []*stripe.Volume{v, w} {
		if err := Detach(volume, Patience); err != nil {
			t.Error(err)
		}
	}
}

func (c *Cluster) status() *pb.StatusResponse {
	c.T.Helper()
	s, err := c.Api.Status(c.T.Context())
	if err != nil {
		c.T.Fatal(err)
	}
	return s
}
