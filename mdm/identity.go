// SPDX-License-Identifier: Apache-2.0

package mdm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// memberIdentity is what a data directory was made for. etcd ignores its flags
// once it has data: without this check a member that is started with other ones
// would silently run as what it was before.
type memberIdentity struct {
	Name    string   `json:"name"`
	Members []string `json:"members"` // sorted; names alone where there is one
	Etcd    bool     `json:"external_etcd"`
}

// checkIdentity compares the flags with what the directory was made for, and
// remembers them the first time.
func checkIdentity(c Config) error {
	want := memberIdentity{Name: c.Name, Etcd: len(c.Etcd) > 0}
	if parts := strings.Split(c.Cluster, ","); len(parts) > 1 {
		want.Members = parts
		slices.Sort(want.Members)
	}
	path := filepath.Join(c.DataDir, "member.json")
	text, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return writeFile(path, want)
	case err != nil:
		return fmt.Errorf("read what the data directory was made for: %w", err)
	}
	var have memberIdentity
	if err := json.Unmarshal(text, &have); err != nil {
		return fmt.Errorf("read what the data directory was made for, from %s: %w", path, err)
	}
	if have.Etcd != want.Etcd {
		return fmt.Errorf("the data directory %s was made for a member %s; start it so, or take an empty "+
			"--data-dir", c.DataDir, map[bool]string{true: "with --etcd", false: "without --etcd"}[have.Etcd])
	}
	if len(have.Members) > 1 && have.Name != want.Name || !slices.Equal(have.Members, want.Members) {
		return fmt.Errorf("the data directory %s belongs to member %s of %s, and the members of a cluster "+
			"cannot be changed by starting one differently; start it with --name %s and --cluster as before, "+
			"or take an empty --data-dir", c.DataDir, have.Name, orAlone(have.Members), have.Name)
	}
	return nil
}

func orAlone(members []string) string {
	if len(members) == 0 {
		return "a cluster of one"
	}
	return strings.Join(members, ",")
}

// writeFile makes the file appear whole or not at all.
func writeFile(path string, value any) error {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return err
	}
	temporary := path + ".new"
	if err := os.WriteFile(temporary, append(text, '\n'), 0o600); err != nil {
		return fmt.Errorf("write to the data directory: %w", err)
	}
	if err := os.Rename(temporary, path); err != nil {
		return fmt.Errorf("write to the data directory: %w", err)
	}
	return nil
}
