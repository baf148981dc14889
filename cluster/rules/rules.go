// SPDX-License-Identifier: Apache-2.0

package rules

import (
	"fmt"
	"strconv"
	"strings"
)

// Rule is a rule of docs/replication.md, by its number there.
type Rule uint8

// The rules that can be switched off. Those that are missing have no simple
// counterexample to show that a check of them works.
const (
	DrainedFlush     Rule = 1  // a flush goes out when every write up to its interval is complete
	LogFirst         Rule = 2  // the activity log is durable before the data is submitted
	FlushMetadata    Rule = 3  // a flush covers bits, tags and checksums; entries go after that
	Stamp            Rule = 4  // a resolved region gets a fresh tag everywhere before its entry goes
	Verifier         Rule = 5  // a changed incarnation with unflushed writes is a lost replica
	UnbrokenSource   Rule = 6  // the source has the incarnation that the session recorded
	Overlap          Rule = 7  // overlapping requests wait for each other
	ResolveFirst     Rule = 8  // no I/O to an unresolved region
	Direction        Rule = 9  // only the in-sync set says who is right
	UnionOfLogs      Rule = 10 // what may differ is in the log of any in-sync copy
	SkipDirty        Rule = 11 // a target applies live writes only to chunks that are clean there
	ChunkLock        Rule = 12 // a copy runs under the lock of its chunk
	JoinBarrier      Rule = 13 // compare after every write without the target has completed
	Fence            Rule = 14 // stop admitting, drain, persist, reply
	ZombieReads      Rule = 15 // a read needs a fresh confirmation of every in-sync copy
	StaleFirst       Rule = 16 // a lost copy is taken out of the set before anything is acked
	NoSplit          Rule = 17 // nothing completes while in-sync copies may differ
	Adoption         Rule = 23 // a target waits until every session has adopted its epoch
	EpochFence       Rule = 24 // learning an epoch is a fence at the server
	SkippedDirty     Rule = 25 // a skipped write makes the chunk dirty on the target
	AttachFencesAll  Rule = 26 // attach fences every copy that was in sync since the old session
	AttachDirties    Rule = 27 // attach makes the volume's chunks dirty on the target
	RecordedSource   Rule = 28 // the copy's source has the recorded incarnation
	PlannedDropWaits Rule = 29 // the last unbroken copy is not dropped by plan
	last                  = PlannedDropWaits
)

var names = [last + 1]string{
	DrainedFlush: "DrainedFlush", LogFirst: "LogFirst", FlushMetadata: "FlushMetadata", Stamp: "Stamp",
	Verifier: "Verifier", UnbrokenSource: "UnbrokenSource", Overlap: "Overlap",
	ResolveFirst: "ResolveFirst", Direction: "Direction", UnionOfLogs: "UnionOfLogs",
	SkipDirty: "SkipDirty", ChunkLock: "ChunkLock", JoinBarrier: "JoinBarrier", Fence: "Fence",
	ZombieReads: "ZombieReads", StaleFirst: "StaleFirst", NoSplit: "NoSplit", Adoption: "Adoption",
	EpochFence: "EpochFence", SkippedDirty: "SkippedDirty", AttachFencesAll: "AttachFencesAll",
	AttachDirties: "AttachDirties", RecordedSource: "RecordedSource", PlannedDropWaits: "PlannedDropWaits",
}

func (r Rule) String() string {
	if r <= last && names[r] != "" {
		return names[r]
	}
	return "rule " + strconv.Itoa(int(r))
}

// All lists every rule that can be switched off, in order.
func All() []Rule {
	var all []Rule
	for r := range last + 1 {
		if names[r] != "" {
			all = append(all, r)
		}
	}
	return all
}

// Off is the set of rules that are switched off: none in production.
type Off uint32

// Set returns the set of the rules given.
func Set(off ...Rule) (o Off) {
	for _, r := range off {
		o |= 1 << r
	}
	return o
}

// Has reports whether r is switched off.
func (o Off) Has(r Rule) bool { return o>>r&1 != 0 }

// String lists the names, separated by commas; "none" for the empty set.
func (o Off) String() string {
	var list []string
	for _, r := range All() {
		if o.Has(r) {
			list = append(list, r.String())
		}
	}
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ",")
}

// Parse reads what String writes; a rule may also be given by its number.
func Parse(text string) (o Off, err error) {
	if text == "" || text == "none" {
		return 0, nil
	}
next:
	for name := range strings.SplitSeq(text, ",") {
		for _, r := range All() {
			if strings.EqualFold(name, r.String()) || name == strconv.Itoa(int(r)) {
				o |= 1 << r
				continue next
			}
		}
		return 0, fmt.Errorf("switch off rule %q: there is none of that name; the rules are %v", name, All())
	}
	return o, nil
}
