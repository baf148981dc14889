// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"braid/mdm/client"
)

func backupOf(t *testing.T, c *client.Client) string {
	t.Helper()
	var text bytes.Buffer
	if err := c.Backup(t.Context(), &text); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "meta")
	if err := os.WriteFile(path, text.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// Goal: without the word of any server a restore goes on only by force, and then
// no generation, epoch, version or number is given twice and no session goes on.
func TestRestoreWithoutServers(t *testing.T) {
	m := startMember(t, testConfig(t))
	c := newClient(t, m.Addr())
	register(t, c, 1)
	register(t, c, 2)
	create(t, c, "v", 2)
	before, err := c.Attach(t.Context(), client.AttachRequest{Client: "c", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	path := backupOf(t, c)
	config := testConfig(t)
	config.Restore = path
	fresh, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c = newClient(t, fresh.Addr())
	if _, err := c.ConfirmRestore(t.Context(), false); err == nil || !strings.Contains(err.Error(), "--force") {
		t.Fatalf("confirmed without a server's word: %v", err)
	}
	hasty, err := client.New([]string{fresh.Addr()}, client.Options{Patience: 200 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	defer hasty.Close()
	if err := hasty.Backup(t.Context(), new(bytes.Buffer)); err == nil {
		t.Error("a restore that is not confirmed can be backed up")
	}
	if _, err := c.ConfirmRestore(t.Context(), true); err != nil {
		t.Fatal(err)
	}
	if fresh.Cluster() != m.Cluster() {
		t.Errorf("cluster %v, was %v", fresh.Cluster(), m.Cluster())
	}
	register(t, c, 1)
	register(t, c, 2)
	after, err := c.Attach(t.Context(), client.AttachRequest{Client: "d", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	if after.Generation < before.Generation+1<<20 || after.Map.Version < before.Map.Version+1<<20 {
		t.Errorf("generation %d after %d, version %d after %d", after.Generation, before.Generation,
			after.Map.Version, before.Map.Version)
	}
	for i, pg := range after.Map.PGs[after.Volume.PGSet] {
		if old := before.Map.PGs[after.Volume.PGSet][i]; pg.Epoch < old.Epoch+1<<16 || len(pg.InSync) != 2 {
			t.Fatalf("group %d: %+v, was %+v", i, pg, old)
		}
	}
	create(t, c, "w", 2)

	// Again with a member that has its state by now: the same, without a new restore.
	if err := fresh.Close(); err != nil {
		t.Fatal(err)
	}
	again := startMember(t, config)
	s, err := newClient(t, again.Addr()).Status(t.Context())
	if err != nil || s.Volumes != 2 || s.MapVersion < after.Map.Version {
		t.Errorf("after a restart: %v, %v", s, err)
	}
}

// Goal: a damaged backup and a store that is not empty are refused.
func TestRestoreRefusals(t *testing.T) {
	config := testConfig(t)
	m, err := Start(t.Context(), config)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, m.Addr())
	register(t, c, 1)
	create(t, c, "v", 1)
	path := backupOf(t, c)
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	refused := func(words string, c Config, text []byte) {
		t.Helper()
		if err := os.WriteFile(path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		c.Restore = path
		if m, err := Start(t.Context(), c); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("want %q, got %v", words, err)
			if err == nil {
				m.Close()
			}
		}
	}
	refused("cut off", testConfig(t), whole[:len(whole)/2])
	refused("checksum", testConfig(t), bytes.Replace(whole, []byte(`"name":"v"`), []byte(`"name":"w"`), 1))
	refused("no backup", testConfig(t), []byte("{}\n"))
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	refused("cluster already", config, whole)
}
