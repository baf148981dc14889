// SPDX-License-Identifier: Apache-2.0

package state

import (
	"fmt"
	"testing"

	"braid/cluster"
)

// Goal: a guest whose acked writes are lost cannot resume (rules 5, 6, 28), a
// fresh attach can start, and a client that lost nothing can say so.
func TestResumeAfterTheLossOfCaches(t *testing.T) {
	y := newYard(t, 2, 2)
	x := y.start(AttachRequest{})
	y.restart(0, false)
	y.restart(1, false)
	y.settle()
	y.wantInSync("all restarted", 1, 2)
	_, err := y.attach(AttachRequest{Volume: "v", Client: "c", Host: "h", GuestAlive: true})
	wants(t, err, ErrRefused, "without their caches", "sdc detach", "every flushed write")
	if b := y.state().Before(y.volume, y.done); b.Resume {
		t.Errorf("resume is possible: %+v", b)
	}
	if !y.state().Sound(x.Volume, x.Generation, uint64(y.state().place(y.pg()).version)-1, y.now).Empty() {
		t.Error("a client that has not seen the loss vouches for its writes")
	}
	y.commit(y.state().Sound(x.Volume, x.Generation, y.state().MapVersion(), y.now))
	if again := y.start(AttachRequest{GuestAlive: true}); again.Generation != x.Generation+1 {
		t.Errorf("resumed under generation %d", again.Generation)
	}
	y.restart(0, false)
	y.restart(1, false)
	y.settle()
	y.start(AttachRequest{Force: true})
	if b := y.state().Before(y.volume, y.done); !b.Resume {
		t.Errorf("a fresh attach after the loss: %+v", b)
	}
	y.commit(y.state().ExpireSessions([]cluster.VolumeID{x.Volume}, y.now))
	if again := y.start(AttachRequest{GuestAlive: true}); !again.Resumed {
		t.Error("the guest of a dead sdc cannot resume although no cache was lost")
	}
}

// Goal: a call that is repeated because its answer got lost resumes no guest whose
// writes were lost after the first.
func TestResumeRepeatedAfterTheLossOfCaches(t *testing.T) {
	y := newYard(t, 2, 2)
	y.start(AttachRequest{})
	resume := AttachRequest{Volume: "v", Client: "c", Host: "h", GuestAlive: true, Request: "r"}
	first := y.start(resume)
	if again := y.start(resume); again.Generation != first.Generation {
		t.Errorf("repeated: generation %d after %d", again.Generation, first.Generation)
	}
	y.restart(0, false)
	y.restart(1, false)
	y.settle()
	_, err := y.attach(resume)
	wants(t, err, ErrRefused, "without their caches", "sdc detach", "every flushed write")
}

// Goal: a guest goes on after its client was away for longer than its session, and
// after a client died on the way to going on, but never when somebody else had the
// volume since.
func TestResumeAfterTheEndOfTheSession(t *testing.T) {
	y := newYard(t, 2, 2)
	x := y.start(AttachRequest{})
	expire := func() { y.commit(y.state().ExpireSessions([]cluster.VolumeID{x.Volume}, y.now)) }
	detach := func(client string, gen cluster.Generation) {
		tx, err := y.state().Detach("v", client, gen, y.now)
		if err != nil {
			t.Fatal(err)
		}
		y.commit(tx)
	}
	expire()
	resume := AttachRequest{Volume: "v", Client: "c", Host: "h", GuestAlive: true, Continues: x.Generation}
	for i := range 3 {
		resume.Request = fmt.Sprint(i)
		again := y.start(resume)
		if again.Generation <= x.Generation+cluster.Generation(i) || !again.Resumed {
			t.Fatalf("resumed as %+v", again)
		}
		expire()
	}
	other := y.start(AttachRequest{Client: "d", Host: "h2"})
	resume.Request = "too late"
	for _, end := range []func(){expire, func() {
		other = y.start(AttachRequest{Client: "d", Host: "h2"})
		detach("d", other.Generation)
	}, func() { detach("c", y.start(AttachRequest{}).Generation) }} {
		end()
		_, err := y.attach(resume)
		wants(t, err, ErrRefused, "attached elsewhere since")
	}
}
