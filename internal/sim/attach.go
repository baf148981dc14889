// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"

	"braid/mdm/state"
	"braid/stripe/core"
	"braid/transport/bio"
)

// attach makes a new client for a volume, until it has it. alive says that the
// guest has not noticed anything: it waits for the answers to its requests.
func (v *Volume) attach(alive bool) {
	w := v.w
	v.clients++
	c := &Client{w: w, vol: v, name: fmt.Sprintf("c%d.%d", v.index, v.clients), number: v.clients,
		host: "host", force: v.clients > 1,
		alive: alive, skew: w.between(0, 5*s1), drift: w.rng.Int64N(200*us) - 100*us}
	if alive && v.client != nil {
		c.name = v.client.name // the same sdc, started again
	}
	v.client = c
	w.clients = append(w.clients, c)
	c.attach()
}

func (c *Client) attach() {
	c.attempt++
	c.try()
}

func (c *Client) try() {
	w, v := c.w, c.vol
	w.mdm.attach(c, func(a *attached, err error) {
		if c.dead || v.client != c {
			return
		}
		if err == nil {
			w.logf("%s attaches %s, generation %d, guest alive %v", c.name, v.name, a.gen, c.alive)
			err = c.begin(a)
		}
		switch {
		case err == nil:
			if w.chance(1, 4) {
				w.after(w.between(0, 300*ms), evFault, c.who(), w.cutOne)
			}
			v.guest.start()
		case errors.Is(err, errTimeout):
			c.later(w.between(100*ms, s1), evClient, c.try)
		case c.alive && errors.Is(err, state.ErrRefused):
			// Rule 6: acked writes are gone. The guest has to start anew.
			w.logf("%s does not resume: %v", c.name, err)
			w.mark("resume refused: no unbroken copy")
			v.guestRestarts()
			c.alive, c.force = false, true
			c.later(w.between(100*ms, s1), evClient, c.attach)
		default:
			w.logf("%s does not attach: %v", c.name, err)
			c.later(w.between(100*ms, s1), evClient, c.attach)
		}
	})
}

// guestRestarts is the death of whoever used the volume.
func (v *Volume) guestRestarts() {
	v.guest.abandon()
	v.oracle.restarted()
}

// abandon forgets what was under way.
func (g *Guest) abandon() {
	for _, q := range g.live {
		q.orphan = true
		g.v.oracle.haunted(q)
	}
	g.live = g.live[:0]
}

// lost is told when the core gives the volume up.
func (v *Volume) lost(c *Client, err error) {
	w := v.w
	switch {
	case errors.Is(err, core.ErrFenced):
		w.mark("client fenced")
		if held := w.mdm.st.Session(v.id); v.client == c && held != nil && held.Generation == c.gen {
			w.failf("%s is fenced, but nobody else attached: %v", c, err)
		}
	case errors.Is(err, core.ErrBroken):
		w.mark("device failed: last unbroken copy lost")
	case errors.Is(err, core.ErrNoSource):
		w.mark("resume failed: no source")
	default:
		w.failf("%s is lost: %v", c, err)
	}
	if v.client != c {
		return
	}
	if !w.cfg.Reattach {
		v.over = true
		return
	}
	v.guestRestarts()
	w.after(w.between(ms, s1), evClient, c.who(), func() {
		if v.client == c {
			c.die()
			v.attach(false)
		}
	})
}

// dies ends the volume's client; another one takes its place. The guest lives
// on, where it does not sit on the same host.
func (v *Volume) dies(c *Client) {
	w := v.w
	c.die()
	if !w.cfg.Reattach {
		v.over = true
		return
	}
	alive := w.rng.IntN(2) == 0
	if alive {
		w.mark("client restarts under a live guest")
	} else {
		v.guestRestarts()
	}
	w.after(w.between(ms, 3*s1), evClient, c.who(), func() {
		if v.client == c {
			v.resume(alive)
		}
	})
}

// resume attaches anew, and sends unanswered requests again.
func (v *Volume) resume(alive bool) {
	g := v.guest
	if alive {
		g.again = append(g.again, g.live...)
		g.abandon()
	}
	v.attach(alive)
}

// takeOver gives a volume to another client while the first one lives, and goes
// on asking for reads: what they return must not be stale.
func (v *Volume) takeOver(c *Client) {
	if !v.w.cfg.Reattach {
		return
	}
	v.w.mark("zombie client")
	v.guestRestarts()
	v.attach(false)
	v.haunt(c)
}

// haunt lets a zombie read now and then.
func (v *Volume) haunt(c *Client) {
	w := v.w
	c.later(w.between(0, 100*ms), evGuest, func() {
		if c.ended {
			return
		}
		if v.serving() && len(c.ghosts) < 4 {
			win := v.windows[w.rng.IntN(len(v.windows))]
			v.ghostRead(c, win.first+w.rng.Uint64N(win.count))
		}
		v.haunt(c)
	})
}

// ghostRead has a zombie ask for a block.
func (v *Volume) ghostRead(c *Client, first uint64) *request {
	q := &request{first: first, count: 1, ghost: true, client: c, since: v.w.now}
	q.r.Op = bio.Read
	q.r.Off, q.r.Len, q.r.Data, q.r.Done = q.first*block, block, make([]byte, block), q
	v.oracle.submitted(q)
	c.ghosts = append(c.ghosts, q)
	c.submit(&q.r)
	return q
}

// haunted checks a zombie's read: it may be refused, and it may return what
// came too late to be seen by others, but nothing that was overwritten before
// the zombie asked (rule 15).
func (v *Volume) haunted(c *Client, q *request) {
	for i, o := range c.ghosts {
		if o == q {
			c.ghosts = append(c.ghosts[:i], c.ghosts[i+1:]...)
			break
		}
	}
	if q.r.Err != nil {
		return
	}
	v.w.mark("zombie read answered")
	id, whole := idOf(q.r.Data)
	h := &v.oracle.blocks[q.first]
	for i := max(q.low[0], h.first); i < h.end(); i++ {
		if h.at(i).id == id && whole {
			return
		}
	}
	v.w.failf("%s, a zombie, reads %x of %s block %d, which was overwritten before it asked (rule 15): %s",
		c, id, v.name, q.first, h)
}
