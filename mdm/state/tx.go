// SPDX-License-Identifier: Apache-2.0

package state

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
)

// Kinds of refusal; the API maps them to its codes.
var (
	ErrInvalid  = errors.New("invalid")
	ErrNotFound = errors.New("not found")
	ErrExists   = errors.New("exists")
	ErrRefused  = errors.New("refused")
)

// Refusal is why a request cannot be granted, in words for people.
type Refusal struct {
	Kind error
	Text string
}

func (r *Refusal) Error() string { return r.Text }
func (r *Refusal) Unwrap() error { return r.Kind }

func refuse(kind error, format string, args ...any) error {
	return &Refusal{Kind: kind, Text: fmt.Sprintf(format, args...)}
}

// MaxEvents is how many events are kept.
const MaxEvents = 2000

// stepPages is how many pages of groups go into one transaction. An etcd that
// is not ours allows 128 operations by default.
const stepPages = 100

// Tx is what a request wants to change.
type Tx struct {
	s      *State
	now    time.Time
	puts   map[string][]byte
	pages  map[string][]byte // committed before puts, some at a time
	dels   []string
	events []Event
}

// Put is one key to write.
type Put struct {
	Key   string
	Value []byte
}

// Step is one etcd transaction: atomic, under the condition that each key in
// Expect was last written in that revision (0: does not exist).
type Step struct {
	Expect     map[string]int64
	Puts       []Put
	Deletes    []string
	EventsUpTo string // keys from EventsFrom up to here (excluded) are deleted; empty: none
	EventsFrom string
}

// Begin starts a transaction planned at that time.
func (s *State) Begin(now time.Time) *Tx {
	return &Tx{s: s, now: now.UTC().Truncate(time.Millisecond), puts: map[string][]byte{},
		pages: map[string][]byte{}}
}

// Empty reports whether there is nothing to commit.
func (t *Tx) Empty() bool { return len(t.puts)+len(t.pages)+len(t.dels)+len(t.events) == 0 }

func (t *Tx) put(key string, record any) { t.puts[key] = encode(record) }

func (t *Tx) remove(key string) {
	if t.s.mod[key] != 0 {
		t.dels = append(t.dels, key)
	}
}

func (t *Tx) event(severity, kind, subject, format string, args ...any) {
	t.events = append(t.events, Event{Time: t.now, Severity: severity, Kind: kind,
		Subject: subject, Text: fmt.Sprintf(format, args...)})
}

// putPGs writes changed groups of a set: whole pages, of which the others keep
// what the state has.
func (t *Tx) putPGs(number uint32, changed map[uint32]*group) {
	touched := map[int]bool{}
	for index := range changed {
		touched[int(index)/PageSize] = true
	}
	for index := range touched {
		var p page
		old := t.s.pages[number][index]
		for i := range PageSize {
			g := changed[uint32(index*PageSize+i)]
			if g == nil && i < len(old) {
				g = old[i].record
			}
			if g == nil {
				break
			}
			p.Groups = append(p.Groups, *g)
		}
		t.pages[pageKey(number, index)] = encode(p)
	}
}

// Steps returns the transactions to commit, in this order; call it before the
// state changes, since the conditions are its revisions. All but the last write
// pages of groups only; each leaves a state that makes sense.
func (t *Tx) Steps() []Step {
	if t.Empty() {
		return nil
	}
	var steps []Step
	pages := slices.Sorted(maps.Keys(t.pages))
	for len(pages) > stepPages {
		steps = append(steps, t.step(pages[:stepPages], t.pages))
		pages = pages[stepPages:]
	}
	last := t.step(pages, t.pages)
	rest := t.step(slices.Sorted(maps.Keys(t.puts)), t.puts)
	last.Puts = append(last.Puts, rest.Puts...)
	maps.Copy(last.Expect, rest.Expect)
	for _, key := range t.dels {
		last.Expect[key] = t.s.mod[key]
		last.Deletes = append(last.Deletes, key)
	}
	t.addEvents(&last)
	return append(steps, last)
}

func (t *Tx) step(keys []string, values map[string][]byte) Step {
	step := Step{Expect: make(map[string]int64, len(keys))}
	for _, key := range keys {
		step.Expect[key] = t.s.mod[key]
		step.Puts = append(step.Puts, Put{key, values[key]})
	}
	return step
}

// addEvents numbers the events and cuts off the oldest.
func (t *Tx) addEvents(step *Step) {
	if len(t.events) == 0 {
		return
	}
	seq := t.s.LastEvent()
	for _, e := range t.events {
		seq++
		e.Seq = seq
		step.Expect[eventKey(seq)] = 0
		step.Puts = append(step.Puts, Put{eventKey(seq), encode(e)})
	}
	if seq > MaxEvents {
		step.EventsFrom, step.EventsUpTo = eventKey(0), eventKey(seq-MaxEvents+1)
	}
}

// LastEvent is the number of the newest event, 0 without any.
func (s *State) LastEvent() uint64 {
	if len(s.events) == 0 {
		return 0
	}
	return s.events[len(s.events)-1].Seq
}

// Events returns those after a number, oldest first; with a limit, the newest.
func (s *State) Events(after uint64, limit int) []Event {
	at := len(s.events)
	for at > 0 && s.events[at-1].Seq > after {
		at--
	}
	found := s.events[at:]
	if limit > 0 && len(found) > limit {
		found = found[len(found)-limit:]
	}
	return slices.Clone(found)
}
