// SPDX-License-Identifier: Apache-2.0

package state

import "testing"

// Goal: a volume is renamed while it is attached, and its holder still finds it by
// number, whoever has its old name; a repeated call is no error; bad names are.
func TestRename(t *testing.T) {
	b := newBench(t, 2)
	v, other := b.create("v", 2), b.create("other", 2)
	session, err := b.attach(AttachRequest{Volume: "v", Client: "c", Host: "h"})
	if err != nil {
		t.Fatal(err)
	}
	rename := func(name, to string) error {
		tx, _, err := b.state().RenameVolume(0, name, to, b.now)
		if err == nil {
			b.commit(tx)
		}
		return err
	}
	wants(t, rename("v", "other"), ErrExists, "other", "in use")
	wants(t, rename("nosuch", "w"), ErrNotFound, "nosuch", "scli volume list")
	wants(t, rename("v", "UPPER"), ErrInvalid, "rename volume v", "UPPER")
	for _, x := range [][2]string{{"v", "w"}, {"other", "v"}} { // the old name is somebody else's now
		if err := rename(x[0], x[1]); err != nil {
			t.Fatal(err)
		}
	}
	if name, err := b.state().NameOf(v.ID, "v"); name != "w" || err != nil {
		t.Errorf("volume %d is called %q, %v", v.ID, name, err)
	}
	if name, err := b.state().NameOf(0, "v"); name != "v" || err != nil {
		t.Errorf("a caller without a number means %q, %v", name, err)
	}
	if s := b.state().Session(v.ID); s == nil || s.Generation != session.Generation {
		t.Errorf("the session is %+v", s)
	}
	if s := b.reload(); s.volumeByName("w").ID != v.ID || s.volumeByName("v").ID != other.ID {
		t.Error("the names are others after a restart")
	}
	// The answer got lost, and the call is repeated.
	if tx, _, err := b.state().RenameVolume(v.ID, "v", "w", b.now); err != nil || !tx.Empty() {
		t.Errorf("once more: %v", err)
	}
	_, _, err = b.state().RenameVolume(v.ID, "x", "y", b.now)
	wants(t, err, ErrNotFound, "x")
	tx, err := b.state().Detach("w", "c", session.Generation, b.now)
	if err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	if tx, err = b.state().DeleteVolume("w", false, b.now); err != nil {
		t.Fatal(err)
	}
	b.commit(tx)
	_, err = b.state().NameOf(v.ID, "v")
	wants(t, err, ErrNotFound, "deleted")
}
