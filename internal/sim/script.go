// SPDX-License-Identifier: Apache-2.0

package sim

import (
	"bufio"
	"fmt"
	"strings"
	"time"

	"braid/cluster/rules"
)

// Script is a run as text: a configuration and the faults, each at its time.
//
//	seed 17
//	servers 3 replicas 2 volumes 1 chunks 4
//	duration 20s
//	lost-rpc 3
//	reattach
//	off LogFirst
//	at 1.250000 power 1 4711
//
// A line of faults names the time in seconds after the volumes were attached,
// what happens, the node that is concerned and what the details are drawn from.
func (c *Config) Script() string {
	var s strings.Builder
	fmt.Fprintf(&s, "seed %d\nservers %d replicas %d volumes %d chunks %d\nduration %v\n",
		c.Seed, c.Servers, c.Replicas, c.Volumes, c.Chunks, c.Duration)
	if c.Faults.LostRPC > 0 {
		fmt.Fprintf(&s, "lost-rpc %d\n", c.Faults.LostRPC)
	}
	for _, f := range c.flags() {
		if *f.on {
			fmt.Fprintln(&s, f.name)
		}
	}
	if c.Grace > 0 {
		fmt.Fprintf(&s, "grace %v\n", c.Grace)
	}
	if c.Off != 0 {
		fmt.Fprintf(&s, "off %v\n", c.Off)
	}
	plan := c.Plan
	if plan == nil {
		plan = c.plan()
	}
	for _, a := range plan {
		fmt.Fprintf(&s, "at %.9f %s %d %d\n", float64(a.At)/1e9, a.What, a.Node, a.Seed)
	}
	return s.String()
}

// ParseScript reads what Script writes; lines that begin with # are comments.
func ParseScript(text string) (c Config, err error) {
	c.Plan = []Action{}
	for scanner, line := bufio.NewScanner(strings.NewReader(text)), 1; scanner.Scan(); line++ {
		words := strings.Fields(scanner.Text())
		if len(words) == 0 || strings.HasPrefix(words[0], "#") {
			continue
		}
		if err := c.parse(words); err != nil {
			return c, fmt.Errorf("line %d, %q: %w", line, scanner.Text(), err)
		}
	}
	return c, nil
}

type configFlag struct {
	name string
	on   *bool
}

func (c *Config) flags() []configFlag {
	return []configFlag{{"reattach", &c.Reattach}, {"evict", &c.Evict}, {"resync", &c.Resync},
		{"sole-errors", &c.Faults.SoleErrors}, {"full", &c.Faults.Full}}
}

func (c *Config) parse(words []string) (err error) {
	rest := strings.Join(words[1:], " ")
	switch words[0] {
	case "seed":
		_, err = fmt.Sscan(rest, &c.Seed)
	case "servers":
		_, err = fmt.Sscanf(strings.Join(words, " "), "servers %d replicas %d volumes %d chunks %d",
			&c.Servers, &c.Replicas, &c.Volumes, &c.Chunks)
	case "duration":
		c.Duration, err = time.ParseDuration(rest)
	case "grace":
		c.Grace, err = time.ParseDuration(rest)
	case "lost-rpc":
		_, err = fmt.Sscan(rest, &c.Faults.LostRPC)
	case "reattach", "evict", "resync", "sole-errors", "full":
		for _, f := range c.flags() {
			if f.name == words[0] {
				*f.on = true
			}
		}
	case "off":
		c.Off, err = rules.Parse(rest)
	case "at":
		var a Action
		var at float64
		_, err = fmt.Sscan(rest, &at, &a.What, &a.Node, &a.Seed)
		a.At = int64(at*1e9 + 0.5)
		c.Plan = append(c.Plan, a)
	default:
		err = fmt.Errorf("unknown word %q", words[0])
	}
	return err
}

// Shrink looks for a smaller run that fails too: fewer faults, in ever smaller
// parts, no lost answers, fewer volumes, chunks and servers, less time. tries
// bounds the runs.
func Shrink(c Config, tries int) (Config, *Report) {
	worst := Run(c)
	if worst.Err == nil {
		return c, worst
	}
	if c.Plan == nil {
		c.Plan = c.plan()
	}
	fails := func(change func(*Config)) bool {
		if tries--; tries < 0 {
			return false
		}
		next := c
		change(&next)
		r := Run(next)
		if r.Err == nil {
			return false
		}
		c, worst = next, r
		return true
	}
	for n := max(1, len(c.Plan)/2); n > 0 && tries > 0; n /= 2 {
		for i := 0; i < len(c.Plan) && tries > 0; {
			end := min(i+n, len(c.Plan))
			plan := append(append([]Action{}, c.Plan[:i]...), c.Plan[end:]...)
			if !fails(func(c *Config) { c.Plan = plan }) {
				i = end
			}
		}
	}
	for _, change := range []func(*Config){
		func(c *Config) { c.Faults.LostRPC = 0 },
		func(c *Config) { c.Volumes = 1 },
		func(c *Config) { c.Chunks = 1 },
		func(c *Config) { c.Chunks = max(c.Chunks/2, 1) },
		func(c *Config) { c.Servers = max(c.Servers-1, c.Replicas) },
	} {
		fails(change)
	}
	for c.Duration > time.Second && fails(func(c *Config) { c.Duration = c.Duration * 3 / 4 }) {
	}
	return c, worst
}
