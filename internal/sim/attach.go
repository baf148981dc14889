// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"errors"
	"fmt"

	"braid/stripe/core"
)

// attach makes a new client for a volume, until it has it.
func (v *Volume) attach() {
	w := v.w
	v.clients++
	c := &Client{w: w, vol: v, name: fmt.Sprintf("c%d.%d", v.index, v.clients), host: "host", force: v.clients > 1,
		skew: w.between(0, 5*s1), drift: w.rng.Int64N(200*us) - 100*us}
	v.client = c
	w.clients = append(w.clients, c)
	c.attach()
}

func (c *Client) attach() {
	c.w.mdm.attach(c, func(a *attached, err error) {
		if c.dead {
			return
		}
		if err == nil {
			c.w.logf("%s attaches %s, generation %d", c.name, c.vol.name, a.gen)
			err = c.begin(a)
		}
		if err != nil {
			c.w.logf("%s does not attach: %v", c.name, err)
			if !errors.Is(err, errTimeout) {
				c.attempt++
			}
			c.later(c.w.between(100*ms, s1), evClient, c.attach)
			return
		}
		c.vol.guest.start()
	})
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
	default:
		w.failf("%s is lost: %v", c, err)
	}
	v.over = true
}

// abandon lets a client die.
func (v *Volume) abandon(c *Client) {
	c.die()
	v.over = true
}

// takeOver gives a volume to another client while the first one lives.
func (v *Volume) takeOver(c *Client) { v.over = true }
